"""Logs a run in its folder: TensorBoard events, log.jsonl (one line per epoch), curves.png and samples/.

Training and validation are shown together, with the gap between them: the article's sign of overfitting.
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

BOTH = ("loss", "accuracy", "miou")  # measured in training and in validation
DRAWING = 0.03  # largest share of the time spent on curves.png; one takes about 0.3 s


class Tracker:
    """Logs a run. Use it in a `with` statement.

    - `run`: folder of the run, made if it does not exist
    - `resume_step`: step of the restored checkpoint; later entries of the log are removed
    - `class_names`: names for the curves

    Raises `UserError` if the folder holds a log and `resume_step` is None, or if the log cannot be read.
    """

    def __init__(self, run: Path, *, resume_step: int | None = None, class_names: Sequence[str] | None = None):
        self.run, self.class_names = Path(run), class_names
        (self.run / "samples").mkdir(parents=True, exist_ok=True)
        self.epochs = restore_log(self.run / "log.jsonl", resume_step)
        self._log = (self.run / "log.jsonl").open("a", encoding="utf-8", newline="\n")
        self._writer = _summary_writer()(
            str(self.run / "tensorboard"),
            # TensorBoard hides earlier files' events from this step on; it reads files in the order of their names.
            purge_step=None if resume_step is None else resume_step + 1,
            # tensorboardX names files by the second, and would overwrite one begun in the same second.
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
        """Logs steps, {"step", "loss", "learning_rate", "grad_norm"} each, as TensorBoard scalars."""
        for record in records:
            for name in ("loss", "learning_rate", "grad_norm"):
                self._scalar(f"step/{name}", record[name], int(record["step"]))

    def epoch(self, record: dict) -> None:
        """Logs an epoch as a line of log.jsonl and TensorBoard scalars, and draws curves.png if there is time.

        `record` has:

        - "epoch", from 0, and "step"
        - "train", "validation": scores
        - "learning_rate", "images_per_second", "seconds"
        - "waited": share of the time in which no step ran because data were missing

        NaN and infinities are written as null.
        """
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
        """Draws samples into samples/`name`.png and TensorBoard, and returns the path of the PNG.

        - `name`: name of the picture
        - `step`: TensorBoard's step
        - `samples`, `how`: arguments of `pictures.draw_samples`
        """
        canvas = draw_samples(*samples, **how)
        path = self.run / "samples" / f"{name}.png"
        write_png(path, canvas)
        self._writer.add_image(f"samples/{name}", canvas, step, dataformats="HWC")
        return path

    def close(self) -> None:
        """Draws the curves if they are out of date, and closes the files. Calling it again does nothing."""
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


def gap(record: dict, name: str) -> float | None:
    """Returns how much worse validation is than training; None if unknown. A growing gap means overfitting."""
    train, validation = record["train"][name], record["validation"][name]
    if train is None or validation is None:
        return None
    return validation - train if name == "loss" else train - validation


def restore_log(path: Path, resume_step: int | None) -> list[dict]:
    """Returns the epochs of log.jsonl up to `resume_step`. Removes later ones, and a last line cut short by a crash.

    Raises `UserError` if there are epochs and `resume_step` is None, or if a line before the last is no JSON.
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
                raise UserError(
                    f"{path}, line {number}: expected JSON, found {line[:60]!r}. Fix or remove the line."
                ) from None
    kept = [record for record in epochs if record["step"] <= resume_step]
    if lines:
        replace(path, "".join(json.dumps(record) + "\n" for record in kept).encode())
    return kept


def _summary_writer() -> type:
    """tensorboardX's `SummaryWriter`, imported (0.2 s) without torch, which it would load if installed (2 s)."""
    hide = "torch" not in sys.modules
    if hide:
        sys.modules["torch"] = None
    try:
        from tensorboardX import SummaryWriter
    finally:
        if hide:
            del sys.modules["torch"]
    return SummaryWriter


def _plain(value):
    """Converts numbers and arrays of NumPy or JAX to Python's own, and NaN and infinities to None."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value
