"""Both sides' passes compared: every module's output and gradient, and the first that differs.

Modules are the same if they have the same weights; where several do (a layer and a block around it), the one that
agrees counts. Outputs are compared with channels first or last, with the first two axes exchanged, or reshaped.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping

import numpy as np

from parity.certificate.pair import Pair
from parity.certificate.recorder import Arrays
from parity.certificate.theirs import Step
from parity.judge import compare
from parity.judge.compare import Row

QUESTION = "certificate"
GATE = 1e-10
"""Relative l2 in float64 after one pass: roundings make 1e-16 to 1e-12, eps 1e-6 instead of 1e-5 makes 1e-6."""
FLOOR = 1e-4
"""Share of the whole gradient below which a gradient is noise, such as that of a bias before a BatchNorm."""


@dataclasses.dataclass(frozen=True)
class Line:
    """A module on both sides: errors of its output and of the gradient of its output."""

    name: str
    """In PyTorch's model."""
    twin: str
    kind: str
    """Class in PyTorch's model."""
    forward: Row
    backward: Row | None

    @property
    def passed(self) -> bool:
        """True if output and gradient agree."""
        return self.forward.passed and (self.backward is None or self.backward.passed)


def lines(pair: Pair, expected: Step, found: Step) -> list[Line]:
    """A line for each module that both sides have, in PyTorch's order of computation."""
    kinds = {name: type(module).__name__ for name, module in pair.model.named_modules()}
    whole = max((compare.norm(x) for x in expected.layer_gradients.values()), default=0.0)
    out = []
    for theirs, candidates in same_modules(pair, expected, found).items():
        rows = [(name, closest(theirs, found.layers[name], expected.layers[theirs])) for name in candidates]
        name, forward = next((row for row in rows if row[1].passed), rows[0])
        backward = None
        if theirs in expected.layer_gradients and name in found.layer_gradients:
            both = found.layer_gradients[name], expected.layer_gradients[theirs]
            backward = closest(theirs, *both, floor=FLOOR * whole)
        out.append(Line(theirs, name, kinds.get(theirs.split("#")[0], ""), forward, backward))
    return out


def same_modules(pair: Pair, expected: Step, found: Step) -> dict[str, list[str]]:
    """PyTorch's modules in order, each with the twin's modules that have the same weights, the likeliest first."""
    theirs = {name: _below(name, {m.leaf: m.piece.module for m in pair.matches}) for name in expected.layers}
    ours = {name: _below(name, {m.leaf: m.leaf.rpartition(".")[0] for m in pair.matches}) for name in found.layers}
    by_weights: dict[tuple, list[str]] = {}
    for name, weights in ours.items():
        by_weights.setdefault((weights, _times(name)), []).append(name)
    turns: dict[tuple, int] = {}
    same = {}
    for name, weights in theirs.items():
        key = weights, _times(name)
        if name in found.layers and (not weights or ours[name] == weights):
            same[name] = [name]
        elif weights and key in by_weights:
            turn = turns[key] = turns.get(key, -1) + 1  # inner ones return first, on both sides
            names = by_weights[key]
            if turn < len(names):
                same[name] = names[turn:] + names[:turn]
    return same


def _below(name: str, modules: Mapping[str, str]) -> frozenset[str]:
    name = name.split("#")[0]
    return frozenset(leaf for leaf, module in modules.items() if f"{module}.".startswith(f"{name}."))


def _times(name: str) -> str:
    return name.partition("#")[2]


def closest(name: str, found: np.ndarray, expected: np.ndarray, floor: float = 0.0) -> Row:
    """Row for two arrays in the arrangement of axes in which they are closest."""

    def measure(a, b):
        return compare.relative_l2(a, b, floor)

    rows = [
        compare.close(QUESTION, name, array, expected, GATE, measure=measure, note=how)
        for how, array in arrangements(found, expected.shape)
    ]
    if not rows:
        why = f"shape {found.shape} against {expected.shape}"
        return compare.at_most(QUESTION, name, math.nan, GATE, worst=why)
    return min(rows, key=lambda row: math.inf if math.isnan(row.figure) else row.figure)


