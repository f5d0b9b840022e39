"""Compares thumbnails of images: which ones show the same picture, perhaps flipped or turned.

Only what differs from the mean picture of the set is compared, so that a common frame (a dark surrounding, a vignette)
makes no two images alike. Two images are alike if the rest, and its differences between neighboring pixels, correlate
by more than LEAST. `python scripts/near_duplicates.py` measures the error rates on five sets.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, UInt8

LEAST = 0.85
FEW = 4  # with fewer images there is no mean picture


def alike(
    training: UInt8[np.ndarray, "t side side"], validation: UInt8[np.ndarray, "v side side"]
) -> Iterator[tuple[int, int, bool]]:
    """Yields (training, validation, same way up) for each alike pair of thumbnails, at most once a pair.

    A validation image may be flipped or turned by quarter turns: the eight symmetries of the square.
    """
    every = np.concatenate([training, validation]).astype(np.float32)
    mean = every.mean(0) if len(every) >= FEW else np.zeros(every.shape[1:], np.float32)
    known, steps = _rest(training, mean), None
    seen = set()
    for number, turned in enumerate(symmetries(validation)):
        rest = _rest(turned, mean)
        for start in range(0, len(rest), 256):
            near = np.argwhere(rest[start : start + 256] @ known.T > LEAST)
            for v, t in ((int(v) + start, int(t)) for v, t in near):
                steps = _steps(known) if steps is None else steps
                if (t, v) not in seen and float(_steps(rest[v : v + 1])[0] @ steps[t]) > LEAST:
                    seen.add((t, v))
                    yield t, v, number == 0


def symmetries(images: np.ndarray) -> Iterator[np.ndarray]:
    """Yields images [n side side] as they are, then flipped or turned in the other seven ways."""
    for flipped in (images, images[:, :, ::-1]):
        for quarters in range(4):
            yield np.rot90(flipped, quarters, axes=(1, 2))


def _rest(images: np.ndarray, mean: np.ndarray) -> Float[np.ndarray, "n p"]:
    """Residuals after removing each image's mean and its projection on the mean picture, scaled to length 1.

    Their dot products are partial correlations.
    """
    rest = images.reshape(len(images), -1).astype(np.float32)
    rest = rest - rest.mean(1, keepdims=True)
    common = (mean - mean.mean()).ravel()
    if (power := float(common @ common)) > 0:
        rest = rest - np.outer(rest @ common / power, common)
    return _unit(rest)


def _steps(rest: Float[np.ndarray, "n p"]) -> Float[np.ndarray, "n q"]:
    """Differences between neighboring pixels, with length 1."""
    side = int(rest.shape[1] ** 0.5)
    square = rest.reshape(len(rest), side, side)
    return _unit(np.concatenate([np.diff(square, axis=axis).reshape(len(rest), -1) for axis in (1, 2)], 1))


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)
