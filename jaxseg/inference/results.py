"""What an evaluation leaves and says: metrics.json, per_image.csv, confusion.png, worst.png, and tables."""

import csv
import io
import json
import math
from pathlib import Path

from rich.table import Table

from jaxseg.base import terminal
from jaxseg.base.errors import UserError
from jaxseg.base.files import replace
from jaxseg.base.terminal import console
from jaxseg.inference.confusion_picture import draw_confusion, human
from jaxseg.inference.scores import Scores
from jaxseg.runs.pictures import draw_samples, write_png

NAMES = ("metrics.json", "per_image.csv", "confusion.png", "worst.png")
ABSENT = (
    "A class that occurs neither in the masks nor in the predictions has no score (null) and is left out of means. "
    "Scores are of all pixels of all images together; ignored pixels count for nothing."
)
OVERALL = {
    "miou": "mIoU",
    "miou_fg": "mIoU without class 0",
    "mdice": "mean Dice (F1)",
    "accuracy": "pixel accuracy",
    "balanced_accuracy": "balanced accuracy",
    "fwiou": "frequency-weighted IoU",
    "mboundary_iou": "mean boundary IoU",
    "mboundary_f1": "mean boundary F1",
}


def targets(out: Path) -> list[Path]:
    """The files of an evaluation in folder `out`."""
    return [out / name for name in NAMES]


def write(out: Path, scores: Scores, about: dict) -> None:
    """Writes all files, each whole or not at all, after everything is drawn. `about`: what else metrics.json says."""
    metrics, per_image, confusion, worst = targets(out)
    names = scores.labels.names
    drawn, shown = draw_confusion(scores.confusion, names), draw_worst(scores) if scores.worst else None
    overall = about | {
        "images": len(scores.images),
        "pixels": int(scores.confusion.sum()),
        "ignored_pixels": sum(image.ignored for image in scores.images),
        "classes": list(names),
        "absent_classes": ABSENT,
    }
    overall |= scores.summary() | {"confusion_matrix": scores.confusion.tolist()}
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_png(confusion, drawn)
        if shown is None:
            worst.unlink(missing_ok=True)  # an earlier one would be taken for this one's
        else:
            write_png(worst, shown)
        replace(per_image, table(scores).encode())
        replace(metrics, (json.dumps(plain(overall), indent=1, ensure_ascii=False) + "\n").encode())
    except OSError as error:
        raise UserError(f"-o {out}: cannot be written to ({error.strerror or error})") from None


def plain(value: object) -> object:
    """JSON knows no NaN."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def table(scores: Scores) -> str:
    """A line for each image, by name; empty where there is no score."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    heads = ["name", "height", "width", "counted_pixels", "ignored_pixels", "accuracy", "miou"]
    rows.writerow([*heads, *(f"iou {name}" for name in scores.labels.names)])
    for image in sorted(scores.images, key=lambda image: image.name):
        fractions = ["" if math.isnan(x) else f"{x:.6f}" for x in (image.accuracy, image.miou, *image.iou)]
        rows.writerow([image.name, image.height, image.width, image.counted, image.ignored, *fractions])
    return text.getvalue()


def draw_worst(scores: Scores):
    """The images of the lowest mIoU, the worst first, RGB."""
    samples = scores.worst
    return draw_samples(
        [sample.image for sample in samples],
        [sample.mask for sample in samples],
        [sample.prediction for sample in samples],
        class_names=scores.labels.names,
        captions=[f"mIoU {sample.score.miou:.3f}  {sample.score.name}" for sample in samples],
        palette=scores.labels.palette(),
    )


def tell(scores: Scores, title: str) -> None:
    """Prints overall scores and those of each class."""
    summary, names = scores.summary(), scores.labels.names
    console.print()
    console.print(terminal.result_table(summary, list(names), title))
    console.print(boundary_table(scores, summary))
    overall = Table(title="overall", title_justify="left", show_header=False)
    overall.add_column("score")
    overall.add_column("value", justify="right")
    for key, label in OVERALL.items():
        overall.add_row(label, number(summary[key]))
    console.print(overall)


def boundary_table(scores: Scores, summary: dict) -> Table:
    """Pixels and boundary scores of each class."""
    found = Table(title="outlines", title_justify="left")
    found.add_column("class")
    for heading in ("pixels", "boundary IoU", "boundary F1"):
        found.add_column(heading, justify="right")
    pixels, keys = scores.confusion.sum(1), ("boundary_iou", "boundary_f1")
    for i, name in enumerate(scores.labels.names):
        found.add_row(name, human(int(pixels[i])), *(number(summary[key][i]) for key in keys))
    return found


def number(value: float) -> str:
    """Four places, - for none."""
    return "-" if math.isnan(value) else f"{value:.4f}"
