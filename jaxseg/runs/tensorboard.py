"""Writes TensorBoard events in the caller's thread, so that a disk that is full can neither stop nor hang a run."""

import contextlib
import platform
import sys
import time
from pathlib import Path
from types import ModuleType

from jaxseg.base.terminal import console

FLUSHED = 30  # seconds between writes to the disk, at most


class Events:
    """Event file in `folder`. When it cannot be written, says so once and drops everything from then on.

    - `purge_step`: TensorBoard hides events of earlier files from this step on; None hides none

    tensorboardX's own `SummaryWriter` hangs instead: its thread dies and nobody empties its queue.
    """

    def __init__(self, folder: Path, purge_step: int | None = None):
        records, self._summary, self._proto = _tensorboardx()
        self._folder, self._file, self._flushed = folder, None, time.monotonic()
        now = time.time_ns()  # tensorboardX names files by the second, so that two begun in one would be one
        with self._giving_up():
            folder.mkdir(parents=True, exist_ok=True)
            name = f"events.out.tfevents.{now // 10**9}.{platform.node()}.{now}"
            self._file = records.RecordWriter(str(folder / name))
        self._add(0, file_version="brain.Event:2")
        if purge_step is not None:
            self._add(purge_step, session_log=self._proto.SessionLog(status=self._proto.SessionLog.START))

    def scalars(self, rows: list[tuple[int, dict[str, float]]]) -> None:
        """Adds numbers: pairs of step and {tag: value}."""
        for step, values in rows:
            for tag, value in values.items():
                self._add(step, summary=self._summary.scalar(tag, value))

    def image(self, tag: str, image, step: int) -> None:
        """Adds a picture, uint8 RGB [h w 3]."""
        self._add(step, summary=self._summary.image(tag, image, dataformats="HWC"))

    def charts(self, layout: dict) -> None:
        """Adds charts of several tags: {category: {chart: ["Multiline", tags]}}."""
        self._add(0, summary=self._summary.custom_scalars(layout))

    def flush(self) -> None:
        """Writes what is buffered."""
        if self._file is not None:
            with self._giving_up():
                self._file.flush()

    def close(self) -> None:
        """Writes what is buffered and closes the file. Later events are dropped."""
        file, self._file = self._file, None
        if file is not None:
            with self._giving_up():
                file.close()

    def _add(self, step: int, **what) -> None:
        if self._file is None:
            return
        with self._giving_up():
            self._file.write(self._proto.Event(wall_time=time.time(), step=step, **what).SerializeToString())
            if time.monotonic() - self._flushed > FLUSHED:
                self._file.flush()
                self._flushed = time.monotonic()

    @contextlib.contextmanager
    def _giving_up(self):
        try:
            yield
        except OSError as error:
            why = f"{self._folder}: TensorBoard events cannot be written ({error.strerror or error})"
            console.print(f"{why}; the run goes on without them", style="yellow")
            file, self._file = self._file, None
            with contextlib.suppress(OSError):  # what is buffered is lost
                if file is not None:
                    file.close()


def _tensorboardx() -> tuple[ModuleType, ModuleType, ModuleType]:
    """tensorboardX's modules, imported (0.2 s) without torch, which it would load if installed (2 s)."""
    hide = "torch" not in sys.modules
    if hide:
        sys.modules["torch"] = None
    try:
        from tensorboardX import record_writer, summary
        from tensorboardX.proto import event_pb2
    finally:
        if hide:
            del sys.modules["torch"]
    return record_writer, summary, event_pb2
