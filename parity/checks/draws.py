"""Independence of all draws of a training step, a part of the augmentation question (`parity/checks/augmentation.py`).

Two views. The draws that show in the results are compared in pairs. And in a step with everything turned on, a
generator that notes its keys tells which are used twice: exact, and for draws that no result shows.
"""

from collections import Counter
from collections.abc import Iterable
from functools import partial
from unittest import mock

import jax
import numpy as np
import optax
from flax import nnx

from jaxseg.base.config import Augmentation
from jaxseg.learn import augment, step
from jaxseg.nn.unet import UNet
from parity.judge import compare, laws
from parity.judge.compare import Row
from parity.twins import keys
from parity.twins.quickly import QUICKLY
from parity.twins.seen import changing, probe, seen

QUESTION = "augmentation"
SAMPLES = 128
RUNS = ((0, 0), (0, 1), (1, 1), (1, 0))  # seed and step: neighbors differ in one
FAINT = 1e-5  # noise that hides no other draw
LIGHT = {"contrast": 0.4, "brightness": 0.2, "noise": FAINT}
TOGETHER = {"light": LIGHT, "zoom": {"zoom": 1.0}, "blur": {"blur": 1.5}}
EVERYTHING = Augmentation(zoom=0.5, brightness=0.2, contrast=0.2, noise=0.1, blur=0.5)
PARTS, BATCH = 2, 4
PER_SAMPLE = 9
"""Draws with a number for each sample: flip, turn, scale, place, blur, contrast, brightness, noise, its deviation."""


def rows(seed: int, alpha: float) -> Iterable[Row]:
    """Rows for draws that show, and for the keys of a step."""
    for name, settings in TOGETHER.items():
        signs = shown(seed, settings)
        note = f"{', '.join(signs)}; in pairs, in steps and seeds"
        yield laws.independent(QUESTION, f"draws of a step, flips and {name}", signs, alpha, note)
        halves = {
            f"{draw}, {which}": x[:, start::2]
            for draw, x in signs.items()
            for start, which in ((0, "one"), (1, "next"))
        }
        yield laws.independent(QUESTION, f"draws of neighbors in a batch, flips and {name}", halves, alpha)
    yield from key_rows(seed)


def shown(seed: int, settings: dict[str, float]) -> dict[str, np.ndarray]:
    """Draws [runs samples] by name, moved so that each has a median of 0."""
    found: dict[str, list[np.ndarray]] = {}
    rng = np.random.default_rng(seed)
    before = {name: np.repeat(x, SAMPLES, 0).astype(x.dtype) for name, x in probe(rng, 1, 12, 12).items()}
    before["image"] = before["image"].astype(np.float32)
    change = changing(Augmentation(**settings))
    for offset, number in RUNS:
        after = change(before, seed + offset, number)
        what = seen(before, after)
        drawn = {"flip": what.flip - 0.5, "half turn": (what.turn >= 2) - 0.5, "quarter turn": what.turn % 2 - 0.5}
        if "zoom" in settings:
            middle = np.nan_to_num(what.place, nan=0.5) - 0.5  # hardly zoomed: no place to see
            drawn |= {"scale": np.log(np.nan_to_num(what.scale, nan=0.5)), "row": middle[:, 0], "column": middle[:, 1]}
        if "blur" in settings:
            drawn["blur"] = blurring(after["image"]) - settings["blur"] / 2
        if "contrast" in settings:
            drawn |= light(before["image"], after["image"])
        for name, x in drawn.items():
            found.setdefault(name, []).append(x)
    return {name: np.stack(x) for name, x in found.items()}


def light(old: np.ndarray, new: np.ndarray) -> dict[str, np.ndarray]:
    """Contrast from the range of a ramp, brightness from the mean, and noise from what is left of channel 2."""
    factor = np.ptp(new[..., 0], axis=(1, 2)) / np.ptp(old[..., 0], axis=(1, 2))
    added = new.mean((1, 2, 3), dtype=np.float64) - old.mean((1, 2, 3), dtype=np.float64)
    rest = new[..., 2].astype(np.float64)
    rest -= rest.mean((1, 2), keepdims=True)
    deviation = rest.std((1, 2)) / FAINT - 0.5
    return {"contrast": factor - 1, "brightness": added, "deviation": deviation, "noise": rest[:, 5, 5]}


