"""Changes to a run of the reference that ought not to matter: how far they carry it is how far rounding does."""

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
    """Samples in reverse; means do not depend on the order."""
    yield weights, [{key: value[::-1].copy() for key, value in batch.items()} for batch in data]


@contextlib.contextmanager
def _one_ulp(theirs: Theirs, weights: Weights, data: list[pairs.Batch]) -> Changed:
    """The first weight of all moved by one unit in the last place."""
    weights = copy.deepcopy(weights)
    first = weights["inc.double_conv.0.weight"].reshape(-1)
    first[0] = np.nextafter(first[0], np.inf, dtype=first.dtype)
    yield weights, data


@contextlib.contextmanager
def _channels_last(theirs: Theirs, weights: Weights, data: list[pairs.Batch]) -> Changed:
    """The other layout in memory, and with it other kernels."""
    before = theirs.layout
    try:
        theirs.use(torch.channels_last)
        yield weights, data
    finally:
        theirs.use(before)


@contextlib.contextmanager
def _threads(theirs: Theirs, weights: Weights, data: list[pairs.Batch]) -> Changed:
    """Two threads for one, or the other way round: sums are split differently."""
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
