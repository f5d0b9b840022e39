"""Progress bar of a training run."""

import time
from contextlib import AbstractContextManager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from jaxseg.base.terminal import clock, console


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
