"""Scores from one integer confusion matrix per dataset, so that they do not depend on the batch size.

Names are those of segmentation_models.pytorch (smp) and torchmetrics. A confusion matrix has the label by row and the
prediction by column. A class whose score is 0 / 0, such as one that occurs in neither, scores NaN and is left out of
means. `confusion_matrix` runs on the device, everything else in NumPy on the host.

`reduction` is one of
  none      an array with the score of each class
  macro     their mean: torchmetrics' JaccardIndex, and DiceScore and MeanIoU of a whole dataset
  weighted  their mean, weighted with the pixels of each label, as in torchmetrics
  micro     counts summed over the classes first; precision, recall and F1 then all equal the pixel accuracy
"""

from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer

from jaxseg.learn.losses import IGNORE_INDEX, one_hot

Reduction = Literal["none", "macro", "weighted", "micro"]


def most_probable(logits: Float[Array, "*shape k"]) -> Int[Array, "*shape"]:
    """Class with the largest logit, int32: `logits.argmax(-1)`. The first among equals; 0 where a logit is NaN.

    Written as the smallest index of a largest value: XLA's argmax, a reduction of pairs, takes 1 % of a step on a GPU.

    >>> most_probable(jnp.array([[0.0, 1.0], [2.0, 2.0]])).tolist()
    [1, 0]
    """
    smaller = logits < logits.max(-1, keepdims=True)
    classes = jnp.arange(logits.shape[-1], dtype=jnp.int32)
    return jnp.where(smaller, logits.shape[-1], classes).min(-1)


def confusion_matrix(
    predictions: Integer[Array, "*shape"],
    labels: Integer[Array, "*shape"],
    classes: int,
    ignore_index: int = IGNORE_INDEX,
) -> Int[Array, "k k"]:
    """Counts of pixels, int32 [k k]: label by row, prediction by column.

    - `predictions`: integers of any shape, 0 to classes - 1
    - `labels`: integers of the same shape
    - `classes`: k
    - `ignore_index`: pixels with this label are not counted

    The order (predictions, labels) is that of torchmetrics. Comparisons and a sum; `bincount` would be a scatter.

    >>> confusion_matrix(jnp.array([1, 1, 0]), jnp.array([0, 1, 255]), 2).tolist()
    [[0, 1], [0, 1]]
    """
    keep = (labels != ignore_index)[..., None]
    true = (one_hot(labels, classes) & keep).reshape(-1, classes)
    predicted = one_hot(predictions, classes).reshape(-1, classes)
    return (true[:, :, None] & predicted[:, None, :]).sum(0, dtype=jnp.int32)


