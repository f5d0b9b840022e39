"""Results of an evaluation: metrics.json, per_image.csv, confusion.png, worst.png, and printed tables."""

import csv
import io
import json
import math
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from rich.table import Table

from jaxseg.base import terminal
from jaxseg.base.errors import DataError, UserError
from jaxseg.base.files import replace
from jaxseg.base.options import Evaluation
from jaxseg.base.terminal import console
from jaxseg.inference.confusion_picture import draw_confusion, human
from jaxseg.inference.jobs import try_out
from jaxseg.inference.scores import Scores
from jaxseg.runs.pictures import draw_samples, write_png

NAMES = ("metrics.json", "per_image.csv", "confusion.png", "worst.png")
ABSENT = (
    "A class that occurs neither in the masks nor in the predictions has no score (null) and is left out of means. "
    "Scores are computed over all pixels of all images together, without ignored pixels."
)
OVERALL = {
    "miou": "mIoU",
    "miou_fg": "mIoU without {first}",
    "mdice": "mean Dice (F1)",
    "accuracy": "pixel accuracy",
    "balanced_accuracy": "mean of recall and specificity (smp's balanced accuracy)",
    "fwiou": "frequency-weighted IoU",
    "mboundary_iou": "mean boundary IoU",
    "mboundary_f1": "mean boundary F1",
}


def targets(out: Path) -> list[Path]:
    """Returns the paths of the results in folder `out`, in the order of `NAMES`."""
    return [out / name for name in NAMES]


def place(options: Evaluation, name: str) -> Path:
    """Returns the folder for the results. Raises DataError for results that are there, UserError for a bad folder.

    - `options`: command line
    - `name`: end of the folder's name if no -o is given
    """
    out = options.out or options.run / "-".join(filter(None, ["evaluation", name]))
    if there := [str(file) for file in targets(out) if file.exists() and not options.overwrite]:
        raise DataError(f"-o {out}: results are there.", there, "Give --overwrite to replace them, or another -o.")
    try_out(out)
    return out


def tell_files(out: Path) -> None:
    """Prints the paths of the results."""
    console.print("\n".join(["", *(str(file) for file in targets(out) if file.exists())]))


def write(out: Path, scores: Scores, about: dict) -> None:
    """Writes all results atomically, after everything is drawn.

    - `out`: folder, made if it does not exist
    - `scores`: scores of all images
    - `about`: entries that come first in metrics.json

    Raises UserError when a file cannot be written.
    """
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
            worst.unlink(missing_ok=True)  # it would be taken for a result of this evaluation
        else:
            write_png(worst, shown)
        replace(per_image, table(scores).encode())
        replace(metrics, (json.dumps(plain(overall), indent=1, ensure_ascii=False) + "\n").encode())
    except OSError as error:
        raise UserError(f"-o {out}: cannot be written to ({error.strerror or error})") from None


def plain(value: object) -> object:
    """Replaces NaN by None, as JSON has no NaN."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def table(scores: Scores) -> str:
    """Returns CSV text with a row per image, sorted by name. A missing score is an empty cell."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    heads = ["name", "height", "width", "counted_pixels", "ignored_pixels", "accuracy", "miou"]
    rows.writerow([*heads, *(f"iou {name}" for name in scores.labels.names)])
    for image in sorted(scores.images, key=lambda image: image.name):
        fractions = ["" if math.isnan(x) else f"{x:.6f}" for x in (image.accuracy, image.miou, *image.iou)]
        rows.writerow([image.name, image.height, image.width, image.counted, image.ignored, *fractions])
    return text.getvalue()


def draw_worst(scores: Scores) -> UInt8[np.ndarray, "h w 3"]:
    """Draws the images with the lowest mIoU, the worst first; uint8 RGB."""
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
    """Prints the scores of each class and of all together, under a heading `title`."""
    summary, names = scores.summary(), scores.labels.names
    console.print()
    console.print(terminal.result_table(summary, list(names), title))
    console.print(boundary_table(scores, summary))
    overall = Table(title="overall", title_justify="left", show_header=False)
    overall.add_column("score")
    overall.add_column("value", justify="right")
    for key, label in OVERALL.items():
        overall.add_row(label.format(first=names[0]), number(summary[key]))
    console.print(overall)


def boundary_table(scores: Scores, summary: dict) -> Table:
    """Returns a table of pixels and boundary scores per class."""
    found = Table(title="outlines", title_justify="left")
    found.add_column("class")
    for heading in ("pixels", "boundary IoU", "boundary F1"):
        found.add_column(heading, justify="right")
    pixels, keys = scores.confusion.sum(1), ("boundary_iou", "boundary_f1")
    for i, name in enumerate(scores.labels.names):
        found.add_row(name, human(int(pixels[i])), *(number(summary[key][i]) for key in keys))
    return found


def number(value: float) -> str:
    """Formats a score with four decimals; NaN is a dash."""
    return "-" if math.isnan(value) else f"{value:.4f}"
