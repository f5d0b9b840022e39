"""Changes to a run of the reference that should not matter: the distance they cause is due to rounding alone."""

import contextlib
import copy
from collections.abc import Callable, Iterator

import numpy as np
import torch

from parity.twins import pairs
from parity.twins.trainers import Theirs

Weights = dict[str, np.ndarray]
Changed = Iterator[tuple[Weights, list[pairs.Batch]]]


@contextlib.contextmanager
def _permuted(theirs: Theirs, weights: Weights, data: list[pairs.Batch]) -> Changed:
    """Reverses the samples of each batch; means do not depend on their order."""
    yield weights, [{key: value[::-1].copy() for key, value in batch.items()} for batch in data]


@contextlib.contextmanager
def _one_ulp(theirs: Theirs, weights: Weights, data: list[pairs.Batch]) -> Changed:
    """Moves the very first weight by one unit in the last place."""
    weights = copy.deepcopy(weights)
    first = weights["inc.double_conv.0.weight"].reshape(-1)
    first[0] = np.nextafter(first[0], np.inf, dtype=first.dtype)
    yield weights, data


@contextlib.contextmanager
def _channels_last(theirs: Theirs, weights: Weights, data: list[pairs.Batch]) -> Changed:
    """Uses the other memory layout, and with it other kernels."""
    before = theirs.layout
    try:
        theirs.use(torch.channels_last)
        yield weights, data
    finally:
        theirs.use(before)


@contextlib.contextmanager
def _threads(theirs: Theirs, weights: Weights, data: list[pairs.Batch]) -> Changed:
    """Uses two threads instead of one or the reverse, which splits sums differently."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2 if before == 1 else 1)
        yield weights, data
    finally:
        torch.set_num_threads(before)


VARIATIONS: dict[str, Callable[[Theirs, Weights, list[pairs.Batch]], contextlib.AbstractContextManager]] = {
    "batch permuted": _permuted,
    "one ulp": _one_ulp,
    "channels_last": _channels_last,
    "threads": _threads,
}
