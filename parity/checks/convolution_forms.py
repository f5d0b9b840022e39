"""Every form of the 3x3 convolution against PyTorch's, a part of the layers question (`parity/checks/layers.py`).

`jaxseg.nn.convolution` chooses a form by platform, shape and dtype; one of them is `jaxseg.nn.winograd`. Here each is
asked by shapes that take it: a CPU's as they are, a GPU's computed on the CPU. A row counts the expressions of both
modules that none of these cases ran, so a new form needs a new case. BatchNorm's sums have two forms likewise.
"""

import contextlib
from collections.abc import Iterable, Iterator
from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F

from jaxseg.nn import convolution, winograd
from parity.judge import compare
from parity.judge.compare import Row
from parity.twins import coverage
from parity.twins import layer_pairs as pairs
from parity.twins.layer_pairs import Case, normal

QUESTION = "layers"
GATE = 1e-14
ON_CPU = {  # channels in and out, height and width
    "4 pixels packed": (3, 8, 5, 8),
    "2 pixels packed": (12, 16, 5, 6),
    "2 pixels packed, few inputs": (4, 20, 4, 6),
    "few channels, odd width": (8, 8, 6, 7),
    "one pixel": (5, 3, 1, 1),
    "17 to 20 channels": (17, 20, 6, 8),
    "20 to 17 channels": (20, 17, 6, 8),
    "a loop, an image a turn": (17, 20, 48, 40),
    "a loop, 4 pixels packed": (8, 8, 65, 72),
    "a loop, 2 pixels packed": (16, 14, 50, 48),
    "a loop, three bands, the last filled up": (17, 20, 123, 128),
    "a loop, 20 to 17 channels": (20, 17, 48, 40),
    "gradient by Winograd": (33, 32, 5, 4),
    "by Winograd": (64, 65, 5, 4),
    "by Winograd, one pixel": (66, 64, 1, 1),
    "by Winograd, three bands, the last filled up": (64, 64, 131, 32),
}
ON_GPU = {
    "3 channels, filled up": (3, 4, 6, 7),
    "7 to 9 channels": (7, 9, 5, 4),
    "8 channels": (8, 8, 6, 8),
    "17 to 20 channels": (17, 20, 5, 6),
}


def float64_rows(rng: np.random.Generator) -> Iterable[Row]:
    """Rows for the forms of both platforms, for bfloat16 on a CPU, and for what did not run."""
    jax.clear_caches()  # JAX runs no function again that it has traced before
    with coverage.running(convolution, winograd) as ran:
        rows = [*form_rows(rng), bfloat16_row(rng)]
    return [*rows, coverage_row(ran)]


def form_rows(rng: np.random.Generator) -> Iterable[Row]:
    """Rows for the forms of both platforms."""
    name = "convolution 3x3 in the forms of a CPU"
    sides = pairs.both({name: cases(rng, ON_CPU)})
    with elsewhere():
        norms = {f"{b}x{h}x{w}": norm(rng, b, h, w) for b, h, w in ((4, 5, 6), (2, 3, 4))}
        name = "convolution 3x3 in the forms of a GPU"
        sides |= pairs.both({name: cases(rng, ON_GPU), "BatchNorm in the form of a GPU": norms})
    for name, side in sides.items():
        yield compare.close(QUESTION, name, *side, GATE, each=True, note=f"{len(side[0])} results")


def cases(rng: np.random.Generator, shapes: dict[str, tuple[int, int, int, int]]) -> dict[str, Case]:
    """Convolutions of two images, or of one large one."""
    return {
        name: Case(
            pairs.conv,
            partial(F.conv2d, padding=1),
            {"x": normal(rng, batch(h), i, h, w), "kernel": normal(rng, o, i, 3, 3)},
        )
        for name, (i, o, h, w) in shapes.items()
    }


def batch(height: int) -> int:
    """Number of images of this height."""
    return 1 if height > 100 else 2


def norm(rng: np.random.Generator, b: int, h: int, w: int) -> Case:
    """BatchNorm in training, with all samples but one valid where there are several."""
    valid = np.arange(b) != 1
    options = {"valid": valid}
    arguments = {"x": normal(rng, 2, b, 3, h, w), "scale": rng.uniform(0.5, 2, 3), "bias": normal(rng, 3)}
    return Case(partial(pairs.batch_norm, **options), partial(pairs.torch_batch_norm, **options), arguments)


@contextlib.contextmanager
def elsewhere() -> Iterator[None]:
    """Context where programs take the forms of another platform than a CPU."""

    def default(*operands, default, **_):
        return default(*operands)

    jax.clear_caches()  # what was traced is neither traced for another platform nor seen to run
    try:
        with mock.patch.object(jax.lax, "platform_dependent", default):
            yield
    finally:
        jax.clear_caches()


def bfloat16_row(rng: np.random.Generator) -> Row:
    """Row for bfloat16 on a CPU: value and gradients are PyTorch's float32, rounded once."""
    found, expected = {}, {}
    for i, o, h, w in ((3, 5, 5, 6), (20, 17, 5, 6), ON_CPU["a loop, an image a turn"], ON_CPU["by Winograd"]):
        x, kernel, g = normal(rng, 2, i, h, w), normal(rng, o, i, 3, 3), normal(rng, 2, o, h, w)
        x, kernel, g = (jnp.asarray(a, jnp.bfloat16) for a in (x, kernel, g))
        y, pull = jax.vjp(convolution.conv3x3, pairs.nhwc(x), pairs.hwio(kernel))
        dx, dkernel = pull(pairs.nhwc(g))
        results = {"y": pairs.nchw(y), "d x": pairs.nchw(dx), "d kernel": dkernel.transpose(3, 2, 0, 1)}
        found |= {f"{i} to {o}: {name}": np.asarray(a, np.float32) for name, a in results.items()}
        tx, tkernel = (torch.tensor(np.asarray(a, np.float32), requires_grad=True) for a in (x, kernel))
        ty = F.conv2d(tx, tkernel, padding=1)
        ty.backward(torch.tensor(np.asarray(g, np.float32)))
        right = {"y": ty.detach(), "d x": tx.grad, "d kernel": tkernel.grad}
        expected |= {f"{i} to {o}: {name}": a.bfloat16().float().numpy() for name, a in right.items()}
    different = {  # float32 itself is off by a few millionths where much cancels
        name: np.abs(found[name] - a) > 2**-7 * np.abs(a) + 2**-18 * a.std() for name, a in expected.items()
    }
    off = max(float(np.mean(np.abs(found[name] - a) > 0)) for name, a in expected.items())
    count = sum(int(d.sum()) for d in different.values())
    note = f"values more than an ulp off; {off:.1%} are an ulp off, where float32 rounds to another side"
    row = compare.at_most(QUESTION, "convolution 3x3 in bfloat16 on a CPU", count, 0, note)
    return row if off < 0.01 else compare.at_most(QUESTION, row.name, off, 0.01, "share of values an ulp off")


def coverage_row(ran: dict[str, set[coverage.Place]]) -> Row:
    """Row for the expressions of both modules that no case runs; what runs is chosen when JAX traces."""
    missing = [line for module in (convolution, winograd) for line in coverage.never_run(module, ran)]
    name = "convolution: expressions that no case runs"
    return compare.at_most(QUESTION, name, len(missing), 0, worst="; ".join(missing[:5]))
