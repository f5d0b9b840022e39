"""The divergence question: in float32, does jaxseg stay as close to PyTorch as PyTorch stays to itself?

Roundings grow in float32, and over fifty steps no fixed tolerance has a meaning. Changes to the reference that should
not matter move it as far: samples in another order, one weight moved by one ulp, channels_last, another number of
threads. So the figure is a ratio, jaxseg's distance from the reference over the largest distance of the reference from
itself, and the gate is 3. A run repeated without any change ends on the same bits on both sides; a row shows that.

Distances do not grow smoothly. Where the two sides take different branches of a ReLU or a pooling window, gradients
are off by a thousandth, where rounding makes a millionth, and the distance jumps. So there are three kinds of rows:

- After all steps: the largest distance over several seeds, on both sides, because jumps come at different steps.
- After the first update: the median over several batches, before any jump. This is the sharpest test. A gradient that
  is wrong by 1e-4 shows here, and fifty steps would hide it. channels_last is no baseline here: on a CPU PyTorch's
  BatchNorm has variances 1e-4 off in that layout, a hundred times more than any other change makes.
- Branches: a log of the step and layer where the two sides first differ. In a step without a differing branch the
  distance must not grow tenfold (momentum alone at most doubles it).

The same recipe in float64 does not diverge; its gate is 1e-12 as in the training question.

Not seen: which side is nearer to the truth (see precision), and wrong formulas that change results by less than
float32 rounds (see model and training, which use float64).
"""

import copy
import dataclasses
import itertools
import math
from collections.abc import Mapping

import jax
import numpy as np

from jaxseg.base.config import Optimization
from parity.checks.training import DEEP, TINY, Recipe
from parity.judge import compare
from parity.judge.answer import Answer, Settings
from parity.judge.compare import Row
from parity.twins import branches, pairs, passes
from parity.twins.trainers import Ours, Theirs, learned, running
from parity.twins.variations import VARIATIONS, Weights

QUESTION = "divergence"
QUANTITIES = ("parameters", "running statistics", "evaluation logits")
GATE, GROWTH = 3.0, 10.0


@dataclasses.dataclass(frozen=True)
class Form:
    """Recipes and numbers of steps and batches."""

    recipes: tuple[Recipe, ...]
    """Recipes; the branches of the first are logged."""
    steps: int
    every: int
    """Steps between two measurements; the first step is always measured."""
    batch: int
    """Samples in a batch."""
    batches: int
    """Number of batches: each alone for the first update, then all in turn."""
    threads: tuple[str, ...]
    """Names of the recipes that vary the number of threads too, which is slow on a busy machine."""

    @property
    def looks(self) -> list[int]:
        """Steps after which distances are measured."""
        return sorted({1, *range(self.every, self.steps + 1, self.every)})


def recipe(name: str, optimizer: str, learning_rate: float, widths: tuple[int, ...], side: int) -> Recipe:
    """A recipe at a constant rate, without convolution biases, whose gradients are noise."""
    optimization = Optimization(optimizer=optimizer, learning_rate=learning_rate, schedule="constant", epochs=1)
    return Recipe(name, optimization, widths, conv_bias=False, size=(side, side))


FULL = Form(
    (
        recipe("SGD", "sgd", 0.01, DEEP, 64),
        recipe("SGD at 0.2", "sgd", 0.2, DEEP, 64),
        recipe("Adam", "adam", 1e-3, DEEP, 64),
    ),
    steps=50,
    every=5,
    batch=2,
    batches=9,
    threads=("SGD",),
)
QUICK = Form(
    (recipe("SGD", "sgd", 0.05, TINY, 16), recipe("Adam", "adam", 1e-3, TINY, 16)),
    steps=10,
    every=2,
    batch=2,
    batches=9,
    threads=(),
)


