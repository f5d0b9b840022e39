"""Progress bar of predictions and evaluations."""

import time
from contextlib import AbstractContextManager
from pathlib import Path

from rich.progress import BarColumn, Progress, TextColumn

from jaxseg.base.terminal import clock, console


class ImageBar(AbstractContextManager):
    """Shows progress over `total` images and the pixels of each: a bar on a terminal, else a line every 10 seconds."""

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
        """Begins the next image, which has this many pixels."""
        self._size, self._part = pixels, 0.0
        self._progress.update(self._task, image=image.name)

    def advance(self, pixels: int) -> None:
        """Adds finished pixels of the image."""
        self._pixels += pixels
        self._part += pixels / self._size
        self._show()

    def next(self) -> None:
        """Ends the image, whether it was predicted or could not be read."""
        self._images, self._part = self._images + 1, 0.0
        self._show()

    def speed(self, done: int) -> str:
        """Formats the time since the start, and the images and megapixels per second, for `done` images."""
        now = time.monotonic()
        rate = f"{done / (now - self._began):.3g} images/s, {self._rate(now)}"
        return f"{clock(now - self._began)}, {rate} with compilation, reading and writing"

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
