"""Boundary IoU and boundary F1, which measure outlines where IoU measures areas; computed with OpenCV on the host.

Counts are summed over all images of a dataset and divided once. Ignored pixels are treated like the outside of the
image, so padding an image with them does not change its score.
"""

import math

import cv2
import numpy as np
from jaxtyping import Integer

from jaxseg.base.config import IGNORE_INDEX
from jaxseg.learn.metrics import mean, ratio


class BoundaryTotals:
    """Sums the counts for boundary IoU and boundary F1 of each class.

    - `classes`: number of classes
    - `dilation`: width of the bands as a share of the image's diagonal; at least 1 pixel
    - `tolerance`: greatest distance of matching contours: in pixels if 1 or more, else a share of the diagonal

    Boundary IoU (Cheng et al. 2021) is the IoU of the bands inside the outlines. Outlines include the image's border.
    Boundary F1 (Csurka et al. 2013) counts contour pixels within `tolerance` of the other contour. The image's border
    is no contour. The paper's tolerance is 0.0075.
    """

    def __init__(self, classes: int, dilation: float = 0.02, tolerance: float = 2.0):
        self._dilation, self._tolerance = dilation, tolerance
        self._counts = np.zeros((classes, 6), np.int64)

    def add(self, labels: Integer[np.ndarray, "h w"], predictions: Integer[np.ndarray, "h w"]) -> None:
        """Adds the counts of an image.

        - `labels`: class numbers [h w]; `IGNORE_INDEX` is ignored
        - `predictions`: class numbers [h w]
        """
        diagonal = math.hypot(*labels.shape)
        width = max(1, round(self._dilation * diagonal))
        tolerance = self._tolerance if self._tolerance >= 1 else self._tolerance * diagonal
        valid = labels != IGNORE_INDEX
        for number in range(len(self._counts)):
            true, predicted = valid & (labels == number), valid & (predictions == number)
            window = _window(true | predicted)
            if window is not None:
                self._counts[number] += _counts(true[window], predicted[window], valid[window], width, tolerance)

    def include(self, others: "BoundaryTotals") -> None:
        """Adds the counts of other images."""
        self._counts += others._counts

    def summary(self) -> dict[str, float | list[float]]:
        """Returns the scores, all from 0 to 1.

        - "boundary_iou", "boundary_precision", "boundary_recall", "boundary_f1": lists with one score per class
        - "mboundary_iou", "mboundary_precision", ...: means over classes

        A class without a boundary scores NaN and is left out of the means.
        """
        both, either, label_hits, label, prediction_hits, prediction = self._counts.T
        precision, recall = ratio(prediction_hits, prediction), ratio(label_hits, label)
        p, r = np.nan_to_num(precision), np.nan_to_num(recall)  # a contour without a counterpart scores 0
        f1 = np.where(label + prediction > 0, np.nan_to_num(ratio(2 * p * r, p + r)), np.nan)
        scores = {"iou": ratio(both, either), "precision": precision, "recall": recall, "f1": f1}
        return {f"mboundary_{name}": mean(values) for name, values in scores.items()} | {
            f"boundary_{name}": values.tolist() for name, values in scores.items()
        }


def _window(there: np.ndarray) -> tuple[slice, slice] | None:
    """Bounding box of the nonzero pixels, one pixel larger on each side; None if all are zero."""
    places = [np.flatnonzero(there.any(axis)) for axis in (1, 0)]
    if not places[0].size:
        return None
    return tuple(slice(max(0, int(at[0]) - 1), int(at[-1]) + 2) for at in places)


def _counts(true: np.ndarray, predicted: np.ndarray, valid: np.ndarray, width: int, tolerance: float) -> list:
    """Pixel counts: bands' intersection and union; hits and length of the label's contour, then the prediction's."""
    a, b = _band(true, width), _band(predicted, width)
    label, prediction = _contour(true, valid), _contour(predicted, valid)
    label_hits, prediction_hits = label & _near(prediction, tolerance), prediction & _near(label, tolerance)
    return [np.count_nonzero(part) for part in (a & b, a | b, label_hits, label, prediction_hits, prediction)]


def _band(mask: np.ndarray, width: int) -> np.ndarray:
    """Pixels that `width` erosions with a 3x3 square remove, if the image is padded with zeros.

    These are the pixels within chessboard distance `width` of a zero.
    """
    framed = np.pad(mask, 1).astype(np.uint8)
    return mask & (cv2.distanceTransform(framed, cv2.DIST_C, 3)[1:-1, 1:-1] <= width)


def _contour(mask: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Pixels of `mask` with a valid 4-neighbor outside it."""
    outside = (valid & ~mask).astype(np.uint8)
    return mask & cv2.dilate(outside, cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))).astype(bool)


def _near(contour: np.ndarray, tolerance: float) -> np.ndarray:
    """Pixels within Euclidean distance `tolerance` of the contour."""
    if not contour.any():
        return np.zeros_like(contour)
    return cv2.distanceTransform((~contour).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE) <= tolerance
