"""Mistakes injected into the twin, one at a time: which rows of the certificate fail?

Two training steps each, in float64. A mistake that changes no number of the twin is left out: the twin has nothing
that it could change.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax

from parity.certificate import training
from parity.certificate.altered import Altered
from parity.certificate.pair import Pair
from parity.certificate.recorder import Change
from parity.certificate.training import Run
from parity.certificate.trials import changed

STEPS = 2


@dataclasses.dataclass(frozen=True)
class Injected:
    """A mistake and the rows that failed."""

    name: str
    failed: tuple[str, ...]
    rows: tuple[str, ...]
    """Names of all rows."""


def inject(pair: Pair) -> list[Injected]:
    """Injects every mistake that the twin can have."""
    steps, compiled = (STEPS if pair.optimizers[0] else 1), loops(pair)
    expected = training.run(pair.theirs(), pair.batches_of(0), steps)
    right = training.run(pair.ours(compiled=compiled), pair.batches_of(1), steps)
    found = []
    for name, wrong in mistakes(pair):
        try:
            run = training.run(wrong.ours(compiled=compiled), wrong.batches_of(1), steps)
        except (TypeError, ValueError):
            continue  # cannot be made in this twin
        if not _same(run, right):
            rows = training.rows(pair, expected, run)
            failed = tuple(row.name for row in rows if not row.passed)
            found.append(Injected(name, failed, tuple(row.name for row in rows)))
    return found


def loops(pair: Pair) -> bool:
    """True if the twin has a loop, which JAX compiles again at every call unless all is compiled."""
    names = pair.twin.params, pair.twin.state
    given = ({name: pair.first[name] for name in part} for part in names)
    traced = jax.make_jaxpr(lambda *x: pair.twin(*x, pair.batches[0][1][0], train=True).output)(*given)
    return any(word in str(traced) for word in ("scan[", "while["))


def _same(run: Run, right: Run) -> bool:
    """True if two runs of the twin end on the same bits."""
    kept = [
        (r.evaluated, r.losses, r.steps[0].gradients, r.steps[-1].params, r.steps[-1].state, r.steps[-1].moments)
        for r in (run, right)
    ]
    return all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, kept), strict=True))


Named = Iterator[tuple[str, Pair]]


def mistakes(pair: Pair) -> Named:
    """Every mistake with the pair that has it."""
    yield from _in_weights(pair)
    yield from _in_modules(pair)
    yield from _in_functions(pair)
    yield from _in_training(pair)


def _in_weights(pair: Pair) -> Named:
    def altered(leaf: str, function: Callable) -> Pair:
        return dataclasses.replace(pair, twin=Altered(pair.twin, weights=lambda w: w | {leaf: function(w[leaf])}))

    by_role = {}
    for match in pair.matches:
        by_role.setdefault(match.piece.role, []).append(match)
    matrices = sorted(by_role.get("matrix", []), key=lambda match: -math.prod(match.shape))
    if matrices:
        largest, smallest = matrices[0].leaf, matrices[-1].leaf
        yield f"{largest} times 1.001", altered(largest, lambda w: w * 1.001)
        yield f"{smallest} times 1.001", altered(smallest, lambda w: w * 1.001)
        yield f"{largest} rounded to float32", altered(largest, lambda w: w.astype(jnp.float32).astype(w.dtype))
    for leaf in [m.leaf for m in matrices if len(m.shape) == 2 and m.shape[0] == m.shape[1]][:1]:
        yield f"{leaf} transposed", altered(leaf, jnp.transpose)
    for leaf in [m.leaf for m in matrices if len(m.shape) > 2 and m.piece.kind != "linear" and max(m.shape[:-2]) > 1][
        :1
    ]:
        yield f"{leaf} flipped", altered(leaf, lambda w: jnp.flip(w, range(w.ndim - 2)))
    for match in by_role.get("bias", [])[:1]:
        yield f"{match.leaf} dropped", altered(match.leaf, lambda w: w * 0)


def _in_modules(pair: Pair) -> Named:
    modules = [name for name in pair.twin.modules if name]
    for attribute, word, turn in (
        ("epsilon", "times 10", lambda e: e * 10),
        ("momentum", "the other way", lambda m: 1 - m),
    ):
        values = {name: pair.twin.attribute(name, attribute) for name in modules}
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float) and value}
        for name in list(numbers)[:1]:
            yield f"{name}: {attribute} {word}", changed(pair, Change({name: {attribute: turn(numbers[name])}}))
    if pair.twin.state:
        biased = {name: 0.99 for name in pair.twin.state if name.endswith("var")}
        for word, share in (("biased by 1 %", biased), ("not kept", dict.fromkeys(pair.twin.state, 0.0))):

            def moved(before, after, share=share):
                return {name: before[name] + (x - before[name]) * share.get(name, 1.0) for name, x in after.items()}

            yield f"running statistics {word}", dataclasses.replace(pair, twin=Altered(pair.twin, statistics=moved))
    owners = list(dict.fromkeys(match.leaf.rpartition(".")[0] for match in pair.matches))
    for name in [name for name in owners if name in modules and name][len(owners) // 2 :][:1]:
        yield f"{name}: output times 1.001", changed(pair, Change(outputs={name: lambda x: x * 1.001}))
        stopped = Change(outputs={name: lambda x: x * 0.999 + jax.lax.stop_gradient(x) * 0.001})
        yield f"{name}: a thousandth of the gradient lost", changed(pair, stopped)


def _in_functions(pair: Pair) -> Named:
    gelu, softmax, silu = jax.nn.gelu, jax.nn.softmax, jax.nn.silu
    replacements = {
        "GELU: approximate": ("gelu", lambda x, approximate=True: gelu(x, approximate=True)),
        "ReLU: slope 0.01 below 0": ("relu", lambda x: jax.nn.leaky_relu(x, 0.01)),
        "ReLU: maximum, with half a slope at 0": ("relu", lambda x: jnp.maximum(x, 0)),
        "softmax over another axis": ("softmax", lambda x, axis=-1, **k: softmax(x, axis - 1, **k)),
        "softmax of 1.001 x": ("softmax", lambda x, *a, **k: softmax(x * 1.001, *a, **k)),
        "SiLU: x sigmoid(1.702 x)": ("silu", lambda x: silu(1.702 * x) / 1.702),
        "sigmoid: piecewise linear": ("sigmoid", jax.nn.hard_sigmoid),
        "tanh times 1.001": ("tanh", lambda x: jnp.tanh(x) * 1.001),
    }
    for name, (function, wrong) in replacements.items():
        yield name, dataclasses.replace(pair, twin=Altered(pair.twin, functions={function: wrong}))


def _in_training(pair: Pair) -> Named:
    def loss(function: Callable) -> Pair:
        return dataclasses.replace(pair, losses=(pair.losses[0], lambda o, y: function(pair.losses[1](o, y))))

    def optimizer(tx: optax.GradientTransformation) -> Pair:
        return dataclasses.replace(pair, optimizers=(pair.optimizers[0], tx))

    def batch(function: Callable) -> Pair:
        return dataclasses.replace(pair, batches=[(theirs, function(ours)) for theirs, ours in pair.batches])

    yield "loss times 1.001", loss(lambda x: x * 1.001)
    yield "inputs rounded to float32", batch(lambda b: (tuple(map(_rounded, b[0])), b[1]))
    if pair.moved:
        yield "height and width exchanged", batch(lambda b: (tuple(np.swapaxes(x, 1, 2) for x in b[0]), b[1]))
    tx = pair.optimizers[1]
    if tx is not None:
        yield "last sample given twice", batch(lambda b: (tuple(np.concatenate([x[1:], x[-1:]]) for x in b[0]), b[1]))
        yield "learning rate times 1.001", optimizer(optax.chain(tx, optax.scale(1.001)))
        yield "weight decay 1e-4 more", optimizer(optax.chain(optax.add_decayed_weights(1e-4), tx))
        forgetful = optax.GradientTransformation(tx.init, lambda g, s, p=None: (tx.update(g, tx.init(p), p)[0], s))
        yield "optimizer's state forgotten", optimizer(forgetful)


def _rounded(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float32).astype(x.dtype) if x.dtype.kind == "f" else x


def kinds(found: list[Injected]) -> list[str]:
    """Names of the rows, in order."""
    return list(dict.fromkeys(row for mistake in found for row in mistake.rows))
