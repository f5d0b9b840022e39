"""The part of the layers question about convolutions; see `parity/checks/layers.py` for the command and the gates."""

from collections.abc import Iterable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

from parity.checks import batch_norm
from parity.judge import compare
from parity.judge.compare import Row
from parity.twins import layer_pairs as pairs
from parity.twins.layer_pairs import Case, normal

QUESTION = "layers"
GATE = 1e-14
Groups = dict[str, dict[str, Case]]  # cases by the row that they are reported in


def float64_rows(rng: np.random.Generator, quick: bool) -> Iterable[Row]:
    """The network's, and Flax's as PyTorch has them."""
    groups = network_convolutions(rng, quick) | flax_convolutions(rng, quick)
    notes = {name: f"{len(cases)} cases" if len(cases) > 1 else "" for name, cases in groups.items()}
    sides = pairs.both(groups)
    same = "nnx.Conv with 'SAME', 3x3 convolution of stride 2"
    even = [torch.tensor(a) for a in groups[same]["even"].arguments.values()]
    off = np.abs(sides[same][0]["even: y"] - F.conv2d(*even, padding=1, stride=2).numpy()).max()
    notes[same] = f"pads even sizes right and below only: {off:.1f} off PyTorch's padding=1; odd sizes equal it"
    return [compare.close(QUESTION, name, *sides[name], GATE, each=True, note=notes[name]) for name in groups]


def network_convolutions(rng: np.random.Generator, quick: bool) -> Groups:
    """Of odd and even sizes, every other one without a bias."""
    sizes = [(7, 8)] if quick else [(7, 8), (6, 5), (1, 1), (2, 9), (32, 33)]
    groups = {}
    for size in (3, 1):
        cases = groups[f"convolution {size}x{size}"] = {}
        for number, (h, w) in enumerate(sizes):
            arguments = {"x": normal(rng, 2, 3, h, w), "kernel": normal(rng, 4, 3, size, size)}
            arguments |= {} if number % 2 else {"bias": normal(rng, 4)}
            name = f"{h}x{w}, {'no bias' if number % 2 else 'bias'}"
            cases[name] = Case(pairs.conv, partial(F.conv2d, padding=size // 2), arguments)
    groups["transposed convolution 2x2"] = {
        f"{h}x{w}": Case(pairs.up_conv, partial(F.conv_transpose2d, stride=2), transposed_arguments(rng, h, w, 2))
        for h, w in sizes
    }
    return groups


def transposed_arguments(rng: np.random.Generator, h: int, w: int, kernel: int) -> dict[str, np.ndarray]:
    """Of a transposed convolution from 4 channels to 3."""
    return {"x": normal(rng, 2, 4, h, w), "kernel": normal(rng, 4, 3, kernel, kernel), "bias": normal(rng, 3)}


def flax_convolutions(rng: np.random.Generator, quick: bool) -> Groups:
    """Strides 1 to 3, paddings 0 to 3, kernels 1 to 5, odd and even sizes; quick, some that have each of them.

    Not among them: 2x5, 4x2 and 5x2 with stride 2, in the gradient of which XLA (of jax 0.10 and 0.12) aborts.
    """

    def case(ours: dict, theirs: dict, inputs: int, h: int, w: int, kh: int, kw: int) -> Case:
        x, kernel = normal(rng, 2, inputs, h, w), normal(rng, 4, inputs // theirs.get("groups", 1), kh, kw)
        arguments = {"x": x, "kernel": kernel, "bias": normal(rng, 4)}
        return Case(partial(pairs.flax_conv, **ours), partial(F.conv2d, **theirs), arguments)

    def around(padding: tuple[int, int]) -> list[tuple[int, int]]:
        return [(p, p) for p in padding]

    explicit = [(2, 3, 1, (0, 1)), (3, 3, 2, (1, 1)), (4, 4, 3, (3, 2)), (5, 1, 2, (2, 0))]
    if not quick:
        kernels = [(k, k) for k in range(1, 6)] + [(2, 3), (5, 3), (1, 3), (3, 5), (4, 3)]
        paddings = [(p, p) for p in range(4)] + [(0, 2), (3, 1)]
        explicit = [(*kernel, stride, padding) for kernel in kernels for stride in (1, 2, 3) for padding in paddings]
    cases = {}
    for number, (kh, kw, stride, padding) in enumerate(explicit):
        h, w = 7 + number % 2, 8 + number // 2 % 2
        ours, theirs = ({"strides": stride, "padding": around(padding)}, {"stride": stride, "padding": padding})
        cases[f"{h}x{w} kernel {kh}x{kw} stride {stride} padding {padding}"] = case(ours, theirs, 2, h, w, kh, kw)
    ours = {"kernel_dilation": 2, "feature_group_count": 2, "padding": around((1, 1))}
    cases["dilation 2, 2 groups"] = case(ours, {"dilation": 2, "groups": 2, "padding": 1}, 4, 9, 8, 3, 3)

    def right_and_below(x, kernel, bias):
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), kernel, bias, stride=2)

    ours = {"strides": 2, "padding": "SAME"}
    even, odd = (case(ours, {"padding": 1, "stride": 2}, 2, n, n, 3, 3) for n in (8, 7))
    return {
        "nnx.Conv with explicit padding": cases,
        "nnx.Conv with 'SAME', 3x3 convolution of stride 2": {
            "even": even._replace(theirs=right_and_below),
            "odd": odd,
        },
        "nnx.ConvTranspose with padding k - 1 - p": flax_transposed(rng, quick),
    }


def flax_transposed(rng: np.random.Generator, quick: bool) -> dict[str, Case]:
    """Kernels and strides of 2 to 4, turned round by Flax or by hand."""
    chosen = [(k, s, p, flip) for k in (2, 3, 4) for s in (2, 3, 4) for p in range(k) for flip in (False, True)]
    if quick:
        chosen = [(3, 2, 1, False), (4, 4, 3, False), (2, 3, 1, True), (4, 2, 1, True)]
    cases = {}
    for k, s, p, flip in chosen:
        flax = partial(pairs.flax_conv_transpose, stride=s, padding=p, flip=flip)
        theirs = partial(F.conv_transpose2d, stride=s, padding=p)
        name = f"kernel {k} stride {s} padding {p}, {'flipped kernel' if flip else 'transpose_kernel'}"
        cases[name] = Case(flax, theirs, transposed_arguments(rng, 5, 4, k))
    return cases


def float32_row(rng: np.random.Generator) -> tuple[Row, dict]:
    """A 3x3 convolution of 16 channels; on x86 both may well call the same code of oneDNN."""
    arguments = {"x": normal(rng, 2, 16, 24, 25), "kernel": normal(rng, 16, 16, 3, 3), "bias": normal(rng, 16)}
    three = pairs.float32({"": Case(pairs.conv, partial(F.conv2d, padding=1), arguments)})
    found, expected = (side[": y"] for side in three[:2])
    ulps = compare.ulp_distances(found, expected, floor=1.0)
    bits = {"elements": found.size, "differing": int((found != expected).sum()), "ulps": int(ulps.max())}
    note = f"{bits['differing']} of {bits['elements']} outputs are not PyTorch's to the bit"
    judged = [batch_norm.no_farther(name, *pair) for name, pair in pairs.distances(three).items()]
    return compare.worst_of(QUESTION, "float32: convolution 3x3", judged, note=note), bits
