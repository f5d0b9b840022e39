"""Scores from one integer confusion matrix per dataset, so that they do not depend on the batch size.

Names and meanings are torchmetrics'; a class that occurs neither in the labels nor in the predictions scores NaN and
is left out of means. `confusion_matrix` runs on the device, everything else in NumPy on the host.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Integer

from jaxseg.losses import IGNORE_INDEX, one_hot


def confusion_matrix(
    labels: Integer[Array, "*shape"],
    predictions: Integer[Array, "*shape"],
    classes: int,
    ignore_index: int = IGNORE_INDEX,
) -> Int[Array, "k k"]:
    """Counts of pixels, int32: row = label, column = prediction. Pixels labeled `ignore_index` are not counted.

    Comparisons and a sum rather than `bincount`, which is a scatter.
    """
    keep = (labels != ignore_index)[..., None]
    true = (one_hot(labels, classes) & keep).reshape(-1, classes)
    predicted = one_hot(predictions, classes).reshape(-1, classes)
    return (true[:, :, None] & predicted[:, None, :]).sum(0, dtype=jnp.int32)


def _ratio(numerator: np.ndarray | np.floating, denominator: np.ndarray | np.floating) -> np.ndarray:
    """numerator / denominator, NaN where the denominator is 0."""
    out = np.full(np.shape(denominator), np.nan)
    return np.divide(numerator, denominator, out=out, where=np.asarray(denominator) > 0)


def _counts(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True positives, false positives and false negatives of each class, float64."""
    confusion = np.asarray(confusion, np.float64)
    tp = np.diag(confusion)
    return tp, confusion.sum(0) - tp, confusion.sum(1) - tp


def iou(confusion: np.ndarray) -> np.ndarray:
    """TP / (TP + FP + FN) of each class (Jaccard index)."""
    tp, fp, fn = _counts(confusion)
    return _ratio(tp, tp + fp + fn)


def dice(confusion: np.ndarray) -> np.ndarray:
    """2 TP / (2 TP + FP + FN) of each class: the Dice score, which is F1."""
    tp, fp, fn = _counts(confusion)
    return _ratio(2 * tp, 2 * tp + fp + fn)


def precision(confusion: np.ndarray) -> np.ndarray:
    """TP / (TP + FP) of each class; NaN when it was never predicted."""
    tp, fp, _ = _counts(confusion)
    return _ratio(tp, tp + fp)


def recall(confusion: np.ndarray) -> np.ndarray:
    """TP / (TP + FN) of each class; NaN when it does not occur."""
    tp, _, fn = _counts(confusion)
    return _ratio(tp, tp + fn)


def accuracy(confusion: np.ndarray) -> float:
    """Share of pixels whose class is right."""
    tp, _, fn = _counts(confusion)
    return float(_ratio(tp.sum(), (tp + fn).sum()))


def mean(scores: np.ndarray) -> float:
    """Mean over the classes that have a score; NaN when none has."""
    present = scores[~np.isnan(scores)]
    return float(present.mean()) if present.size else float("nan")


def summary(confusion: np.ndarray) -> dict[str, float | list[float]]:
    """Every score of a dataset: accuracy, the others per class (lists) and as means over classes (`miou`, `mdice`)."""
    confusion = np.asarray(confusion, np.int64)
    per_class = {"iou": iou, "dice": dice, "precision": precision, "recall": recall}
    scores = {name: score(confusion) for name, score in per_class.items()}
    return (
        {"accuracy": accuracy(confusion)}
        | {f"m{name}": mean(values) for name, values in scores.items()}
        | {name: values.tolist() for name, values in scores.items()}
    )


class Totals:
    """Sums over the batches of an epoch, divided once at the end: the same whatever the batch size.

    `add` takes what `train_step` or `eval_step` returned, on the host. `state` is JSON; `Totals(state)` goes on from
    it.
    """

    def __init__(self, state: dict | None = None):
        self._loss = state["loss"] if state else 0.0
        self._confusion = np.asarray(state["confusion"], np.int64) if state else np.int64(0)

    def add(self, record: dict) -> None:
        """Adds a batch: its mean loss, weighted with its pixels, and its confusion matrix."""
        confusion = np.asarray(record["confusion"], np.int64)
        self._loss += float(record["loss"]) * int(confusion.sum())
        self._confusion = self._confusion + confusion

    @property
    def state(self) -> dict:
        """The sums so far."""
        return {"loss": self._loss, "confusion": self._confusion.tolist()}

    def summary(self) -> dict:
        """`summary` of the confusion matrix, and "loss", the mean over pixels."""
        return {"loss": self._loss / max(int(self._confusion.sum()), 1)} | summary(self._confusion)