def run(settings: Settings) -> Answer:
    """Answers the divergence question on the CPU.

    Evidence:

    - "recipes": [{"name", "steps", "jaxseg", "variations", "ratio", "others"}]. "jaxseg" has the distances of the
      parameters, a list over steps for each seed; "variations" has such lists by name. "ratio" is that of each seed
      after all steps. "others" is {quantity: {"jaxseg", "variations"}}. A name that ends in "float64" has one seed
    - "flips": the log of branches (see `branches.log`); "one_ulp" compares PyTorch with itself, one weight moved

    Distances are relative l2 from PyTorch; "argmax flips" is the share of pixels with another predicted class.
    """
    return Answer(QUESTION, *measure(settings, "cpu"))


def measure(
    settings: Settings, device: str, question: str = QUESTION, allowed: Mapping[str, float] | None = None
) -> tuple[tuple[Row, ...], dict]:
    """Rows and evidence with both frameworks on one device.

    device: "cpu" or "gpu".
    question: that the rows belong to.
    allowed: distances of the first update by name that are as acceptable as PyTorch's from itself.
    """
    form = QUICK if settings.quick else FULL
    seeds = range(settings.seed, settings.seed + (1 if settings.quick else settings.seeds))
    allowed, rows, recipes = allowed or {}, [], []
    with jax.default_device(jax.devices(device)[0]):
        with jax.enable_x64(False):
            for i, each in enumerate(form.recipes):
                sides = Sides(each, form, seeds[0], "float32", device, watched=i == 0)
                found = trajectories(sides, seeds)
                rows += recipe_rows(question, sides, found, allowed)
                recipes.append(evidence(each.name, form, found))
                if i == 0:
                    flips = branch_log(sides, seeds[0])
                    rows.append(branch_row(question, each, flips))
        if not settings.quick:
            with jax.enable_x64(True):
                name = f"{form.recipes[0].name}, float64"
                sides = Sides(form.recipes[0], form, seeds[0], "float64", device)
                found = trajectories(sides, seeds[:1])
            recipes.append(evidence(name, form, found))
            far = found.jaxseg["parameters"][0][-1]
            rows.append(compare.at_most(question, f"{name}: parameters after {form.steps} steps", far, 1e-12))
    return tuple(rows), {"recipes": recipes, "flips": flips}


# Both sides, and variations of PyTorch --------------------------------------------------------------------------------


class Sides:
    """jaxseg and the reference for a recipe; each trains from any weights on any batches."""

    def __init__(self, recipe: Recipe, form: Form, seed: int, dtype: str, device: str, watched: bool = False):
        self.recipe, self.form, self.dtype, self.device = recipe, form, dtype, device
        net, reference = recipe.networks(seed, dtype)
        reference.to("cuda" if device == "gpu" else "cpu")
        self.layers = list(passes.layer_names(reference))
        self.theirs = Theirs(recipe.optimization, reference, form.steps)
        make = branches.Watched if watched else Ours
        self.ours = make(recipe.optimization, net, form.steps)
        threads = device == "cpu" and recipe.name in form.threads
        self.variations = {name: vary for name, vary in VARIATIONS.items() if threads or name != "threads"}

    def begin(self, seed: int) -> tuple[Weights, list[pairs.Batch], pairs.Batch]:
        """Weights, batches, and a batch for evaluation, all of `seed`."""
        _, reference = self.recipe.networks(seed, self.dtype)
        *data, held_out = pairs.batches(seed, [self.form.batch] * (self.form.batches + 1), *self.recipe.size)
        return pairs.arrays(reference.state_dict()), data, held_out


# Distances ------------------------------------------------------------------------------------------------------------

Snapshot = Mapping[str, Mapping[str, np.ndarray]]
Curves = dict[str, list[list[float]]]
"""Distances of each quantity: for each seed, at each measured step."""


@dataclasses.dataclass
class Found:
    """Distances from training with several seeds."""

    jaxseg: Curves
    variations: dict[str, Curves]
    first: dict[str, list[float]]
    """Distances of the first update for each batch, by "jaxseg" and names of variations."""
    again: dict[str, tuple[Snapshot, Snapshot]]
    """Last snapshots of the first seed's run and of its repetition, by "jaxseg" and "PyTorch"."""