def arrangements(array: np.ndarray, shape: tuple[int, ...]) -> Iterator[tuple[str, np.ndarray]]:
    """Arrangements of an array that have `shape`: as it is, channels moved, axes 0 and 1 exchanged, reshaped."""
    ways = [("", array)]
    if array.ndim > 2:
        ways += [("channels first", np.moveaxis(array, -1, 1)), ("channels last", np.moveaxis(array, 1, -1))]
    if array.ndim > 1:
        ways += [("first axes exchanged", np.swapaxes(array, 0, 1))]
    fitting = [(how, moved) for how, moved in ways if moved.shape == shape]
    if not fitting and array.size == math.prod(shape):
        fitting = [(f"{how} reshaped".strip(), moved.reshape(shape)) for how, moved in ways]
    yield from fitting


# Rows -----------------------------------------------------------------------------------------------------------------


def outputs(name: str, found: list[np.ndarray], expected: list[np.ndarray], moved: bool, note: str = "") -> Row:
    """Row for the outputs of both models."""
    if len(found) != len(expected):
        problem = f"{len(found)} outputs against {len(expected)}"
        return compare.at_most(QUESTION, name, math.nan, GATE, note, problem)
    turned = [_turned(a, b, moved) for a, b in zip(found, expected)]
    names = [f"output {i}" if len(found) > 1 else "output" for i in range(len(found))]
    return compare.close(
        QUESTION, name, dict(zip(names, turned)), dict(zip(names, expected)), GATE, each=True, note=note
    )


def _turned(found: np.ndarray, expected: np.ndarray, moved: bool) -> np.ndarray:
    if moved and found.ndim > 2 and np.moveaxis(found, -1, 1).shape == expected.shape:
        return np.moveaxis(found, -1, 1)
    return found


def pass_rows(pair: Pair, expected: Step, found: Step) -> list[Row]:
    """Rows for the first pass: outputs, loss, modules, gradients of weights, running statistics."""
    compared = lines(pair, expected, found)
    rows = [outputs("outputs in training", found.outputs, expected.outputs, pair.moved)]
    rows.append(compare.close(QUESTION, "loss", {"loss": found.loss}, {"loss": expected.loss}, GATE))
    if compared:
        rows.append(_worst(f"outputs of {len(compared)} modules", [line.forward for line in compared]))
    if backward := [line.backward for line in compared if line.backward]:
        rows.append(_worst(f"gradients of {len(backward)} modules", backward))
    gradients = pair.named(expected.gradients, mean=True)
    ours = {name: found.gradients[name] for name in gradients}
    rows.append(each(f"gradients of {len(gradients)} weights", ours, gradients, GATE, FLOOR))
    if found.state:
        rows.append(each("running statistics", found.state, pair.named(expected.state), GATE))
    return rows


def each(
    name: str, found: Arrays, expected: Arrays, gate: float, floor: float = 0.0, noise: frozenset[str] = frozenset()
) -> Row:
    """Row for the worst of several arrays.

    - `floor`: an array smaller than this share of all together counts as that large
    - `noise`: names of arrays that count as large as all together
    """
    note = f"judged by the size of all: {', '.join(sorted(noise))}" if noise else ""
    if not expected:
        return compare.at_most(QUESTION, name, math.nan, gate, note, "no arrays")
    whole = compare.norm(expected) if not compare.mismatch(expected, expected) else 0.0

    def measure(a, b):
        return compare.relative_l2(a, b, whole if noise.issuperset(a) else floor * whole)

    return compare.close(QUESTION, name, found, expected, gate, measure=measure, each=True, note=note)


def _worst(name: str, rows: list[Row]) -> Row:
    if all(row.passed for row in rows):
        return compare.worst_of(QUESTION, name, rows)
    first = next(row for row in rows if not row.passed)
    return dataclasses.replace(compare.worst_of(QUESTION, name, rows), worst=f"first {first.name}; {first.worst}")


def first_difference(compared: list[Line], failed: list[str]) -> Line | None:
    """The first module whose output differs, or else the first on the way back whose gradient does.

    `failed`: the first row that fails. If it is the outputs or the loss, gradients differ for that reason alone.
    """
    forward = (line for line in compared if not line.forward.passed)
    backward = (line for line in reversed(compared) if line.backward and not line.backward.passed)
    after = failed in (["outputs in training"], ["loss"])
    return next(itertools.chain(forward, () if after else backward), None)
