"""BatchNorm, a part of the layers question; `parity/checks/layers.py` explains the gates.

A mean of r standard deviations costs both sides digits, so outputs and gradients have r times the gate. In float32
jaxseg's distance from PyTorch's float64 may be 3 times that of PyTorch's float32, or of half an ulp if that is larger.
"""

import math
from collections.abc import Callable, Iterable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import torch

from jaxseg.nn import layers
from parity.judge import compare
from parity.judge.compare import Row
from parity.twins import layer_pairs as pairs
from parity.twins.layer_pairs import Case

QUESTION = "layers"
GATE = 1e-14
RATIOS = (1, 10, 100, 1000)  # mean / standard deviation
NOTE = f"mean/std {RATIOS[0]} to {RATIOS[-1]}"
EACH = 16  # channels with each of RATIOS
PARTS: dict[str, Callable[[str], bool]] = {
    "output": lambda what: what == "y",
    "gradients": lambda what: what.startswith("d "),
    "running mean": lambda what: what == "running mean",
    "running variance": lambda what: what == "running variance",
}


def float64_rows(rng: np.random.Generator, quick: bool) -> Iterable[Row]:
    """Rows for training, padding, evaluation, dtypes, and the error for one value per channel."""
    steps, *shape = (2, 3, 4, 5) if quick else (10, 4, 9, 8)
    few, notes, valid = "BatchNorm: two values per channel", {}, np.arange(shape[0]) != 1
    groups = {"training": case(rng, (steps, *shape), RATIOS)}
    for name, size, options, note in (
        ("BatchNorm: samples that are not valid", shape, {"valid": valid}, "a short batch in PyTorch"),
        ("BatchNorm in evaluation", shape, {"evaluate": True, "momentum": 0.3, "eps": 1e-2}, "momentum 0.3, eps 1e-2"),
        (few, (2, 1, 1), {}, "the unbiased variance is twice the biased"),
    ):
        notes[name], groups[name] = note, case(rng, (1 if quick else steps, *size), **options)
    groups[few].arguments["x"][:, 0] += 20  # two values close together would lose digits
    sides = pairs.both({name: {"": group} for name, group in groups.items()})
    for part, wanted in PARTS.items():
        rows = []
        for number, ratio in enumerate(RATIOS):
            here = pairs.channels(pairs.only(sides["training"], wanted), at(number))
            gate = GATE * (1 if part.startswith("running") else ratio)
            rows.append(compare.close(QUESTION, f"mean/std {ratio}", *here, gate, each=True))
        yield compare.worst_of(QUESTION, f"BatchNorm in training: {part}", rows, note=NOTE)
    sides[few] = pairs.only(sides[few], lambda what: what != "d x")  # 0 except for eps, so it is all rounding
    for name, note in notes.items():
        yield compare.close(QUESTION, name, *sides[name], GATE, each=True, note=note)
    yield types()
    yield one_value()


def at(number: int) -> slice:
    """Channels of ratio `number` of RATIOS."""
    return slice(EACH * number, EACH * (number + 1))


def case(
    rng: np.random.Generator, shape: tuple[int, ...], ratios: tuple[int, ...] = (1,), each: int = EACH, **options
) -> Case:
    """Case with batches of `shape` [steps b h w], whose means are `ratios` standard deviations on either side of 0.

    each: channels with each ratio.
    options: of BatchNorm on both sides.
    """
    steps, b, h, w = shape
    c = each * len(ratios)
    mean = np.repeat(ratios, each) * rng.choice([-1.0, 1.0], c)
    x = mean[:, None, None] + pairs.normal(rng, steps, b, c, h, w)
    arguments = {"x": x, "scale": rng.uniform(0.5, 2, c), "bias": pairs.normal(rng, c)}
    rounded = {name: a.astype(np.float32).astype(np.float64) for name, a in arguments.items()}
    return Case(partial(pairs.batch_norm, **options), partial(pairs.torch_batch_norm, **options), rounded)