def trajectories(sides: Sides, seeds: range) -> Found:
    """Trains both sides, and the reference with each variation, from every seed."""
    form, names = sides.form, (*QUANTITIES, "argmax flips")
    jaxseg, variations = ({name: [] for name in names}), {}
    first = {"jaxseg": []} | {name: [] for name in sides.variations}
    again = {}

    def note(curves: Curves, found: list[Snapshot], expected: list[Snapshot]) -> None:
        for name in names:
            curves.setdefault(name, []).append([distance(name, a, b) for a, b in zip(found, expected, strict=True)])

    for seed in seeds:
        weights, data, held_out = sides.begin(seed)
        expected, found = (trajectory(side, form, weights, data, held_out) for side in (sides.theirs, sides.ours))
        note(jaxseg, found, expected)
        for name, vary in sides.variations.items():
            with vary(sides.theirs, weights, data) as changed:
                note(variations.setdefault(name, {}), trajectory(sides.theirs, form, *changed, held_out), expected)
        if seed == seeds[0]:
            once_more = (trajectory(side, form, weights, data, held_out) for side in (sides.ours, sides.theirs))
            again = {name: (a[-1], b[-1]) for name, a, b in zip(("jaxseg", "PyTorch"), (found, expected), once_more)}
            for name, distances in first_steps(sides, weights, data).items():
                first[name] += distances
    return Found(jaxseg, variations, first, again)


def trajectory(
    side: Ours | Theirs, form: Form, weights: Weights, data: list[pairs.Batch], held_out: pairs.Batch
) -> list[Snapshot]:
    """Trains a side from `weights` on `data` in turn; returns a snapshot at each measured step."""
    side.start(weights)
    found = []
    for step, batch in zip(range(1, form.steps + 1), itertools.cycle(data)):
        side.step(batch)
        if step in form.looks:
            after = side.weights()
            found.append(dict(zip(QUANTITIES, (learned(after), running(after), {"logits": side.logits(held_out)}))))
    return found


def distance(quantity: str, found: Snapshot, expected: Snapshot) -> float:
    """Relative l2 distance, or for "argmax flips" the share of pixels with another class."""
    if quantity == "argmax flips":
        classes = (snapshot["evaluation logits"]["logits"].argmax(1) for snapshot in (found, expected))
        return float(np.not_equal(*classes).mean())
    return compare.relative_l2(found[quantity], expected[quantity])


def first_steps(sides: Sides, weights: Weights, data: list[pairs.Batch]) -> dict[str, list[float]]:
    """Distances of the first update, for each batch alone from the same weights."""

    def updates(side, weights: Weights, data: list[pairs.Batch]) -> list[Weights]:
        found = []
        for batch in data:
            side.start(weights)
            side.step(batch)
            found.append({name: after - weights[name] for name, after in learned(side.weights()).items()})
        return found

    expected = updates(sides.theirs, weights, data)
    found = {"jaxseg": updates(sides.ours, weights, data)}
    for name, vary in sides.variations.items():
        with vary(sides.theirs, weights, data) as changed:
            found[name] = updates(sides.theirs, *changed)
    return {name: [compare.relative_l2(*pair) for pair in zip(ups, expected)] for name, ups in found.items()}


