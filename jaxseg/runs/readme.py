"""Writes README.md into a run's folder: result, settings, and the next commands."""

from collections.abc import Sequence
from pathlib import Path

from jaxseg import __version__
from jaxseg.base import cli
from jaxseg.base.config import Config, flag
from jaxseg.base.files import replace
from jaxseg.base.terminal import command, quoted


def write(run: Path, config: Config, description: dict, best: dict, images: Path) -> None:
    """Writes README.md.

    - `run`: folder of the run
    - `config`: settings of the run
    - `description`: data of the run, see `Checkpoints`
    - `best`: line of log.jsonl for the best epoch
    - `images`: folder of images for the example of a prediction
    """
    scores = best["validation"]
    parts = [
        f"# {run.name}",
        f"A U-Net trained with jaxseg {__version__}: validation mIoU **{scores['miou']:.4f}**, pixel accuracy "
        f"{scores['accuracy']:.4f}, in epoch {best['epoch'] + 1}.",
        table(scores, description["classes"]),
        "A class that occurs neither in masks nor in predictions has no score (-) and is left out of the mean.",
        "![image, mask, prediction and errors](samples/predictions.png)",
        "![loss, scores and learning rate](curves.png)",
        "## Go on",
        block(
            [
                command("jaxseg.predict", run, images, "-o", run / "predictions"),
                command("jaxseg.evaluate", run),
                command("jaxseg.train", "--resume", run, "--epochs", 2 * config.optimization.epochs),
                quoted("tensorboard", "--logdir", run / "tensorboard"),
            ]
        ),
        "## How it reads files",
        *reading(description),
        "## Settings that are not the default",
        block(settings(config) or ["none"]),
        "All of them are in `config.json`, the split in `split.json`, an epoch a line in `log.jsonl`.",
    ]
    replace(run / "README.md", ("\n\n".join(parts) + "\n").encode())


def table(scores: dict, classes: Sequence[str]) -> str:
    """Formats the scores of `metrics.summary` per class, and their means, as a Markdown table."""
    columns = ("iou", "dice", "precision", "recall")
    rows = ["| class | IoU | Dice | precision | recall |", "|---|---|---|---|---|"]
    for i, name in enumerate(classes):
        rows.append("| " + " | ".join([name, *(score(scores[column][i]) for column in columns)]) + " |")
    rows.append("| mean | " + " | ".join(score(scores[f"m{column}"]) for column in columns) + " |")
    return "\n".join(rows)


def score(value: float | None) -> str:
    """Formats a score with four decimals; None and NaN are a dash."""
    return "-" if value is None or value != value else f"{value:.4f}"


def reading(description: dict) -> list[str]:
    """Formats class map, channels and normalization, with which predictions and evaluations read files."""
    kept = description["reading"]
    labels = kept["labels"]
    shown = [f"#{v:06x}" if labels["color"] else str(v) for v in labels["values"]]
    if labels["binarize"] is not None:
        shown = [f"below {labels['binarize']}", f"{labels['binarize']} and above"]
    rows = [f"| {value} | {i} | {name} |" for i, (value, name) in enumerate(zip(shown, labels["names"]))]
    ignored = ", ".join(f"#{v:06x}" if labels["color"] else str(v) for v in labels["ignored"])
    text = f"{kept['channels']} channels of {kept['dtype']}, normalized by `{kept['normalize']}`"
    return [
        "\n".join(["| mask value | class | name |", "|---|---|---|", *rows]),
        text + (f"; mask values {ignored} are ignored." if ignored else "."),
    ]


def settings(config: Config) -> list[str]:
    """Lists the flags that differ from the defaults, with their values."""
    changed = cli.differences(Config(), config)
    paths = {"out", "resume"}
    return [f"{flag(name)} {plain(now)}" for name, _, now in changed if name not in paths]


def plain(value: object) -> str:
    """Formats a value as on a command line."""
    return " ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def block(lines: Sequence[str]) -> str:
    """Formats lines as a Markdown code block."""
    return "\n".join(["```", *lines, "```"])
