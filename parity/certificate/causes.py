"""Likely causes of a difference, tried: each known divergence is undone in the twin, to see whether the sides agree.

A cause is confirmed if the row or module that failed first passes without it. Others are those of the ledger
(`parity/judge/ledger.toml`) that concern the module; they are only likely.
"""

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np
import optax
import torch

from jaxseg.learn import optimizers
from parity.certificate import layers, rounding, training, trials
from parity.certificate.layers import Line
from parity.certificate.pair import Pair
from parity.certificate.training import Run
from parity.judge.compare import Row
from parity.judge.ledger import LEDGER


@dataclasses.dataclass(frozen=True)
class Cause:
    """A likely cause."""

    what: str
    """Where and what, such as "bn1: running variance: biased against unbiased"."""
    confirmed: str = ""
    """Change that made the sides agree; empty if none did."""


def likely(pair: Pair, expected: Run, found: Run, first: Line | None, rows: list[Row]) -> list[Cause]:
    """Causes of the first failure, those that were confirmed first."""
    failed = next(row.name for row in rows if not row.passed)
    confirmed = []
    if failed == "loss":
        confirmed = _loss(expected, found, pair)
    elif first is not None or failed == "outputs in training":
        confirmed = _tried(pair, first)
    if any(row.name.startswith("running statistics") and not row.passed for row in rows):
        confirmed += _statistics(pair, expected, found)
    if failed.startswith(("weights", "optimizer", "losses")):
        confirmed += [*_two_biases(pair, rows), *_optimizer(pair, expected)]
    return confirmed or [Cause(what) for what in _from_ledger(pair, first, failed)]


def _tried(pair: Pair, first: Line | None) -> list[Cause]:
    """The first trial after which the sides agree there, and what else is set otherwise."""
    settings = list(trials.attributes(pair))
    inside = [trial for trial in settings if first and _within(trial[0].partition(":")[0], first.name)]
    for what, how, tried in itertools.chain(inside, trials.functions(pair), trials.gate_bias(pair)):
        if _agrees(tried, first):
            return [Cause(what, how)] + [Cause(other) for other, _, _ in settings if other != what]
    return [Cause(what) for what, _, _ in settings]


def _within(name: str, module: str) -> bool:
    return f"{name}.".startswith(f"{module.split('#')[0]}.")


def _agrees(tried: Pair, first: Line | None) -> bool:
    """True if, in a changed pair, the module that differed agrees, or the outputs if no module did."""
    try:
        reference = tried.theirs().step(*tried.batches[0][0])
        step = tried.ours(compiled=False).step(*tried.batches[0][1])
    except (TypeError, ValueError):
        return False
    if first is None:
        return layers.outputs("", step.outputs, reference.outputs, tried.moved).passed
    line = next((line for line in layers.lines(tried, reference, step) if line.name == first.name), None)
    return line is not None and (line.forward.passed if not first.forward.passed else line.passed)


# Numbers --------------------------------------------------------------------------------------------------------------


def _statistics(pair: Pair, expected: Run, found: Run) -> list[Cause]:
    """Momentum and the bias of the variance, read from how far the running statistics moved."""
    modules = dict(pair.model.named_modules())
    theirs, ours = pair.named(expected.steps[0].state), found.steps[0].state
    causes = []
    for match in pair.matches:
        if match.piece.role not in ("mean", "var") or np.allclose(ours[match.leaf], theirs[match.leaf], 1e-12, 1e-14):
            continue
        name, before = match.piece.module, pair.first[match.leaf]
        momentum = getattr(modules[name], "momentum", None) or 0.0
        kept = pair.twin.attribute(match.leaf.rpartition(".")[0], "momentum")
        if kept is not None and abs(1 - momentum - kept) > 1e-9:
            ratio = (1 - kept) / momentum if momentum else np.nan
            moved = before + (theirs[match.leaf] - before) * ratio
            told = "" if not np.allclose(ours[match.leaf], moved, 1e-9) else f"momentum={1 - momentum:g}"
            what = f"{name}: BatchNorm: momentum, which weighs the old value in Flax: {kept:g} against {1 - momentum:g}"
            causes.append(Cause(what, told))
        if match.piece.role == "var" and kept is not None:
            batch = (ours[match.leaf] - kept * before) / (1 - kept)
            unbiased = (theirs[match.leaf] - (1 - momentum) * before) / momentum
            factor = unbiased / batch
            n = 1 / (1 - 1 / factor.mean()) if abs(factor.mean() - 1) > 1e-12 else 0
            if n > 1 and np.allclose(factor, factor.mean(), 1e-6) and abs(n - round(n)) < 0.01:
                how = f"times n / (n - 1) with n = {n:.0f}, the values of a channel"
                causes.append(Cause(f"{name}: BatchNorm: running variance: biased against unbiased", how))
    unique = {cause.what: cause for cause in sorted(causes, key=lambda cause: bool(cause.confirmed))}
    return sorted(unique.values(), key=lambda cause: not cause.confirmed)


