"""Where a run's numbers and pictures go: TensorBoard events, log.jsonl, curves.png and samples/, in the run's folder.

Training and validation stand side by side, with the gap between them: the article's sign of overfitting. Without
TensorBoard, log.jsonl (one line an epoch) and curves.png tell the same.
"""

import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from jaxseg.base.errors import UserError
from jaxseg.base.files import replace
from jaxseg.data.read.masks import PALETTE
from jaxseg.runs.curves import draw_curves
from jaxseg.runs.pictures import draw_samples, write_png

__all__ = ["PALETTE", "Tracker"]

BOTH = ("loss", "accuracy", "miou")  # what is measured in training and in validation
DRAWING = 0.03  # most of the time that is for curves.png (0.3 s of 10); the last one is drawn at the end


class Tracker:
    """Writes down a run, in the folder `run`. Use it in a `with` statement.

    `class_names` name the curves. `resume_step`: the step that was restored; what had been logged after it is taken
    back. Without it, raises `UserError` if the folder already holds a log.
    """

    def __init__(self, run: Path, *, resume_step: int | None = None, class_names: Sequence[str] | None = None):
        self.run, self.class_names = Path(run), class_names
        (self.run / "samples").mkdir(parents=True, exist_ok=True)
        self.epochs = restore_log(self.run / "log.jsonl", resume_step)
        self._log = (self.run / "log.jsonl").open("a", encoding="utf-8", newline="\n")
        self._writer = _summary_writer()(
            str(self.run / "tensorboard"),
            # TensorBoard hides what earlier files hold from this step on; it reads files in the order of their names.
            purge_step=None if resume_step is None else resume_step + 1,
            # tensorboardX names files by the second, and would write over one that was begun in the same second.
            filename_suffix=f".{time.time_ns()}",
        )
        lines = {name: ["Multiline", [f"{name}/train", f"{name}/validation"]] for name in BOTH}
        gaps = {"gaps": ["Multiline", [f"{name}/gap" for name in BOTH]]}
        self._writer.add_custom_scalars({"training and validation": lines | gaps})
        self._drawn, self._next_drawing = len(self.epochs), 0.0

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def steps(self, records: list[dict]) -> None:
        """Steps' {"step", "loss", "learning_rate", "grad_norm"} as TensorBoard scalars."""
        for record in records:
            for name in ("loss", "learning_rate", "grad_norm"):
                self._scalar(f"step/{name}", record[name], int(record["step"]))

    def epoch(self, record: dict) -> None:
        """An epoch's {"epoch" (from 0), "step", "train", "validation", "learning_rate", "waited" (share of the time in
        which no step ran for want of data), ...}: one line of log.jsonl, TensorBoard scalars, curves.png. What is not
        finite is written as null."""
        record = _plain(record)
        self._log.write(json.dumps(record, allow_nan=False) + "\n")
        self._log.flush()
        self.epochs.append(record)
        step = record["step"]
        for name in BOTH:
            self._scalar(f"{name}/train", record["train"][name], step)
            self._scalar(f"{name}/validation", record["validation"][name], step)
            self._scalar(f"{name}/gap", gap(record, name), step)
        for number, iou in enumerate(record["validation"].get("iou", [])):
            self._scalar(f"iou/class_{number}", iou, step)
        for name in ("learning_rate", "images_per_second", "seconds", "waited"):
            self._scalar(f"epoch/{name}", record.get(name), step)
        self._writer.flush()
        if time.monotonic() >= self._next_drawing:
            self._draw()

    def pictures(self, name: str, step: int, *samples, **how) -> Path:
        """Image, mask, prediction and errors of some samples, as samples/`name`.png and in TensorBoard; returns the
        path. `samples` and `how` as `pictures.draw_samples` takes them.
        """
        canvas = draw_samples(*samples, **how)
        path = self.run / "samples" / f"{name}.png"
        write_png(path, canvas)
        self._writer.add_image(f"samples/{name}", canvas, step, dataformats="HWC")
        return path

    def close(self) -> None:
        """Draws the curves if they are not up to date and closes the files."""
        if self._log.closed:
            return
        self._log.close()
        self._writer.close()
        if self._drawn < len(self.epochs):
            self._draw()

    def _scalar(self, tag: str, value, step: int) -> None:
        if value is not None and math.isfinite(value):
            self._writer.add_scalar(tag, float(value), step)

    def _draw(self) -> None:
        began = time.monotonic()
        write_png(self.run / "curves.png", draw_curves(self.epochs, self.class_names))
        ended = time.monotonic()
        self._drawn, self._next_drawing = len(self.epochs), ended + (ended - began) / DRAWING


def _summary_writer() -> type:
    """tensorboardX's `SummaryWriter`, imported when it is wanted (0.2 s), and without torch, which it would load where
    it finds it (2 s more, for nothing)."""
    hide = "torch" not in sys.modules
    if hide:
        sys.modules["torch"] = None
    try:
        from tensorboardX import SummaryWriter
    finally:
        if hide:
            del sys.modules["torch"]
    return SummaryWriter


def gap(record: dict, name: str) -> float | None:
    """By how much validation is worse than training in an epoch: the article's sign of overfitting when it grows."""
    train, validation = record["train"][name], record["validation"][name]
    if train is None or validation is None:
        return None
    return validation - train if name == "loss" else train - validation


def restore_log(path: Path, resume_step: int | None) -> list[dict]:
    """The epochs that log.jsonl holds up to `resume_step`; later ones, and a line cut short by a crash, are removed.

    Raises `UserError` if there are epochs but nothing is resumed, or if another line than the last is no JSON.
    """
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    if lines and resume_step is None:
        raise UserError(f"{path} is the log of an earlier run: resume that run, or choose another folder.")
    epochs = []
    for number, line in enumerate(lines, 1):
        try:
            epochs.append(json.loads(line))
        except ValueError:
            if number < len(lines):
                raise UserError(f"{path}, line {number}: expected JSON, found {line[:60]!r}. Mend it.") from None
    kept = [record for record in epochs if record["step"] <= resume_step]
    if lines:
        replace(path, "".join(json.dumps(record) + "\n" for record in kept).encode())
    return kept


def _plain(value):
    """Numbers and arrays of NumPy or JAX to Python's own; numbers that are not finite to None."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value
