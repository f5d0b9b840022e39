"""ReLUs and pooling windows in which two networks choose different branches, step by step."""

import itertools
from collections.abc import Iterable, Mapping
from unittest import mock

import jax
import numpy as np

from jaxseg.base.config import Optimization
from parity.judge import compare
from parity.twins import pairs, passes
from parity.twins.trainers import Ours, Theirs, learned


class Watched(Ours):
    """jaxseg's side with a compiled step that reports the output of every ReLU."""

    def __init__(self, settings: Optimization, net, steps_per_epoch: int):
        super().__init__(settings, net, steps_per_epoch)
        self._relus: dict[int, np.ndarray] = {}

    def step(self, batch: pairs.Batch) -> tuple[float, float]:
        """Takes one update; returns its loss and learning rate."""
        right, number = jax.nn.relu, itertools.count()

        def relu(x):
            y, key = right(x), next(number)
            jax.debug.callback(lambda y: self._relus.update({key: np.array(y)}), y)
            return y

        with mock.patch.object(jax.nn, "relu", relu):  # called while the step is traced, on the first batch
            result = super().step(batch)
        jax.effects_barrier()
        return result

    def relus(self, layers: list[str]) -> dict[str, np.ndarray]:
        """Outputs [b c h w] of the ReLUs in the last step; `layers` names all layers in the order of computation."""
        names = [layer for layer in layers if "relu" in layer]
        return {name: pairs.nchw(self._relus[i]) for i, name in enumerate(names)}


def choices(relus: Mapping[str, np.ndarray], layers: list[str]) -> dict[str, np.ndarray]:
    """Branches by layer: for a ReLU, which outputs are positive; for a pooling, the pixel (0 to 3) of each window."""
    found = {}
    for layer in layers:
        if layer in relus:
            found[layer] = relus[layer] > 0
        elif layer.endswith("max_pool"):
            x = relus[f"down.{int(layer.split('.')[1]) - 1}.relu2"]
            b, c, h, w = x.shape
            windows = x[:, :, : h // 2 * 2, : w // 2 * 2].reshape(b, c, h // 2, 2, w // 2, 2)
            found[layer] = windows.transpose(0, 1, 2, 4, 3, 5).reshape(b, c, h // 2, w // 2, 4).argmax(-1)
    return found


def log(ours: Watched, theirs: Theirs, twin: Theirs, batches: Iterable[pairs.Batch], layers: list[str]) -> dict:
    """Trains three sides on the same batches and counts the branches that differ from those of `theirs`.

    ours: jaxseg's side.
    theirs: the reference.
    twin: the reference from weights moved by one ulp.
    batches: one batch a step.
    layers: names of the layers in the order of computation.

    Returns a dict:
    "steps", "layers": numbers of the steps and names of the layers with branches;
    "distance": relative l2 of jaxseg's parameters from the reference's, after each step;
    "counts": branches that differ, a list over layers for each step;
    "first": {"step", "layer", "count"} of the first difference, or {};
    "one_ulp": {"distance", "counts", "first"} of the twin.
    """
    logs = {"jaxseg": ([], []), "one_ulp": ([], [])}
    for batch in batches:
        ours.step(batch)
        expected = choices(reference_relus(theirs, batch), layers)
        found = {
            "jaxseg": choices(ours.relus(layers), layers),
            "one_ulp": choices(reference_relus(twin, batch), layers),
        }
        for (name, (distances, counts)), side in zip(logs.items(), (ours, twin), strict=True):
            distances.append(compare.relative_l2(learned(side.weights()), learned(theirs.weights())))
            counts.append([int((found[name][layer] != choice).sum()) for layer, choice in expected.items()])

    watched = list(expected)
    both = {
        name: {"distance": distances, "counts": counts, "first": first(watched, counts)}
        for name, (distances, counts) in logs.items()
    }
    steps = list(range(1, len(both["jaxseg"]["counts"]) + 1))
    return {"steps": steps, "layers": watched, "one_ulp": both["one_ulp"]} | both["jaxseg"]


def reference_relus(theirs: Theirs, batch: pairs.Batch) -> dict[str, np.ndarray]:
    """Takes one update of the reference; returns the outputs [b c h w] of its ReLUs."""
    with passes.watching(theirs.model) as outputs:
        theirs.step(batch)
    return {name: pairs.array(x) for name, x in outputs.items() if "relu" in name}


def first(layers: list[str], counts: list[list[int]]) -> dict:
    """First step and layer with a count, and that count; {} if there is none."""
    for step, row in enumerate(counts, start=1):
        for layer, count in zip(layers, row, strict=True):
            if count:
                return {"step": step, "layer": layer, "count": count}
    return {}


def growths(log: Mapping) -> tuple[dict[int, float], dict[int, float]]:
    """Growth factors of the distance by step, from the second on: steps with branches that differ, steps without."""
    distances, totals = log["distance"], [sum(row) for row in log["counts"]]
    steps = {i + 1: distances[i] / distances[i - 1] for i in range(1, len(distances)) if distances[i - 1]}
    return {s: g for s, g in steps.items() if totals[s - 1]}, {s: g for s, g in steps.items() if not totals[s - 1]}
