"""What a run says: a progress bar on a terminal, plain lines elsewhere, a table at the end."""

import math
import os
import shlex
import shutil
import subprocess
import time
from contextlib import AbstractContextManager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

console = Console(highlight=False, soft_wrap=True, markup=False)  # a folder may be called [red]


def greet() -> None:
    """Says which JAX runs where, and warns when there is an NVIDIA GPU that it does not see."""
    import jax  # not needed by all that prints

    device = jax.devices()[0]
    where = (
        f"{os.cpu_count()} CPU cores" if device.platform == "cpu" else f"{jax.device_count()} x {device.device_kind}"
    )
    console.print(f"jax {jax.__version__} on {where}")
    if device.platform == "cpu" and shutil.which("nvidia-smi"):
        advice = "There is an NVIDIA GPU, but this JAX runs on the CPU: pip install 'jaxseg[cuda12]'"
        console.print(advice, style="yellow", markup=False)


class Bar(AbstractContextManager):
    """Progress over a run's steps: loss, learning rate, images/s and time left. Off a terminal it only keeps the time.

    `total` and `done` count steps. The first step compiles and is left out of images/s.
    """

    def __init__(self, total: int, done: int, batch_size: int):
        numbers = TextColumn("{task.fields[numbers]}")
        columns = (TextColumn("epoch {task.fields[epoch]}"), BarColumn(12), MofNCompleteColumn(), numbers)
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._progress.add_task("", total=total, completed=done, epoch="", numbers="compiling, once")
        self._total, self._batch_size = total, batch_size
        self._since: float | None = None
        self._compiled = False
        self._steps, self._seconds, self._waited = 0, 0.0, 0.0

    def __enter__(self):
        self._progress.start()
        return self

    def __exit__(self, *_):
        self._progress.stop()

    def start_epoch(self) -> None:
        """From here on time is training's again, and images/s the new epoch's."""
        self._since = time.monotonic() if self._compiled else None
        self._steps, self._seconds, self._waited = 0, 0.0, 0.0

    def update(self, epoch: int, records: list[dict]) -> None:
        """`records`: what the steps since the last call returned, on the host, with "step" and "waited"."""
        now, last = time.monotonic(), records[-1]
        if self._since is not None:
            self._steps += len(records)
            self._seconds += now - self._since
            self._waited += sum(record["waited"] for record in records)
        self._since, self._compiled = now, True
        numbers = f"loss {last['loss']:.4f} lr {last['learning_rate']:.1e}"
        if self._steps:
            left = (self._total - last["step"] - 1) * self._seconds / self._steps
            numbers += f" {self.images_per_second:.1f} images/s {clock(left)} left"
        self._progress.update(self._task, completed=last["step"] + 1, epoch=epoch, numbers=numbers)

    @property
    def images_per_second(self) -> float:
        """Of the running epoch; NaN before its second step."""
        return self._steps * self._batch_size / self._seconds if self._seconds else float("nan")

    @property
    def waited(self) -> float:
        """Share of the running epoch's training in which no step ran for want of a batch; NaN as above."""
        return self._waited / self._seconds if self._seconds else float("nan")


class ImageBar(AbstractContextManager):
    """Progress over images and the pixels of each: a bar on a terminal, elsewhere a line every 10 seconds."""

    def __init__(self, total: int):
        columns = (TextColumn("{task.fields[image]}"), BarColumn(24), TextColumn("{task.fields[numbers]}"))
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._progress.add_task("", total=total, image="", numbers="compiling")
        self._total, self._images, self._pixels, self._part = total, 0, 0, 0.0
        self._began = self._told = time.monotonic()

    def __enter__(self):
        self._progress.start()
        return self

    def __exit__(self, *_):
        self._progress.stop()

    def start(self, image: Path, pixels: int) -> None:
        """The next image."""
        self._size, self._part = pixels, 0.0
        self._progress.update(self._task, image=image.name)

    def advance(self, pixels: int) -> None:
        """Some of its pixels are done."""
        self._pixels += pixels
        self._part += pixels / self._size
        self._show()

    def next(self) -> None:
        """The image is done, or not to be had."""
        self._images, self._part = self._images + 1, 0.0
        self._show()

    def _show(self) -> None:
        now, done = time.monotonic(), self._images + self._part
        left = (self._total - done) * (now - self._began) / done
        numbers = f"{done:.1f}/{self._total} images, {self._rate(now)}, {clock(left)} left"
        self._progress.update(self._task, completed=done, numbers=numbers)
        if self._progress.disable and now - self._told > 10:
            self._told = now
            console.print(numbers)

    def _rate(self, now: float) -> str:
        return f"{self._pixels / 1e6 / (now - self._began):.3g} megapixels/s"

    def speed(self, done: int) -> str:
        """Of so many images, and of their pixels."""
        now = time.monotonic()
        rate = f"{done / (now - self._began):.3g} images/s, {self._rate(now)}"
        return f"{clock(now - self._began)}, {rate} with compilation, reading and writing"


def command(module: str, *words: object) -> str:
    """A command to paste, quoted as the platform's shell wants it."""
    return f"python -m {module} {quoted(*words)}"


def quoted(*words: object) -> str:
    """Words as the platform's shell wants them."""
    words = [str(word) for word in words]
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def epoch_line(record: dict, epochs: int, best: bool) -> str:
    """One line for an epoch; `record` is a line of log.jsonl."""
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
    """Not known of a first epoch that is a single, compiling step."""
    return "- images/s" if math.isnan(images_per_second) else f"{images_per_second:.1f} images/s"


def result_table(scores: dict, classes: list[str], title: str) -> Table:
    """Scores of `metrics.summary` per class, and their means."""
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
