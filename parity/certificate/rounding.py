"""Float32, judged by PyTorch's own distance from itself.

Two kinds of rows. One pass: the error to float64 over PyTorch's own. Training: the distance from PyTorch's float32 run
over the largest distance of that run from itself under changes that should not matter: samples in reverse, one weight
moved by one ulp, another memory layout, another number of threads, float64. The gate is 3, as in
`parity/checks/divergence.py`.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from parity.certificate import training
from parity.certificate.layers import QUESTION, arrangements
from parity.certificate.pair import Batch, Pair
from parity.certificate.theirs import Theirs, weights
from parity.certificate.training import Run
from parity.judge import compare
from parity.judge.compare import Row

GATE = 3.0
HALF_ULP = 2.0**-24


def measure(pair: Pair, exact: Run, steps: int) -> tuple[list[Row], dict[str, Any]]:
    """Rows, and distances of the weights after each step: {"twin": [...], "variations": {name: [...]}}.

    A distance is NaN where weights were not kept (see `training.looks`).
    """
    reference, side = pair.theirs("float32"), pair.ours("float32")
    plain = training.run(reference, pair.batches_of(0), steps)
    found = training.run(side, pair.batches_of(1), steps)
    rows = [_error_row(pair, name, found, plain, exact) for name in ("outputs", "gradients")]
    if pair.optimizers[0] is None:
        return rows, {}

    def distances(run: Run, ours: bool) -> list[float]:
        both = [(s.params, pair.named(e.params) if ours else e.params) for s, e in zip(run.steps, plain.steps)]
        return [compare.relative_l2(*weights) if weights[1] else math.nan for weights in both]

    curves = {name: distances(run, False) for name, run in _variations(pair, reference, plain, steps)}
    twin = distances(found, True)
    rounded = compare.relative_l2(plain.steps[-1].params, exact.steps[-1].params)
    last = {name: curve[-1] for name, curve in curves.items()} | {"float64": rounded, "half an ulp": HALF_ULP}
    after = f"float32: weights after {steps} steps"
    note = "distance from PyTorch over PyTorch's from itself"
    rows.append(compare.envelope(QUESTION, after, twin[-1], last, GATE, note))
    return rows, {"twin": twin, "variations": curves}


def _error_row(pair: Pair, name: str, found: Run, plain: Run, exact: Run) -> Row:
    """Row for the twin's error to float64 in the first step over PyTorch's."""
    if name == "outputs":
        truth = dict(enumerate(exact.steps[0].outputs))
        theirs, ours = dict(enumerate(plain.steps[0].outputs)), {}
        for i, x in enumerate(found.steps[0].outputs):
            ours[i] = min(
                (moved for _, moved in arrangements(x, truth[i].shape)), key=lambda a: compare.relative_l2(a, truth[i])
            )
    else:
        truth, theirs = (pair.named(run.steps[0].gradients, mean=True) for run in (exact, plain))
        ours = {key: found.steps[0].gradients[key] for key in truth}
    error, own = (compare.relative_l2(side, truth) for side in (ours, theirs))
    note = "error to float64 over PyTorch's own"
    return compare.envelope(QUESTION, f"float32: {name}", error, {"PyTorch": own, "half an ulp": HALF_ULP}, GATE, note)


# PyTorch against itself -----------------------------------------------------------------------------------------------


def _variations(pair: Pair, side: Theirs, plain: Run, steps: int) -> Iterator[tuple[str, Run]]:
    batches = pair.batches_of(0)
    if _reversible(pair):
        side.start()
        yield "samples reversed", training.run(side, [_reversed(b) for b in batches], steps)
    moved: Mapping[str, np.ndarray] = weights(side.given)
    name = next(iter(moved))
    moved[name].reshape(-1)[0] = np.nextafter(moved[name].reshape(-1)[0], np.float32(np.inf))
    side.start(dict(moved))
    yield "one ulp", training.run(side, batches, steps)
    if any(isinstance(m, torch.nn.Conv2d | torch.nn.ConvTranspose2d) for m in side.given.modules()):
        side.start()
        side.model.to(memory_format=torch.channels_last)
        yield "channels_last", training.run(side, batches, steps)
    with _threads():
        side.start()
        yield "threads", training.run(side, batches, steps)


def _reversed(batch: Batch) -> Batch:
    inputs, target = batch
    return tuple(np.flip(x, 0).copy() for x in inputs), None if target is None else np.flip(target, 0).copy()


def _reversible(pair: Pair) -> bool:
    """True if reversed samples leave the loss as it is in float64, as where axis 0 is the batch and the loss a mean."""
    side = pair.theirs()
    first = side.step(*pair.batches[0][0]).loss
    side.start()
    return math.isclose(first, side.step(*_reversed(pair.batches[0][0])).loss, rel_tol=1e-9)


@contextlib.contextmanager
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2 if before == 1 else 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