def recipe_rows(question: str, sides: Sides, found: Found, allowed: Mapping[str, float]) -> list[Row]:
    """Rows for the first update, for all steps, and for a repetition of the run."""
    name, steps = sides.recipe.name, sides.form.steps
    # NumPy's median and max, because Python's ignore a NaN
    medians = {key: float(np.median(distances)) for key, distances in found.first.items()}
    rough = medians.pop("channels_last", math.nan)
    note = f"median of {sides.form.batches} batches, over PyTorch's distance from itself; channels_last: {rough:.3g}"
    rows = [
        compare.envelope(
            question,
            f"{name}: first update",
            medians.pop("jaxseg"),
            medians | allowed,
            GATE,
            note,
        )
    ]
    for quantity in QUANTITIES:
        ratios = _ratios(found, quantity)
        note = f"over PyTorch's distance from itself; {_spread(ratios)}"
        if quantity == "evaluation logits":
            flips = float(np.max([curve[-1] for curve in found.jaxseg["argmax flips"]]))
            theirs = max(float(np.max([c[-1] for c in curves["argmax flips"]])) for curves in found.variations.values())
            note += f"; {flips:.1e} of the pixels change class (PyTorch's own: {theirs:.1e})"
        largest = {key: _largest(curves[quantity]) for key, curves in found.variations.items()}
        rows.append(
            compare.envelope(
                question,
                f"{name}: {quantity} after {steps} steps",
                _largest(found.jaxseg[quantity]),
                largest,
                GATE,
                note,
            )
        )
    for side, (once, twice) in found.again.items() if sides.device == "cpu" else ():
        flat = ({f"{q}: {key}": x for q in QUANTITIES for key, x in end[q].items()} for end in (twice, once))
        rows.append(compare.equal_bytes(question, f"{name}: {side} again", *flat, note=f"{steps} steps, the same bits"))
    return rows


def _largest(curves: list[list[float]]) -> float:
    return float(np.max([curve[-1] for curve in curves]))


def _ratios(found: Found, quantity: str) -> list[float]:
    """jaxseg's distance after all steps over the largest of PyTorch's from itself, for each seed."""
    ends = np.array([[curve[-1] for curve in curves[quantity]] for curves in found.variations.values()])
    ours = np.array([curve[-1] for curve in found.jaxseg[quantity]])
    return (ours / ends.max(0)).tolist()


def _spread(ratios: list[float]) -> str:
    if len(ratios) == 1:
        return "one seed"
    return f"seed by seed {np.median(ratios):.2g} ({np.min(ratios):.2g} to {np.max(ratios):.2g}, {len(ratios)} seeds)"


def evidence(name: str, form: Form, found: Found) -> dict:
    """Evidence of a recipe for `run`."""

    def curves(quantity: str) -> dict:
        variations = {key: curves[quantity] for key, curves in found.variations.items()}
        return {"jaxseg": found.jaxseg[quantity], "variations": variations}

    others = {quantity: curves(quantity) for quantity in (*QUANTITIES[1:], "argmax flips")}
    ratio = _ratios(found, "parameters")
    return {"name": name, "steps": form.looks} | curves("parameters") | {"ratio": ratio, "others": others}


# Branches -------------------------------------------------------------------------------------------------------------


def branch_log(sides: Sides, seed: int) -> dict:
    """Log of branches in the run of `seed`: jaxseg, PyTorch, and PyTorch with one weight moved (see `branches.log`)."""
    weights, data, _ = sides.begin(seed)
    twin = Theirs(sides.recipe.optimization, copy.deepcopy(sides.theirs.model), sides.form.steps)
    with VARIATIONS["one ulp"](twin, weights, data) as (moved, _):
        for side, start in ((sides.ours, weights), (sides.theirs, weights), (twin, moved)):
            side.start(start)
    steps = itertools.islice(itertools.cycle(data), sides.form.steps)
    return branches.log(sides.ours, sides.theirs, twin, steps, sides.layers)


def branch_row(question: str, recipe: Recipe, flips: Mapping) -> Row:
    """Row that passes if the distance, to jaxseg and to PyTorch's twin, jumps only where a branch differs."""
    told, quiet = [], []
    for who, log in (("jaxseg", flips), ("PyTorch an ulp away", flips["one_ulp"])):
        loud, silent = branches.growths(log)
        quiet += silent.values()
        first = log["first"]
        where = f"first at step {first['step']} in {first['layer']}" if first else "none"
        jump = max(loud, key=loud.__getitem__, default=0)
        told.append(
            f"{who}: {sum(map(sum, log['counts']))} branches differ, {where}"
            + (f"; largest jump with one x{loud[jump]:.3g} at step {jump}" if jump else "")
        )
    return compare.at_most(
        question,
        f"{recipe.name}: growth of the distance in a step without a branch that differs",
        float(np.max(quiet, initial=0.0)),
        GROWTH,
        "; ".join(told),
    )
