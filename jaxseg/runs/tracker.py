"""Logs a run in its folder: TensorBoard events, log.jsonl (one line per epoch), curves.png and samples/.

Training and validation are shown together, with the gap between them: the article's sign of overfitting.
"""

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path

from jaxseg.base.errors import UserError
from jaxseg.base.files import append
from jaxseg.base.terminal import console
from jaxseg.data.read.masks import PALETTE
from jaxseg.runs.curves import draw_curves
from jaxseg.runs.pictures import draw_samples, write_png
from jaxseg.runs.record import restore_log
from jaxseg.runs.tensorboard import Events

__all__ = ["PALETTE", "Tracker"]

BOTH = ("loss", "accuracy", "miou")  # measured in training and in validation
DRAWING = 0.03  # largest share of the time spent on curves.png; one takes about 0.3 s


class Tracker:
    """Logs a run. Use it in a `with` statement.

    - `run`: folder of the run, made if it does not exist
    - `resume_step`: number of finished steps of a run that goes on; later ones are hidden in TensorBoard
    - `resume_epoch`: number of its finished epochs; later ones are removed from the log
    - `class_names`: names for the curves

    All scalars and pictures have as step the number of steps that were finished by then. Raises `UserError` if the
    folder holds a log and `resume_step` is None, or if the log is damaged, see `restore_log`. Raises OSError when
    log.jsonl cannot be written. When events or pictures cannot be written, says so once and goes on.
    """

    def __init__(
        self,
        run: Path,
        *,
        resume_step: int | None = None,
        resume_epoch: int = 0,
        class_names: Sequence[str] | None = None,
    ):
        self.run, self.class_names = Path(run), class_names
        (self.run / "samples").mkdir(parents=True, exist_ok=True)
        path = self.run / "log.jsonl"
        if resume_step is None and path.exists() and path.stat().st_size:
            raise UserError(f"{path} is the log of an earlier run: resume that run, or choose another folder.")
        self.epochs, removed = restore_log(path, resume_epoch)
        # an epoch that --steps ended within is logged again when more steps go on there: TensorBoard has this step
        self._shown = {record["step"] for record in removed} & {resume_step}
        append(path, "")
        # TensorBoard hides earlier files' events from this step on; it reads files in the order of their names.
        self._events = Events(self.run / "tensorboard", purge_step=resume_step and resume_step + 1)
        lines = {name: ["Multiline", [f"{name}/train", f"{name}/validation"]] for name in BOTH}
        gaps = {"gaps": ["Multiline", [f"{name}/gap" for name in BOTH]]}
        self._events.charts({"training and validation": lines | gaps})
        self._drawn, self._next_drawing, self._warned = len(self.epochs), 0.0, False

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def steps(self, records: list[dict]) -> None:
        """Logs steps, {"step", "loss", "learning_rate", "grad_norm"} each, as TensorBoard scalars.

        "step" counts from 0, as in messages. TensorBoard's is one more: the steps finished by then, as for epochs.
        """
        for record in records:
            for name in ("loss", "learning_rate", "grad_norm"):
                self._scalar(f"step/{name}", record[name], int(record["step"]) + 1)

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
        append(self.run / "log.jsonl", json.dumps(record, allow_nan=False) + "\n")  # before the epoch's checkpoint
        self.epochs.append(record)
        if record["step"] not in self._shown:
            self._epoch_scalars(record)
        self._events.flush()
        if time.monotonic() >= self._next_drawing:
            self._draw()

    def _epoch_scalars(self, record: dict) -> None:
        step = record["step"]
        for name in BOTH:
            self._scalar(f"{name}/train", record["train"][name], step)
            self._scalar(f"{name}/validation", record["validation"][name], step)
            self._scalar(f"{name}/gap", gap(record, name), step)
        for number, iou in enumerate(record["validation"].get("iou", [])):
            self._scalar(f"iou/class_{number}", iou, step)
        for name in ("learning_rate", "images_per_second", "seconds", "waited"):
            self._scalar(f"epoch/{name}", record.get(name), step)

    def pictures(self, name: str, step: int, *samples, **how) -> Path:
        """Draws samples into samples/`name`.png and TensorBoard, and returns the path of the PNG.

        - `name`: name of the picture
        - `step`: TensorBoard's step
        - `samples`, `how`: arguments of `pictures.draw_samples`
        """
        canvas = draw_samples(*samples, **how)
        path = self.run / "samples" / f"{name}.png"
        self._picture(path, canvas)
        self._events.image(f"samples/{name}", canvas, step)
        return path

    def close(self) -> None:
        """Draws the curves if they are out of date, and closes the files. Calling it again does nothing."""
        self._events.close()
        if self._drawn < len(self.epochs):
            self._draw()

    def _scalar(self, tag: str, value, step: int) -> None:
        if value is not None and math.isfinite(value):
            self._events.scalar(tag, float(value), step)

    def _picture(self, path: Path, canvas) -> None:
        try:
            write_png(path, canvas)
        except OSError as error:
            if not self._warned:
                why = f"{path}: cannot be written ({error.strerror or error})"
                console.print(f"{why}; the run goes on without pictures", style="yellow")
            self._warned = True

    def _draw(self) -> None:
        began = time.monotonic()
        self._picture(self.run / "curves.png", draw_curves(self.epochs, self.class_names))
        ended = time.monotonic()
        self._drawn, self._next_drawing = len(self.epochs), ended + (ended - began) / DRAWING


def gap(record: dict, name: str) -> float | None:
    """Returns how much worse validation is than training; None if unknown. A growing gap means overfitting."""
    train, validation = record["train"][name], record["validation"][name]
    if train is None or validation is None:
        return None
    return validation - train if name == "loss" else train - validation


def _plain(value):
    """Converts numbers and arrays of NumPy or JAX to Python's own, and NaN and infinities to None."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value
