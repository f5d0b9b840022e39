"""Class weights by the formulas of `--class-weights`, over the classes that occur in the training masks."""

import math
from collections.abc import Sequence

import numpy as np


def class_weights(rule: tuple[str, ...], pixels: Sequence[int], around: Sequence[int]) -> list[float]:
    """Weight of each class: the given numbers, or a rule's, which have the mean 1. A class without pixels has 1.

    rule: numbers as texts, or one of inverse (1 / f), sqrt and auto (1 / sqrt f), median (SegNet: median f' / f', f'
        the share in the pixels of the images with that class) and effective (Cui et al.: (1 - b) / (1 - b^n)).
    pixels: of each class.
    around: labeled pixels of the images in which the class occurs.
    """
    if rule[0] not in ("auto", "inverse", "sqrt", "median", "effective"):
        return [float(number) for number in rule]
    total, present = sum(pixels), [n > 0 for n in pixels]
    found = []
    for n, near in zip(pixels, around):
        if not n:
            found.append(0.0)
        elif rule[0] == "inverse":
            found.append(total / n)
        elif rule[0] == "median":
            found.append(near / n)
        elif rule[0] == "effective":  # b = 1 - 1 / total, so b^n = e^(n log b)
            found.append(1 / (1 - math.exp(n * math.log1p(-1 / total))))
        else:
            found.append(math.sqrt(total / n))
    mean = sum(found) / sum(present)
    return np.where(present, np.array(found) / mean, 1.0).tolist()
