"""Scores of objects: which of them are found, and how they are divided."""

import numpy as np
from jaxtyping import Bool, Int

MATCH = 0.5
"""Intersection over union above which two objects match; each then matches one at most."""


class ObjectScores:
    """Counts the pixels that predicted and true objects share, block by block. Numbers begin with 1; 0 is no object."""

    def __init__(self):
        self._pairs: list[np.ndarray] = []
        self._counts: list[np.ndarray] = []

    def add(
        self, predicted: Int[np.ndarray, "h w"], true: Int[np.ndarray, "h w"], valid: Bool[np.ndarray, "h w"]
    ) -> None:
        """Adds a block.

        - `predicted`, `true`: object numbers of each pixel
        - `valid`: pixels that count
        """
        both = np.stack([predicted[valid], true[valid]], -1).astype(np.int64)
        pairs, counts = np.unique(both[both.any(-1)], axis=0, return_counts=True)
        self._pairs.append(pairs)
        self._counts.append(counts)

    def summary(self) -> dict[str, float | int]:
        """Returns the scores; NaN where undefined.

        - "predicted", "true", "matched": numbers of objects; a match has an IoU of more than 0.5
        - "precision", "recall", "f1": matched over predicted, over true, and their harmonic mean
        - "iou": mean IoU of the matches
        - "over_segmentation", "under_segmentation": mean over true objects of 1 - |t & p| / |t| and 1 - |t & p| / |p|,
          where p shares most pixels with t (Persello and Bruzzone 2010); objects without any p are left out
        """
        pairs, where = np.unique(
            np.concatenate([np.zeros((0, 2), np.int64), *self._pairs]), axis=0, return_inverse=True
        )
        shared = np.bincount(where, np.concatenate([np.zeros(0), *self._counts]), len(pairs))
        most = pairs.max(0, initial=0) + 1
        size_p, size_t = (np.bincount(pairs[:, side], shared, most[side]) for side in (0, 1))
        size_p[0] = size_t[0] = 0
        real = pairs.all(-1)
        (p, t), both = pairs[real].T, shared[real]
        iou = both / (size_p[p] + size_t[t] - both)
        matched, predicted, true = int((iou > MATCH).sum()), int((size_p > 0).sum()), int((size_t > 0).sum())
        order = np.lexsort((-p, both, t))
        last = np.append(t[order][1:] != t[order][:-1], True)[: len(order)]  # for each true object, the best
        best = order[last]
        return {
            "predicted": predicted,
            "true": true,
            "matched": matched,
            "precision": _share(matched, predicted),
            "recall": _share(matched, true),
            "f1": _share(2 * matched, predicted + true),
            "iou": _share(iou[iou > MATCH].sum(), matched),
            "over_segmentation": _share((1 - both[best] / size_t[t[best]]).sum(), len(best)),
            "under_segmentation": _share((1 - both[best] / size_p[p[best]]).sum(), len(best)),
        }


def _share(part: float | int, whole: float | int) -> float:
    return float(part / whole) if whole else float("nan")
