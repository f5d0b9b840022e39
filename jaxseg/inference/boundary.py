"""Scores of outlines, which a mean over areas hardly feels: boundary IoU and boundary F1, with OpenCV on the host.

Both are sums of counts over the images of a dataset, divided once. Ignored pixels count for nothing and are like what
lies outside of the image: an image padded with them scores the same.
"""

import math

import cv2
import numpy as np
from jaxtyping import Integer

from jaxseg.base.config import IGNORE_INDEX
from jaxseg.learn.metrics import mean, ratio


class BoundaryTotals:
    """Boundary IoU and boundary F1 of each class.

    Boundary IoU (Cheng et al. 2021) is the IoU of the bands inside of each outline; they are as wide as `dilation`
    times the image's diagonal, 1 pixel at least, and an outline runs along the image's border too. Boundary F1 (Csurka
    et al. 2013) asks which pixels of either contour are within `tolerance` of the other's; the image's border is no
    contour. `tolerance` from 1 on is in pixels, below it a share of the diagonal (the paper's is 0.0075).
    """

    def __init__(self, classes: int, dilation: float = 0.02, tolerance: float = 2.0):
        self._dilation, self._tolerance = dilation, tolerance
        self._counts = np.zeros((classes, 6), np.int64)

    def add(self, labels: Integer[np.ndarray, "h w"], predictions: Integer[np.ndarray, "h w"]) -> None:
        """Counts an image: its label (`IGNORE_INDEX` where nothing counts) and the predicted classes."""
        diagonal = math.hypot(*labels.shape)
        width = max(1, round(self._dilation * diagonal))
        tolerance = self._tolerance if self._tolerance >= 1 else self._tolerance * diagonal
        valid = labels != IGNORE_INDEX
        for number in range(len(self._counts)):
            true, predicted = valid & (labels == number), valid & (predictions == number)
            window = _window(true | predicted)
            if window is not None:
                self._counts[number] += _counts(true[window], predicted[window], valid[window], width, tolerance)

    def summary(self) -> dict[str, float | list[float]]:
        """ "boundary_iou", "boundary_precision", "boundary_recall" and "boundary_f1" by class; "mboundary_iou", ...:
        means over classes. NaN for a class without a boundary, which means leave out."""
        both, either, label_hits, label, prediction_hits, prediction = self._counts.T
        precision, recall = ratio(prediction_hits, prediction), ratio(label_hits, label)
        p, r = np.nan_to_num(precision), np.nan_to_num(recall)  # a contour without a counterpart scores 0
        f1 = np.where(label + prediction > 0, np.nan_to_num(ratio(2 * p * r, p + r)), np.nan)
        scores = {"iou": ratio(both, either), "precision": precision, "recall": recall, "f1": f1}
        return {f"mboundary_{name}": mean(values) for name, values in scores.items()} | {
            f"boundary_{name}": values.tolist() for name, values in scores.items()
        }


def _window(there: np.ndarray) -> tuple[slice, slice] | None:
    """The part of the image where anything is, and a pixel around it; None when there is nothing."""
    places = [np.flatnonzero(there.any(axis)) for axis in (1, 0)]
    if not places[0].size:
        return None
    return tuple(slice(max(0, int(at[0]) - 1), int(at[-1]) + 2) for at in places)


def _counts(true: np.ndarray, predicted: np.ndarray, valid: np.ndarray, width: int, tolerance: float) -> list:
    """Pixels in both bands, in either; of the label's contour near the other, of all of it; the same the other way."""
    a, b = _band(true, width), _band(predicted, width)
    label, prediction = _contour(true, valid), _contour(predicted, valid)
    label_hits, prediction_hits = label & _near(prediction, tolerance), prediction & _near(label, tolerance)
    return [np.count_nonzero(part) for part in (a & b, a | b, label_hits, label, prediction_hits, prediction)]


def _band(mask: np.ndarray, width: int) -> np.ndarray:
    """What `width` erosions with a 3x3 square, in an image framed with zeros, take away.

    Those are the pixels whose distance from the nearest zero, in king's moves, is `width` at most.
    """
    framed = np.pad(mask, 1).astype(np.uint8)
    return mask & (cv2.distanceTransform(framed, cv2.DIST_C, 3)[1:-1, 1:-1] <= width)


def _contour(mask: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Pixels of `mask` beside (not across from) one that counts and is not in it."""
    outside = (valid & ~mask).astype(np.uint8)
    return mask & cv2.dilate(outside, cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))).astype(bool)


def _near(contour: np.ndarray, tolerance: float) -> np.ndarray:
    """Where the contour is `tolerance` pixels away at most, in a straight line."""
    if not contour.any():
        return np.zeros_like(contour)
    return cv2.distanceTransform((~contour).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE) <= tolerance
