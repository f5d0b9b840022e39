"""Training step by step in float64: losses, weights, state of the optimizer, running statistics, evaluation."""

import dataclasses
import itertools

import numpy as np

from parity.certificate import layers
from parity.certificate.layers import QUESTION, each
from parity.certificate.ours import Ours
from parity.certificate.pair import Batch, Pair
from parity.certificate.theirs import Step, Theirs
from parity.judge import compare
from parity.judge.compare import Row

GATE = 1e-9
"""Relative l2 of each array in float64 after all steps; roundings grow from 1e-16 with the steps."""


@dataclasses.dataclass(frozen=True)
class Run:
    """Steps of one side; those after the first have no modules, and only those of `looks` have weights.

    Evaluation comes after the last step.
    """

    steps: list[Step]
    evaluated: list

    @property
    def losses(self) -> list[float]:
        """Loss of each step."""
        return [step.loss for step in self.steps]


def run(side: Theirs | Ours, batches: list[Batch], steps: int) -> Run:
    """Trains a side, which has been started, on batches in turn."""
    found: list[Step] = []
    for i, batch in enumerate(itertools.islice(itertools.cycle(batches), steps), 1):
        step = side.step(*batch)
        slim = {"layers": {}, "layer_gradients": {}, "outputs": [], "gradients": {}} if found else {}
        if i not in looks(steps, sum(x.size for x in step.params.values())):
            slim |= {"params": {}, "moments": {}}
        found.append(dataclasses.replace(step, **slim))
    return Run(found, side.evaluate(batches[0][0]))


def looks(steps: int, size: int) -> set[int]:
    """Steps whose weights are kept, the first and the last among them: as many as take a quarter of a GiB.

    `size`: number of weights
    """
    return set(np.linspace(1, steps, max(2, min(steps, 2**28 // (24 * max(size, 1))))).round().astype(int).tolist())


def rows(pair: Pair, expected: Run, found: Run) -> list[Row]:
    """Rows of a run: the first pass, then training, then evaluation."""
    out = layers.pass_rows(pair, expected.steps[0], found.steps[0])
    trained, noise = pair.optimizers[0] is not None, without_gradient(pair, expected.steps[0])
    if trained:
        last = len(expected.steps)
        for step in dict.fromkeys((1, last)):
            a, b = found.steps[step - 1], expected.steps[step - 1]
            after = f"after step {step}" if step == 1 else f"after {step} steps"
            out.append(parameters(pair, f"weights {after}", a, b, noise))
            if b.moments and a.moments:
                out.append(state(pair, f"optimizer's state {after}", a, b))
        series = [{f"step {i}": loss for i, loss in enumerate(side.losses, 1)} for side in (found, expected)]
        out.append(compare.close(QUESTION, f"losses of {last} steps", *series, GATE, each=True))
        if found.steps[-1].state and last > 1:
            statistics = pair.named(expected.steps[-1].state)
            out.append(each(f"running statistics after {last} steps", found.steps[-1].state, statistics, GATE))
    name = f"outputs in evaluation, after {len(expected.steps)} steps" if trained else "outputs in evaluation"
    out.append(dataclasses.replace(layers.outputs(name, found.evaluated, expected.evaluated, pair.moved), gate=GATE))
    return [dataclasses.replace(row, passed=row.figure <= row.gate) for row in out]


def parameters(pair: Pair, name: str, found: Step, expected: Step, noise: frozenset[str] = frozenset()) -> Row:
    """Row for the weights after a step; weights that are nearly 0 are judged by the size of all."""
    weights = pair.named(expected.params)
    return each(name, {key: found.params[key] for key in weights}, weights, GATE, 1e-3, noise)


def without_gradient(pair: Pair, first: Step) -> frozenset[str]:
    """Weights whose gradient is noise about 0, such as a bias before a BatchNorm: Adam turns the noise into steps."""
    gradients = pair.named(first.gradients, mean=True)
    whole = compare.norm(gradients)
    return frozenset(name for name, gradient in gradients.items() if compare.norm(gradient) < 1e-12 * whole)


def state(pair: Pair, name: str, found: Step, expected: Step) -> Row:
    """Row for the moments that both optimizers keep."""
    ours, theirs = {}, {}
    for kind, arrays in expected.moments.items():
        kept = found.moments.get(kind if kind != "square_avg" else "exp_avg_sq", {})
        for key, array in pair.named(arrays, mean=True).items():
            if key in kept:
                ours[f"{kind} of {key}"], theirs[f"{kind} of {key}"] = kept[key], array
    return each(name, ours, theirs, GATE, 1e-6)
