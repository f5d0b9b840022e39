"""Terminal output: the console, the greeting, commands to paste, lines and tables of scores."""

import math
import os
import shlex
import shutil
import subprocess
from pathlib import Path

from rich.console import Console
from rich.table import Table

from jaxseg.base.files import naming


class _Console(Console):
    """A console whose errors name it. rich's own would exit with 1 where its reader has gone."""

    def on_broken_pipe(self) -> None:
        raise

    def print(self, *what, **how) -> None:
        with naming(Path("standard output")):
            super().print(*what, **how)


console = _Console(highlight=False, soft_wrap=True, markup=False)  # without markup, as a folder may be called [red]


def greet() -> None:
    """Prints JAX's version and devices, and warns about an NVIDIA GPU that JAX does not use."""
    import jax  # slow, and not needed by every command

    device = jax.devices()[0]
    where = (
        f"{os.cpu_count()} CPU cores" if device.platform == "cpu" else f"{jax.device_count()} x {device.device_kind}"
    )
    console.print(f"jax {jax.__version__} on {where}")
    if device.platform == "cpu" and shutil.which("nvidia-smi"):
        advice = "There is an NVIDIA GPU, but this JAX runs on the CPU: pip install 'jaxseg[cuda12]'"
        console.print(advice, style="yellow", markup=False)


def command(module: str, *words: object) -> str:
    """Returns the command that runs `module` with arguments `words`, quoted for the platform's shell."""
    return f"python -m {module} {quoted(*words)}"


def quoted(*words: object) -> str:
    """Joins words, quoted for the platform's shell."""
    words = [str(word) for word in words]
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def clock(seconds: float) -> str:
    """Formats seconds as m:ss or h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def epoch_line(record: dict, epochs: int, best: bool) -> str:
    """Formats an epoch as one line; a star marks the best mIoU so far.

    - `record`: line of log.jsonl
    - `epochs`: number of epochs of the run
    - `best`: whether this is the best epoch so far
    """
    train, validation = record["train"], record["validation"]
    return (
        f"epoch {record['epoch'] + 1:>{len(str(epochs))}}/{epochs}"
        f"  loss {train['loss']:.4f} val {validation['loss']:.4f}"
        f"  accuracy {train['accuracy']:.4f} val {validation['accuracy']:.4f}"
        f"  mIoU val {validation['miou']:.4f}{'*' if best else ' '}"
        f"  predicted foreground {1 - validation['predicted'][0]:>4.0%}"
        f"  lr {record['learning_rate']:.1e}  {speed(record['images_per_second'])}"
    )


def speed(images_per_second: float) -> str:
    """Formats images per second; a dash for NaN, where an epoch has a single step, which compiles."""
    return "- images/s" if math.isnan(images_per_second) else f"{images_per_second:.1f} images/s"


def result_table(scores: dict, classes: list[str], title: str) -> Table:
    """Returns a table of IoU, Dice, precision and recall per class, and their means.

    - `scores`: result of `metrics.summary`
    - `classes`: names of the classes
    - `title`: heading of the table
    """
    table = Table(title=title, title_justify="left")
    table.add_column("class")
    for heading in ("IoU", "Dice", "precision", "recall"):
        table.add_column(heading, justify="right")
    for i, name in enumerate(classes):
        table.add_row(name, *(_score(scores[key][i]) for key in ("iou", "dice", "precision", "recall")))
    table.add_section()
    table.add_row("mean", *(_score(scores[key]) for key in ("miou", "mdice", "mprecision", "mrecall")))
    return table


def _score(value: float) -> str:
    return "-" if value != value else f"{value:.4f}"