def count_pixels(
    predictions: Integer[np.ndarray, "*shape"], labels: Integer[np.ndarray, "*shape"], classes: int
) -> Int[np.ndarray, "k k"]:
    """`confusion_matrix` on the host, int64, for images of any size.

    - `predictions`: integers of any shape, 0 to classes - 1
    - `labels`: integers of the same shape; `IGNORE_INDEX` is not counted
    - `classes`: k

    >>> count_pixels(np.array([1, 1, 0], np.uint8), np.array([0, 1, 255], np.uint8), 2).tolist()
    [[0, 1], [0, 1]]
    """
    keep = labels != IGNORE_INDEX
    pairs = labels[keep].astype(np.intp) * classes + predictions[keep]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def _counts(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """True positives, false positives, false negatives and true negatives of each class, float64."""
    confusion = np.asarray(confusion, np.float64)
    tp = np.diag(confusion)
    fp, fn = confusion.sum(0) - tp, confusion.sum(1) - tp
    return tp, fp, fn, confusion.sum() - tp - fp - fn


def ratio(numerator: np.ndarray | np.floating, denominator: np.ndarray | np.floating) -> np.ndarray:
    """numerator / denominator, NaN where the denominator is 0.

    >>> ratio(np.array([1, 0, 1]), np.array([2, 0, 1])).tolist()
    [0.5, nan, 1.0]
    """
    out = np.full(np.shape(denominator), np.nan)
    return np.divide(numerator, denominator, out=out, where=np.asarray(denominator) > 0)


def mean(scores: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Mean over the classes that have a score, perhaps weighted; NaN if none has.

    >>> mean(np.array([0.5, np.nan, 1.0]))
    0.75
    """
    present = ~np.isnan(scores)
    weights = present * (np.ones_like(scores) if weights is None else weights)
    return float(ratio((np.where(present, scores, 0) * weights).sum(), weights.sum()))


def _reduce(numerator: np.ndarray, denominator: np.ndarray, support: np.ndarray, reduction: Reduction):
    if reduction == "micro":
        return float(ratio(numerator.sum(), denominator.sum()))
    scores = ratio(numerator, denominator)
    if reduction == "none":
        return scores
    return mean(scores, support if reduction == "weighted" else None)


def iou_score(confusion: np.ndarray, reduction: Reduction = "macro") -> float | np.ndarray:
    """Jaccard index, TP / (TP + FP + FN): smp's `iou_score`, torchmetrics' `JaccardIndex`.

    "weighted" is the frequency-weighted IoU of Long et al. (2015).

    >>> iou_score(np.array([[2, 0], [1, 1]]), "none").round(3).tolist()
    [0.667, 0.5]
    """
    tp, fp, fn, _ = _counts(confusion)
    return _reduce(tp, tp + fp + fn, tp + fn, reduction)


def fbeta_score(confusion: np.ndarray, beta: float = 1.0, reduction: Reduction = "macro") -> float | np.ndarray:
    """(1 + beta^2) TP / ((1 + beta^2) TP + beta^2 FN + FP): smp's `fbeta_score`.

    - `confusion`: integers [k k], label by row
    - `beta`: how many times as much recall counts as precision
    - `reduction`: see the module

    >>> fbeta_score(np.array([[2, 0], [1, 1]]), 2.0, "none").round(3).tolist()
    [0.909, 0.556]
    """
    tp, fp, fn, _ = _counts(confusion)
    return _reduce((1 + beta**2) * tp, (1 + beta**2) * tp + beta**2 * fn + fp, tp + fn, reduction)


def f1_score(confusion: np.ndarray, reduction: Reduction = "macro") -> float | np.ndarray:
    """2 TP / (2 TP + FP + FN), the Dice score: smp's `f1_score`.

    >>> f1_score(np.array([[2, 0], [1, 1]]), "none").round(3).tolist()
    [0.8, 0.667]
    """
    return fbeta_score(confusion, 1.0, reduction)


def precision(confusion: np.ndarray, reduction: Reduction = "macro") -> float | np.ndarray:
    """TP / (TP + FP); NaN for a class that was never predicted: smp's `precision`.

    >>> precision(np.array([[2, 0], [1, 1]]), "none").round(3).tolist()
    [0.667, 1.0]
    """
    tp, fp, fn, _ = _counts(confusion)
    return _reduce(tp, tp + fp, tp + fn, reduction)


def recall(confusion: np.ndarray, reduction: Reduction = "macro") -> float | np.ndarray:
    """TP / (TP + FN), the sensitivity; NaN for a class that does not occur: smp's `recall`.

    Its mean is torchmetrics' macro accuracy.

    >>> recall(np.array([[2, 0], [1, 1]]), "none").tolist()
    [1.0, 0.5]
    """
    tp, _, fn, _ = _counts(confusion)
    return _reduce(tp, tp + fn, tp + fn, reduction)


def specificity(confusion: np.ndarray, reduction: Reduction = "macro") -> float | np.ndarray:
    """TN / (TN + FP); NaN if no pixel has another label: smp's `specificity`.

    >>> specificity(np.array([[2, 0], [1, 1]]), "none").tolist()
    [0.5, 1.0]
    """
    tp, fp, fn, tn = _counts(confusion)
    return _reduce(tn, tn + fp, tp + fn, reduction)


def balanced_accuracy(confusion: np.ndarray, reduction: Reduction = "macro") -> float | np.ndarray:
    """Half the sum of recall and specificity: smp's `balanced_accuracy`. For two classes the mean recall.

    >>> balanced_accuracy(np.array([[2, 0], [1, 1]]))
    0.75
    """
    tp, fp, fn, tn = _counts(confusion)
    if reduction == "micro":
        return (recall(confusion, "micro") + specificity(confusion, "micro")) / 2
    both = (ratio(tp, tp + fn) + ratio(tn, tn + fp)) / 2
    return _reduce(both, np.ones_like(both), tp + fn, reduction)


def accuracy(confusion: np.ndarray, reduction: Reduction = "macro") -> float | np.ndarray:
    """(TP + TN) / all, each class against the rest: smp's `accuracy`. See `pixel_accuracy`.

    >>> accuracy(np.array([[2, 0], [1, 1]]))
    0.75
    """
    tp, fp, fn, tn = _counts(confusion)
    return _reduce(tp + tn, tp + fp + fn + tn, tp + fn, reduction)


def pixel_accuracy(confusion: np.ndarray) -> float:
    """Share of pixels whose class is right: torchmetrics' micro accuracy, mmsegmentation's aAcc.

    >>> pixel_accuracy(np.array([[2, 0], [1, 1]]))
    0.75
    """
    return recall(confusion, "micro")


def summary(confusion: np.ndarray) -> dict[str, float | list[float]]:
    """All scores of a dataset, as fractions; NaN where a score is undefined.

    - "iou", "dice", "f1" (equal to dice), "precision", "recall", "specificity": lists, one value per class
    - "miou", "mdice", ...: their means over classes
    - "accuracy": `pixel_accuracy`
    - "balanced_accuracy": mean over classes
    - "fwiou": IoU weighted with the pixels of each label
    - "miou_fg": mean IoU without class 0; for two classes also as "foreground_iou"

    >>> scores = summary(np.array([[2, 0], [1, 1]]))
    >>> scores["accuracy"], scores["foreground_iou"], round(scores["miou"], 3)
    (0.75, 0.5, 0.583)
    """
    confusion = np.asarray(confusion, np.int64)
    f1 = f1_score(confusion, "none")
    per_class = {"iou": iou_score(confusion, "none"), "dice": f1, "f1": f1}
    per_class |= {score.__name__: score(confusion, "none") for score in (precision, recall, specificity)}
    foreground = mean(per_class["iou"][1:])
    return (
        {"accuracy": pixel_accuracy(confusion)}
        | {f"m{name}": mean(values) for name, values in per_class.items()}
        | {"balanced_accuracy": balanced_accuracy(confusion), "fwiou": iou_score(confusion, "weighted")}
        | {"miou_fg": foreground}
        | ({"foreground_iou": foreground} if len(confusion) == 2 else {})
        | {name: values.tolist() for name, values in per_class.items()}
    )


class Totals:
    """Sums over the batches of an epoch, divided once at the end, so the batch size does not matter.

    `Totals(state)` continues from the `state` of another.

    >>> totals = Totals()
    >>> totals.add({"loss": 0.5, "confusion": np.array([[2, 0], [1, 1]])})
    >>> totals.summary()["loss"], totals.state
    (0.5, {'loss': 2.0, 'confusion': [[2, 0], [1, 1]]})
    """

    def __init__(self, state: dict | None = None):
        self._loss = state["loss"] if state else 0.0
        self._confusion = np.asarray(state["confusion"], np.int64) if state else np.int64(0)

    def add(self, record: dict) -> None:
        """Adds a batch: what `train_step` or `eval_step` returned. Its mean loss is weighted with its pixels."""
        confusion = np.asarray(record["confusion"], np.int64)
        self._loss += float(record["loss"]) * int(confusion.sum())
        self._confusion = self._confusion + confusion

    @property
    def state(self) -> dict:
        """Sums so far, as JSON takes them."""
        return {"loss": self._loss, "confusion": self._confusion.tolist()}

    def summary(self) -> dict:
        """`summary` of the confusion matrix, and "loss", the mean over pixels."""
        return {"loss": self._loss / max(int(self._confusion.sum()), 1)} | summary(self._confusion)
