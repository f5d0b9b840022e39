"""Progress bar of a training run."""

import contextlib
import time
from contextlib import AbstractContextManager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from jaxseg.base.terminal import clock, console


class Bar(AbstractContextManager):
    """Shows loss, learning rate, images/s and time left. Off a terminal it only measures time.

    - `total`: steps of the run
    - `done`: steps before this start
    - `batch_size`: images per step
    - `samples`: images per epoch; its last step has the rest

    The first step compiles and is left out of images/s.
    """

    def __init__(self, total: int, done: int, batch_size: int, samples: int):
        numbers = TextColumn("{task.fields[numbers]}")
        columns = (TextColumn("epoch {task.fields[epoch]}"), BarColumn(12), MofNCompleteColumn(), numbers)
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._progress.add_task("", total=total, completed=done, epoch="", numbers="compiling, once")
        self._total, self._batch_size, self._samples = total, batch_size, samples
        self._since: float | None = None
        self._compiled = False
        self._steps, self._images, self._seconds, self._waited = 0, 0, 0.0, 0.0

    def __enter__(self):
        self._progress.start()
        return self

    def __exit__(self, *_):
        with contextlib.suppress(OSError):  # the terminal may have gone, which is not what ended the run
            self._progress.stop()

    def start_epoch(self) -> None:
        """Restarts the measurement for a new epoch; the time since the last `update` is not counted."""
        self._since = time.monotonic() if self._compiled else None
        self._steps, self._images, self._seconds, self._waited = 0, 0, 0.0, 0.0

    def update(self, epoch: int, records: list[dict]) -> None:
        """Adds steps to the bar.

        - `epoch`: number of the epoch, from 1
        - `records`: results of the steps since the last call, on the host, with "step" and "waited"; at least one
        """
        now, last = time.monotonic(), records[-1]
        if self._since is not None:
            self._steps += len(records)
            self._images += sum(self._count(record["step"]) for record in records)
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
        """Images per second in this epoch, without the first step of all; NaN before there are measured steps."""
        return self._images / self._seconds if self._seconds else float("nan")

    @property
    def waited(self) -> float:
        """Share of the epoch's training time in which no step ran because the batch was missing; NaN as above."""
        return self._waited / self._seconds if self._seconds else float("nan")

    def _count(self, step: int) -> int:
        """Images of a step, counted from 0: all but the last of an epoch have a full batch."""
        epoch_steps = -(-self._samples // self._batch_size)
        return min(self._batch_size, self._samples - step % epoch_steps * self._batch_size)