def blurring(new: np.ndarray) -> np.ndarray:
    """Deviation of the blur from the largest value of the point and that of its neighbors."""
    largest = np.sort(new[..., 3].reshape(len(new), -1))
    with np.errstate(divide="ignore"):
        return np.sqrt(0.5 / np.log(largest[:, -1] / np.maximum(largest[:, -3], 1e-30)))


# Keys -----------------------------------------------------------------------------------------------------------------


def key_rows(seed: int) -> Iterable[Row]:
    """Rows for the keys of two steps with dropout, micro-batches and all augmentation.

    That the network drops by the key which it is given is asked by the model question.
    """
    with mock.patch.object(jax.random, "key", partial(jax.random.key, impl=keys.impl())):
        steps = noted_steps(seed)
    drawn = [Counter(key for key, _ in notes.drawn) for notes in steps]
    twice = [key for counts in drawn for key, count in counts.items() if count > 1]
    note = f"{sum(len(counts) for counts in drawn)} keys"
    yield compare.at_most(QUESTION, "keys from which a step draws twice", len(twice), 0, note, f"{twice}")
    both = [key for counts, notes in zip(drawn, steps) for key in counts if key in notes.derived]
    yield compare.at_most(QUESTION, "keys from which a step draws and makes others", len(both), 0, note, f"{both}")
    shared = sorted(set(drawn[0]) & set(drawn[1]))
    yield compare.at_most(QUESTION, "keys from which two steps draw", len(shared), 0, note, f"{shared}")
    missing = 0
    for notes in steps:
        missing += max(PER_SAMPLE - sum(shape[:1] == (BATCH,) for _, shape in notes.drawn), 0)
        missing += max(PARTS - sum(shape[:1] == (BATCH // PARTS,) for _, shape in notes.drawn), 0)
    note = f"{PER_SAMPLE} for each sample, and dropout for each of {PARTS} micro-batches"
    yield compare.at_most(QUESTION, "draws that a step lacks", missing, 0, note)
    made = {(s, n): tuple(jax.random.key_data(step.step_key(s, n)).tolist()) for s in range(4) for n in range(16)}
    same = len(made) - len(set(made.values()))
    yield compare.at_most(QUESTION, "keys that two steps or seeds share", same, 0, f"{len(made)} keys")


class Dropping(UNet):
    """A network with dropout and little else, which compiles fast."""

    def __init__(self):
        self.dropout, self.head = nnx.Dropout(0.5), nnx.Linear(3, 2, rngs=nnx.Rngs(0))

    def __call__(self, x, valid, key):
        """Logits."""
        return self.head(self.dropout(x, rngs=key))


def noted_steps(seed: int) -> list[keys.Notes]:
    """What two training steps noted."""
    net = Dropping()
    optimizer = nnx.Optimizer(net, optax.sgd(0.1), wrt=nnx.Param)
    how = {"schedule": optax.constant_schedule(0.1), "accumulate": PARTS, "seed": seed}
    change = augment.augment_from(EVERYTHING, step.unit)
    graph, state = nnx.split((net, optimizer))

    @partial(jax.jit, compiler_options=QUICKLY)
    def train(state, batch):
        net, optimizer = nnx.merge(graph, state)
        seen = step.train_step(net, optimizer, batch, augment=change, **how)
        return nnx.state((net, optimizer)), seen["loss"]

    rng = np.random.default_rng(seed)
    batch = {
        "image": rng.integers(0, 256, (BATCH, 8, 8, 3)).astype(np.uint8),
        "mask": rng.integers(0, 2, (BATCH, 8, 8)).astype(np.uint8),
        "valid": np.ones(BATCH, bool),
    }
    steps = []
    for _ in range(2):
        notes = keys.noted()
        state, loss = train(state, batch)
        jax.block_until_ready(loss)
        jax.effects_barrier()
        steps.append(keys.Notes(list(notes.drawn), list(notes.derived)))
    return steps
