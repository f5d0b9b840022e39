"""The recipes question: does a command line train as its settings say?

Other questions look at pieces that parity puts together by itself. Here jaxseg is put together as for its user: the
command line is parsed and checked, the data are opened, and `jaxseg.training.assembly.assemble` builds network,
optimizer, schedule, loss, augmentation and steps, in float64. The reference (`parity/reference/recipe.py`) reads the
same settings independently in PyTorch, and the same files by OpenCV. Five steps and a validation follow.

Recipes come from a covering array (`parity/twins/covering.py`): every two values of the settings that change a number
occur together in one. JAX's draws (augmentation, dropout, initial weights) are handed to both sides. The seed and the
step from which they come are stated independently; initial weights are tested by the law that `--init` names.

The gate is 1e-12, as in the training question. Biases of convolutions before a BatchNorm have no gradient but rounding,
1e-17 to 1e-14, which Adam, AdamW and RMSprop divide by their eps of 1e-8. So these biases move by up to 1e-6 of the
learning rate in a step, on each side differently. The network's output does not depend on them, but running means do,
and through them validation. Such a gradient is a sum over the batch's pixels, whose rounding grows about as the root
of their number: 0.07e-6 with the recipes' 3,000 pixels, up to 1.6e-6 with the 262,144 of a default run. With these
optimizers the gate of the three is 1.5e-8 times that root and the sum of the learning rates.

Not seen: float32 and bfloat16 (see precision and divergence), the law of draws (see `tests/test_augment.py`), the split
of a folder without validation files, other kinds of files.
"""

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from unittest import mock

import numpy as np

from jaxseg.base import cli
from jaxseg.base.config import Config
from jaxseg.base.terminal import quoted
from jaxseg.learn import compiled
from parity.judge import compare, laws
from parity.judge.answer import Answer, Settings
from parity.judge.compare import Row
from parity.reference import initialization
from parity.reference.files import Pair, labels_of
from parity.twins import covering, passes, recipe_files
from parity.twins.covering import Recipe
from parity.twins.quickly import QUICKLY
from parity.twins.recipes import Played, Side, play
from parity.twins.trainers import learned, running

QUESTION = "recipes"
STEPS = 5
GATE = 1e-12
NOISE = 1.5e-8
"""Most that a bias without a gradient moves, by the learning rate and the root of the batch's pixels; see above."""
ALPHA = 1e-9
"""Rate of false alarms of each test of a law."""


def run(settings: Settings) -> Answer:
    """Answers the recipes question; a quick run takes a tenth of the recipes."""
    if settings.recipe:
        chosen = [(0, covering.recipe_with(settings.recipe))]
    else:
        chosen = list(enumerate(covering.recipes(settings.seed)))
        chosen = tenth(chosen, settings.seed) if settings.quick else chosen
    return Answer(QUESTION, tuple(rows_of(chosen)))


def tenth(chosen: Sequence[tuple[int, Recipe]], seed: int) -> list[tuple[int, Recipe]]:
    """A seeded tenth of the recipes, in order."""
    numbers = np.random.default_rng(seed).permutation(len(chosen))[: -(-len(chosen) // 10)]
    return [chosen[number] for number in sorted(numbers)]


def rows_of(chosen: Iterable[tuple[int, Recipe]]) -> Iterator[Row]:
    """Rows of numbered recipes."""
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.dict(os.environ, JAXSEG_CACHE_DIR=f"{folder}/cache"),
        mock.patch.dict(compiled.KEEP_BARRIERS, QUICKLY),
    ):
        for number, recipe in chosen:
            yield from recipe_rows(f"recipe {number}", recipe, Path(folder) / str(number))


def recipe_rows(name: str, recipe: Recipe, folder: Path) -> Iterator[Row]:
    """Writes the files of a recipe into `folder`, trains both sides, and yields the rows."""
    recipe_files.make(folder, recipe["images"], recipe["masks"], recipe["sizes"])
    words = covering.command(recipe)
    config = cli.parse(["--data", str(folder), "--workers", "0", *words])
    files = pairs_in(folder, "train"), pairs_in(folder, "val")
    labels = labels_of(config.data, [mask for part in files for _, mask in part])
    note = f"{recipe['images']}, {recipe['masks']}, {recipe['sizes']}: {quoted(*words)}"
    yield from played_rows(QUESTION, name, config, play(config, files, labels, STEPS), note)


def pairs_in(folder: Path, part: str) -> list[Pair]:
    """Pairs of image and mask in the article's layout, sorted by name."""
    images = sorted((folder / part).iterdir())
    return [(image, folder / f"L{part}" / f"{image.stem}_mask.png") for image in images]


def played_rows(question: str, name: str, config: Config, played: Played, note: str) -> Iterator[Row]:
    """Rows of a run, a row for each kind of figure."""
    found, expected = played.found, played.expected
    noisy = config.model.conv_bias and not config.model.encoder and config.optimization.optimizer != "sgd"
    pixels = max(x.size for key, x in expected.batches.items() if key.endswith("masks"))
    moved = NOISE * pixels**0.5 * float(expected.rates.sum()) if noisy else GATE

    def close(what: str, a: compare.Arrays, b: compare.Arrays, gate: float = GATE, **how) -> Row:
        return compare.close(question, f"{name}: {what}", a, b, gate, note=note, **how)

    def some(side: Side, biases: bool) -> compare.Arrays:
        return {key: x for key, x in learned(side.weights).items() if (noisy and passes.canceled(key)) is biases}

    rates = (x.astype(np.float32) for x in (found.rates, expected.rates))
    yield compare.equal_bytes(question, f"{name}: batches", found.batches, expected.batches, note)
    if config.run.load is None and config.run.encoder_weights is None:
        yield start_row(question, f"{name}: initial weights", config.model.init, played.start, note)
    yield compare.equal_bytes(question, f"{name}: learning rates", *rates, note)
    yield close("losses", found.losses, expected.losses)
    yield close("parameters", some(found, biases=False), some(expected, biases=False))
    if noisy:
        what = "biases before BatchNorm"
        yield close(what, some(found, biases=True), some(expected, biases=True), moved, measure=compare.max_abs)
    yield close("running statistics", running(found.weights), running(expected.weights), moved)
    yield close("validation", found.scores, expected.scores, moved)


def start_row(question: str, name: str, init: str, weights: dict[str, np.ndarray], note: str) -> Row:
    """Row for the law of every initial weight and bias, that of `init` in PyTorch."""
    rows, pooled = [], {}
    conv, up = initialization.RULES[init]
    for key, array in weights.items():
        weight = weights[f"{key.rpartition('.')[0]}.weight"]
        if weight.ndim == 1:  # BatchNorm
            value = {"weight": 1.0, "running_var": 1.0}.get(key.rpartition(".")[2], 0.0)
            rows.append(compare.close(question, key, array, np.full_like(array, value), 0, measure=compare.max_abs))
            continue
        transposed = ".up." in key
        call = initialization.DEFAULT_BIAS if key.endswith("bias") else up if transposed else conv
        law = initialization.law(call, weight.shape)
        rows.append(laws.spread(question, key, array, law, ALPHA))
        pooled.setdefault(type(law), []).append(array.ravel() / law.sigma)
    for kind, arrays in pooled.items():
        draws = np.concatenate(arrays)
        if kind is laws.Normal:
            rows.append(laws.truncation(question, "normal weights", draws, 1.0, ALPHA))
        else:
            rows.append(laws.support(question, "uniform weights", draws, 3**0.5, ALPHA))
    return compare.worst_of(question, name, rows, note)
