"""What a comparison says: gains, how sure they are, and whether to keep the thing."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

LEAST = 0.005
"""A gain under half a percent is not worth a line of code."""
LEVEL = 0.05
"""How often a thing that does nothing may be kept or dropped."""


class Verdict(NamedTuple):
    """kept, dropped or noise; and the gain: time without the thing over time with it, so that above 1 it is faster."""

    verdict: str
    gain: float
    """Median over the rounds."""
    interval: tuple[float, float]
    """Of 95 % confidence for the median."""


def judged(without: Sequence[float], with_it: Sequence[float], exact: bool = False) -> Verdict:
    """Of times that stand in pairs, one pair a round: kept if the whole interval is above 1 + LEAST, dropped if it is
    below 1 - LEAST, and noise if neither. `exact`: times are no measurements, and the first pair is all there is.
    """
    ratios = sorted(a / b for a, b in zip(without, with_it, strict=True))
    low, high = (ratios[0], ratios[0]) if exact else median_interval(ratios)
    verdict = "kept" if low > 1 + LEAST else "dropped" if high < 1 - LEAST else "noise"
    return Verdict(verdict, float(np.median(ratios)), (low, high))


def median_interval(ordered: Sequence[float]) -> tuple[float, float]:
    """Of two of the values in between which the median of their law is with a probability of 1 - LEVEL, whatever the
    law; infinite for fewer than six.
    """
    n, left_out, outside = len(ordered), 0, 0.0
    while (outside := outside + 2 * math.comb(n, left_out) / 2**n) <= LEVEL:
        left_out += 1
    return (ordered[left_out - 1], ordered[n - left_out]) if left_out else (-math.inf, math.inf)
