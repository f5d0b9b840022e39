"""The devices question: is a run on several devices, in one or several processes, the run on one?

Each batch is divided over the devices. BatchNorm, loss, gradient, clipping, hard examples and scores are those of the
whole batch, and a sample's augmentation and dropout follow from its place in it. So a run differs from that on one
device by rounding alone. Runs are jaxseg's own assembly in float64, 20 steps with a short last batch in every epoch,
and a validation. Batches are of 6, and micro-batches of 3, which 4 and 8 devices do not divide, so there is padding.
More devices than cores change how XLA divides its sums, so those runs have processes of their own.

The networks have no biases before BatchNorm, which rounding would move (see recipes).

Not seen: float32, GPUs, processes on several machines.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import jax

from jaxseg.devices.mesh import Devices
from jaxseg.learn import compiled
from parity.judge import compare
from parity.judge.answer import Answer, Settings
from parity.judge.compare import Row
from parity.twins import devices, recipe_files
from parity.twins.quickly import QUICKLY

QUESTION = "devices"
STEPS = {False: 20, True: 3}
"""Steps of the full and of the quick form."""
GATE = 1e-12
BASE = "--widths 4 6 --no-conv-bias -b 6 --epochs 10 --lr 0.01"
CHANGES = "--zoom 0.3 --blur 0.5 --contrast 0.2 --brightness 0.1 --noise 0.1"
RECIPES = {
    "cross-entropy": f"{CHANGES} --dropout 0.3 --clip-norm 0.5 --ema 0.9 --class-weights sqrt --label-smoothing 0.1",
    "accumulation": f"--accumulate 2 {CHANGES} --dropout 0.3 --remat --loss dice_ce --optimizer sgd --lr 0.1",
    "lovasz": "--loss lovasz --class-weights sqrt",
    "hard examples": "--ohem 0.3",
    "dice": "--loss dice --accumulate 3",
    "focal": "--loss focal --crop 12 --crops 2",
    "hinge": "--loss hinge --cache device",
    "jaccard": "--loss jaccard --upsample bilinear",
    "mse": "--loss mse --accumulate 6",
    "tversky": "--loss tversky --tversky-alpha 0.3 --optimizer adamw",
}
QUICK = ("cross-entropy", "accumulation", "lovasz", "hard examples")
PROCESSES = {"cross-entropy": ((2, 1), (4, 2)), "accumulation": ((2, 2),)}
"""Processes, and devices of each, on which a recipe is run in the full form, beside one process with 4 and with 8."""


def run(settings: Settings) -> Answer:
    """Answers the devices question."""
    there = jax.devices("cpu")
    if len(there) < 2:
        return Answer(QUESTION, (), not_run="one CPU device; set jax_num_cpu_devices to 2 before JAX starts")
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(compiled.KEEP_BARRIERS, QUICKLY):
        return Answer(QUESTION, tuple(rows(settings, Path(folder), there)))


def rows(settings: Settings, folder: Path, there: list[jax.Device]) -> Iterator[Row]:
    """Rows of all recipes."""
    recipe_files.make(folder, "uint8 color", "numbers", "square", settings.seed)
    most = STEPS[settings.quick]
    for name in settings.recipe or (QUICK if settings.quick else RECIPES):
        words = ["--data", str(folder), "--seed", str(settings.seed), *f"{BASE} {RECIPES[name]}".split()]
        expected = devices.train(words, Devices.of(there[:1]), most)
        yield from compared(f"{name}: 2 devices", devices.train(words, Devices.of(there[:2]), most), expected)
        for processes, each in () if settings.quick else ((1, 4), (1, 8), *PROCESSES.get(name, ())):
            found = devices.train_in_processes(words, processes, each, most)
            several = f"{processes} processes of {each}" if processes > 1 else f"{each} devices"
            yield from compared(f"{name}: {several}", found, expected)


def compared(name: str, found: dict, expected: dict) -> Iterator[Row]:
    """Rows of a run."""
    for what in ("losses", "weights", "validation"):
        yield compare.close(QUESTION, f"{name}: {what}", found[what], expected[what], GATE)
    yield compare.equal_bytes(QUESTION, f"{name}: confusion", found["confusion"], expected["confusion"])
