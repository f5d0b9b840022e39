"""Measures the shapes that the values of a mask form: flat areas, single pieces, and what 255 lies between."""

import cv2
import numpy as np

from jaxseg.data.read.masks import channels_of

NEAR = 4  # JPEG or a filter seldom moves a value farther
VOID = 255  # the value that most data sets ignore
SIDE = 256  # pixels a side to which masks are thinned where pieces are counted
MOST_PIECES = 1024  # values whose pieces are counted


def flat_pixels(values: np.ndarray, color: bool) -> np.ndarray:
    """True for pixels that differ by at most NEAR from each of their four neighbors: bool [h w].

    A class has such pixels, even in a JPEG; the colors that a filter makes along borders have hardly any.
    """
    planes = channels_of(values) if color else (values,)
    across, down = (np.ones((values.shape[0] - (not i), values.shape[1] - i), bool) for i in (1, 0))
    for plane in planes:
        plane = plane.astype(np.int64) if plane.dtype.itemsize > 2 else plane.astype(np.int32)
        across &= np.abs(np.diff(plane, axis=1)) <= NEAR
        down &= np.abs(np.diff(plane, axis=0)) <= NEAR
    flat = np.ones(values.shape, bool)
    flat[:, 1:] &= across
    flat[:, :-1] &= across
    flat[1:] &= down
    flat[:-1] &= down
    return flat


def whole_pieces(values: np.ndarray) -> int:
    """Counts the values above 0 whose pixels form one piece, as those of numbered objects do.

    A piece is whole if it holds nine tenths of the pixels of its value. Large masks are thinned to SIDE pixels.
    """
    step = -(-max(values.shape) // SIDE)
    thin = values[::step, ::step]
    numbers, places = np.unique(thin, return_inverse=True)
    places, whole = places.reshape(thin.shape), 0
    if len(numbers) > MOST_PIECES:
        return 0
    order = np.argsort(places, axis=None, kind="stable")
    ends = np.cumsum(np.bincount(places.ravel()))
    for i, number in enumerate(numbers.tolist()):
        if number <= 0:
            continue
        rows, columns = np.unravel_index(order[ends[i - 1] if i else 0 : ends[i]], thin.shape)
        top, left = rows.min(), columns.min()
        here = np.zeros((rows.max() - top + 1, columns.max() - left + 1), np.uint8)
        here[rows - top, columns - left] = 1
        pieces = cv2.connectedComponentsWithStats(here, connectivity=8)[2][1:, cv2.CC_STAT_AREA]
        whole += int(pieces.max() >= 0.9 * pieces.sum())
    return whole


def outline(values: np.ndarray) -> tuple[int, int, int]:
    """Counts what tells an outline of ignored pixels, as in Pascal VOC, from a class with value VOID.

    - pixels of VOID that are not within 4 pixels of another value
    - borders between VOID and other values, in pixels
    - borders between two other values, in pixels
    """
    void = values == VOID
    inner = int(cv2.erode(void.astype(np.uint8), np.ones((9, 9), np.uint8), borderValue=1).sum())
    with_void, others = 0, 0
    for a, b, v, w in ((values, values[1:], void, void[1:]), (values.T, values.T[1:], void.T, void.T[1:])):
        a, v = a[:-1], v[:-1]
        with_void += int((v != w).sum())
        others += int(((a != b) & ~v & ~w).sum())
    return inner, with_void, others