def _loss(expected: Run, found: Run, pair: Pair) -> list[Cause]:
    """A constant factor between losses of equal outputs."""
    ratio = found.losses[0] / expected.losses[0] if expected.losses[0] else np.nan
    size = pair.batches[0][0][0][0].shape[0]
    if np.isclose(ratio, size, 1e-9):
        return [Cause(f"loss: {size} times PyTorch's: a sum over the samples against a mean", f"divided by {size}")]
    return [Cause(f"loss: {ratio:.6g} times PyTorch's for equal outputs")]


def _two_biases(pair: Pair, rows: list[Row]) -> list[Cause]:
    """Sums of two biases of PyTorch's in one weight of the twin, which learns half as fast."""
    two = [match.leaf for match in pair.matches if len(match.piece.names) > 1]
    worst = next(row.worst for row in rows if not row.passed)
    if two and any(leaf in worst for leaf in two):
        return [Cause(f"recurrent biases: PyTorch has two, each with the gradient of the twin's one: {', '.join(two)}")]
    return []


def _optimizer(pair: Pair, expected: Run) -> list[Cause]:
    """The optimizer: does Optax's with all of PyTorch's constants agree?"""
    given = pair.optimizers[0](list(pair.model.parameters()))
    told, tx = equivalent(given)
    if tx is None:
        return []
    tried = dataclasses.replace(pair, optimizers=(pair.optimizers[0], tx))
    found = training.run(tried.ours(compiled=False), tried.batches_of(1), min(3, len(expected.steps)))
    row = training.parameters(tried, "", found.steps[-1], expected.steps[len(found.steps) - 1])
    name = type(given).__name__
    return [Cause(f"optimizer: other constants or another order than {name}'s", told)] if row.passed else []


def of_rounding(pair: Pair, rows: list[Row], exact: Run, steps: int) -> list[Cause]:
    """Why weights in float32 are farther from PyTorch's than PyTorch's own: Optax's bias correction of Adam."""
    if pair.optimizers[0] is None or all(row.passed for row in rows):
        return []
    told, tx = equivalent(pair.optimizers[0](list(pair.model.parameters())))
    if tx is None:
        return []
    again, _ = rounding.measure(dataclasses.replace(pair, optimizers=(pair.optimizers[0], tx)), exact, steps)
    what = "Adam: bias correction in float32, which cancels in Optax: a learning rate 6e-6 too low"
    return [Cause(what, told)] if all(row.passed for row in again) else []


def equivalent(optimizer: torch.optim.Optimizer) -> tuple[str, optax.GradientTransformation | None]:
    """jaxseg's optimizer that equals one of PyTorch's, as code and as it is; None if there is none."""
    group = optimizer.param_groups[0]
    options = {"weight_decay": float(group.get("weight_decay", 0))}
    if "betas" in group:
        options |= {"b1": group["betas"][0], "b2": group["betas"][1], "eps": group["eps"]}
    if isinstance(optimizer, torch.optim.SGD):
        options |= {"momentum": float(group["momentum"]), "nesterov": group["nesterov"]}
    if isinstance(optimizer, torch.optim.RMSprop):
        options |= {"decay": group["alpha"], "eps": group["eps"], "momentum": float(group["momentum"])}
    name = type(optimizer).__name__.lower()
    if name not in ("sgd", "adam", "adamw", "rmsprop") or any(
        group.get(k) for k in ("amsgrad", "dampening", "centered")
    ):
        return "", None
    given = ", ".join(f"{key}={value!r}" for key, value in options.items())
    code = f"jaxseg.optimizers.{name}({group['lr']:g}, {given})"
    return code, getattr(optimizers, name)(group["lr"], **options)


# The ledger -----------------------------------------------------------------------------------------------------------

WORDS = {
    "Conv": "convolution",
    "ConvTranspose": "transposed convolution",
    "BatchNorm": "BatchNorm",
    "Upsample": "bilinear",
}
"""Start of a class's name in PyTorch -> start of the names of its entries in the ledger."""


def _from_ledger(pair: Pair, first: Line | None, failed: str) -> Iterator[str]:
    """Divergences of the ledger that concern the module or row that differs."""
    begins = ()
    if first is not None:
        below = [type(m).__name__ for m in pair.model.get_submodule(first.name.split("#")[0]).modules()]
        known = sorted(WORDS, key=len, reverse=True)
        begins = tuple({WORDS[next(w for w in known if k.startswith(w))] for k in below if k.startswith(tuple(known))})
        if not first.forward.passed and first.kind in ("Linear", "Conv2d", "Conv1d"):  # or what lies before it
            begins = (*begins, "GELU", "resize", "nearest")
        if first.forward.passed:
            begins = ("ReLU", "max-pool")
    elif failed.startswith(("weights", "optimizer", "losses")) and pair.optimizers[0]:
        begins = (type(pair.optimizers[0](list(pair.model.parameters()))).__name__.removesuffix("W"),)
    elif failed == "loss":
        begins = ("cross-entropy", "label smoothing")
    for entry in LEDGER if begins else ():
        if entry.what.startswith(begins) and "float32" not in entry.what:
            yield f"{entry.what}: {entry.pytorch} in PyTorch, {entry.jax} in JAX"