def types() -> Row:
    """Row that passes if statistics have the dtype of the parameters, whatever dtype is computed in."""
    wrong = []
    for computed, kept in ((jnp.float64, jnp.float64), (jnp.bfloat16, jnp.float32)):

        def train(x, computed=computed, kept=kept):
            norm = layers.BatchNorm(3, dtype=computed, param_dtype=kept)
            before = norm.mean[...], norm.var[...]
            return norm(x), *before, norm.mean[...], norm.var[...]

        found = jax.eval_shape(train, jax.ShapeDtypeStruct((2, 4, 4, 3), computed))
        what = ("output", "mean before", "variance before", "mean", "variance")
        expected = (computed, kept, kept, kept, kept)
        wrong += [f"{w}: {f.dtype} against {jnp.dtype(e)}" for w, f, e in zip(what, found, expected) if f.dtype != e]
    return compare.at_most(QUESTION, "BatchNorm: types of the statistics", len(wrong), 0, worst="; ".join(wrong))


def one_value() -> Row:
    """Row that passes if both sides raise ValueError for one value per channel in training."""
    silent = []
    for side, train in {
        "jaxseg": lambda: jax.eval_shape(lambda x: layers.BatchNorm(4)(x), jax.ShapeDtypeStruct((1, 1, 1, 4), float)),
        "PyTorch": lambda: torch.nn.BatchNorm2d(4)(torch.ones(1, 4, 1, 1)),
    }.items():
        try:
            train()
        except ValueError:
            continue
        silent.append(side)
    worst = f"no ValueError from {' and '.join(silent)}" if silent else ""
    return compare.at_most(QUESTION, "BatchNorm: one value per channel raises", len(silent), 0, worst=worst)


def float32_rows(rng: np.random.Generator, quick: bool) -> tuple[list[Row], list[dict]]:
    """Rows, and for the evidence the distances of both sides from float64, for each ratio and result.

    The last channels are constant, with scale 1 and bias 0.
    """
    made = case(rng, (2, 4, 16, 16) if quick else (4, 4, 64, 64), (*RATIOS, 0))
    still = at(len(RATIOS))
    made.arguments["x"][:, :, still] = rng.uniform(128, 256, (EACH, 1, 1))
    made.arguments["scale"][still], made.arguments["bias"][still] = 1, 0
    three = pairs.float32({"": made})
    rows, evidence = [], []
    for part, wanted in PARTS.items():
        judged = []
        for number, ratio in enumerate(RATIOS):
            here = pairs.channels(pairs.only(three, wanted), at(number))
            for name, (found, expected) in pairs.distances(here).items():
                what = name.removeprefix(": ")
                evidence.append({"ratio": ratio, "what": what, "jaxseg": found, "pytorch": expected})
                judged.append(no_farther(f"mean/std {ratio}: {what}", found, expected))
        rows.append(compare.worst_of(QUESTION, f"float32: BatchNorm {part}", judged, note=NOTE))
    narrow = pairs.float32({"": case(rng, (2, 4, 12, 13), RATIOS[-1:], each=2)})
    note = f"mean/std {RATIOS[-1]}; with few channels XLA sums a long column one by one"
    found, expected = pairs.distances(narrow)[": y"]
    baselines = {"PyTorch": expected, "half an ulp of the mean": 2**-15}
    rows.append(compare.envelope(QUESTION, "float32: BatchNorm of two channels", found, baselines, note=note))
    found, expected = (float(np.abs(side[": y"][:, :, still]).max()) for side in three[:2])
    baselines = {"PyTorch": expected, "an ulp of the mean": 2**-16 / math.sqrt(1e-5)}
    note = f"{found:.1e}, PyTorch {expected:.1e}; 0 except for the mean's rounding times 1 / sqrt(eps)"
    rows.append(compare.envelope(QUESTION, "float32: BatchNorm of a constant", found, baselines, note=note))
    return rows, evidence


def no_farther(name: str, found: float, expected: float) -> Row:
    """Row for jaxseg's distance from float64, `found`: at most 3 times PyTorch's, `expected`."""
    return compare.envelope(QUESTION, name, found, {"PyTorch": expected, "half an ulp": 2**-24})
