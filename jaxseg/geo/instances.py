"""Separates touching objects of a class by a watershed, as scikit-image computes it."""

from collections.abc import Callable, Collection
from typing import Literal

import cv2
import numpy as np
from jaxtyping import Integer, UInt8
from skimage.measure import label
from skimage.morphology import local_maxima, reconstruction
from skimage.segmentation import watershed

from jaxseg.base.config import IGNORE_INDEX
from jaxseg.geo.maps import FULL

HALO = 256
"""Pixels around a block that are looked at too: objects up to this size are separated as in one piece."""

AGREEMENT = 0.5
"""Intersection over union in the halo from which two blocks' objects are one."""

RISE = {"distance": 2.0, "probability": 0.05}
"""Least height of a peak over the saddle to a higher one: in pixels of distance, or as probability."""


def separate(
    by: Literal["distance", "probability"], left_out: Collection[int] = ()
) -> Callable[[UInt8[np.ndarray, "h w"], UInt8[np.ndarray, "h w"]], Integer[np.ndarray, "h w"]]:
    """Returns a labeler that numbers objects from 1, given classes and their packed probabilities.

    - `by`: objects have a peak of the distance to the nearest other class, or of the smoothed probability
    - `left_out`: classes that are not divided, such as the background; their connected regions are numbered

    Peaks that rise less than `RISE` over the saddle to a higher one are no objects of their own (h-maxima).
    """

    def labeler(classes: np.ndarray, sure: np.ndarray) -> np.ndarray:
        result, total = np.zeros(classes.shape, np.int32), 0
        for number in np.unique(classes):
            mask = classes == number
            if number == IGNORE_INDEX:
                continue
            found = label(mask, connectivity=1) if number in left_out else _objects(mask, sure, by)
            result[mask] = found[mask] + total
            total += int(found.max())
        return result

    return labeler


def _objects(mask: np.ndarray, sure: np.ndarray, by: str) -> np.ndarray:
    """Watershed in the mask, from h-maxima of the distance or the probability."""
    if by == "distance":
        framed = np.pad(mask, 1).astype(np.uint8)  # the border of the map is a border of objects
        height = cv2.distanceTransform(framed, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    else:
        height = cv2.GaussianBlur(np.where(mask, sure, 0).astype(np.float32) / FULL, (0, 0), 1.5)
    height = np.where(mask, height, 0).astype(np.float32)
    peaks = reconstruction(height - RISE[by], height)
    markers = label(local_maxima(peaks) & mask, connectivity=2)
    return watershed(-height, markers, mask=mask)
