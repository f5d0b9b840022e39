"""Logs a run: log.jsonl (one line per epoch), curves.png, samples/, TensorBoard events and other trackers.

Training and validation are shown together, with the gap between them: the article's sign of overfitting.
"""

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path

from jaxseg.base.errors import Stopped, UserError
from jaxseg.base.files import append
from jaxseg.base.terminal import console
from jaxseg.data.read.masks import PALETTE
from jaxseg.runs.curves import draw_curves
from jaxseg.runs.pictures import draw_samples, write_png
from jaxseg.runs.record import restore_log
from jaxseg.runs.services.link import Link
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
    - `services`: trackers that get what TensorBoard gets, see `services.libraries`
    - `settings`: settings of the run, for these

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
        services: Sequence[str] = (),
        settings: dict | None = None,
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
        self._links = [Link(name, self.run, settings or {}) for name in dict.fromkeys(services)]

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        stopped = kind is not None and issubclass(kind, Stopped | KeyboardInterrupt)
        self.close("stopped" if stopped else "finished" if kind is None else "failed")

    def steps(self, records: list[dict]) -> None:
        """Logs steps, {"step", "loss", "learning_rate", "grad_norm"} each, as scalars.

        "step" counts from 0, as in messages. TensorBoard's is one more: the steps finished by then, as for epochs.
        """
        names = ("loss", "learning_rate", "grad_norm")
        self._scalars([(int(r["step"]) + 1, {f"step/{name}": r[name] for name in names}) for r in records])

    def epoch(self, record: dict) -> None:
        """Logs an epoch as a line of log.jsonl and as scalars, and draws curves.png if there is time.

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
            self._scalars([(record["step"], _of_epoch(record))])
        self._events.flush()
        if time.monotonic() >= self._next_drawing:
            self._draw()

    def scores(self, best: dict) -> None:
        """Gives the other trackers the scores of the best epoch, a line of log.jsonl, as results of the run."""
        best = _plain(best)
        scores = {"epoch": best["epoch"] + 1} | _of_validation(best, "")
        for link in self._links:
            link.scores({name: x for name, x in scores.items() if x is not None}, best["step"])

    def pictures(self, name: str, step: int, *samples, **how) -> Path:
        """Draws samples into samples/`name`.png and TensorBoard, and returns the path of the PNG.

        - `name`: name of the picture
        - `step`: TensorBoard's step
        - `samples`, `how`: arguments of `pictures.draw_samples`
        """
        canvas = draw_samples(*samples, **how)
        path = self.run / "samples" / f"{name}.png"
        self._picture(path, canvas)
        for log in (self._events, *self._links):
            log.image(f"samples/{name}", canvas, step)
        return path

    def close(self, how: str = "finished") -> None:
        """Draws the curves if they are out of date, and closes the files. Calling it again does nothing.

        - `how`: end of the run, "finished", "stopped" or "failed"; says how long other trackers may take to finish
        """
        links, self._links = self._links, []
        for link in links:
            link.end(how)
        self._events.close()
        if self._drawn < len(self.epochs):
            self._draw()
        for link in links:
            link.join()

    def _scalars(self, rows: list[tuple[int, dict[str, object]]]) -> None:
        """Logs pairs of step and {tag: value}, without values that are unknown or not finite."""
        known = [
            (step, {tag: float(x) for tag, x in values.items() if x is not None and math.isfinite(x)})
            for step, values in rows
        ]
        for log in (self._events, *self._links):
            log.scalars(known)

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


def _of_epoch(record: dict) -> dict[str, float | None]:
    """Returns the scalars of a line of log.jsonl by their tags."""
    scalars = {f"{name}/train": record["train"][name] for name in BOTH}
    scalars |= {f"{name}/gap": gap(record, name) for name in BOTH}
    names = ("learning_rate", "images_per_second", "seconds", "waited")
    return scalars | _of_validation(record, "/validation") | {f"epoch/{name}": record.get(name) for name in names}


def _of_validation(record: dict, end: str) -> dict[str, float | None]:
    """Returns the scores of a line of log.jsonl; `end` follows the names of those that training has, too."""
    scores = record["validation"]
    classes = {f"iou/class_{number}": iou for number, iou in enumerate(scores.get("iou", []))}
    return {f"{name}{end}": scores[name] for name in BOTH} | classes


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
