"""The training question: does training end where the reference's does?

The trainer's compiled step takes fifty steps in float64, and the reference takes the same fifty. Recipes cover every
optimizer, momentum, weight decay, clipping, changing learning rates, networks of 8 to 64 channels, cross-entropy and
losses for rare classes. Every fifth batch is short and padded. One recipe accumulates gradients over micro-batches, as
PyTorch's users do by hand; some micro-batches of a short batch are empty. Evaluation afterwards shows what the loss
does not: running statistics, and averaged weights where a recipe has them.

The gate is 1e-12. Roundings do not grow in float64: fifty steps end 1e-16 to 1e-13 apart, and the smallest mistake
ever injected makes 1e-6. Adam with convolution biases has the gate 1e-9. The gradients of these biases are zero in
exact arithmetic, because a BatchNorm follows. Both sides return noise of 1e-17, which Adam divides by its eps, 1e-8.

Roundings do grow where a BatchNorm sees two values per channel. Its output is then plus or minus one whatever they
are, gradients through it are rounding, and Adam turns that into steps. PyTorch with reversed batches is then 1 % from
itself after fifty steps, and jaxseg is as far away. So no recipe is 1x1 at the deepest level with a batch of two.

The article's recipe begins with an epoch at a learning rate of 1e-9. Weights hardly move in it (a millionth of their
length), but running statistics and momentum do. Three rows look at the end of that epoch.

Not seen: ties and zeros (see layers), float32 (see precision and divergence), and how a run is put together from its
settings (see recipes).
"""

import dataclasses

import jax
import numpy as np
import torch

from jaxseg.base.config import Optimization
from jaxseg.nn.unet import UNet
from parity.judge import compare
from parity.judge.answer import Answer, Settings
from parity.judge.compare import Row
from parity.twins import pairs
from parity.twins.trainers import Ours, Theirs, learned, running

QUESTION = "training"
SIZES, QUICK_SIZES = (4, 4, 4, 4, 2), (3, 3, 2)  # valid samples in the batches of an epoch
EPOCHS, QUICK_EPOCHS = 10, 3
DEEP, TINY = (8, 16, 32, 64, 128), (4, 8)
STANDSTILL = 1e-6
"""Largest relative movement of the weights in an epoch at 1e-9: with momentum 0.9 at most 10 x 5 x 1e-9 x |gradient|
/ |weights|, and the gradient's norm is at most that of the weights."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Settings, network, gate and image size (height, width) of a training on both sides."""

    name: str
    optimization: Optimization
    widths: tuple[int, ...]
    gate: float = 1e-12
    upsample: str = "transpose"
    conv_bias: bool = True
    size: tuple[int, int] = (24, 16)

    def networks(self, seed: int, dtype: str) -> tuple[UNet, torch.nn.Module]:
        """jaxseg's network and the reference's, with equal weights."""
        return pairs.networks(seed, dtype, self.widths, upsample=self.upsample, conv_bias=self.conv_bias)


def settings_of(optimizer: str, learning_rate: float, **options) -> Optimization:
    """Settings with a schedule twice as long as the run, because the rates at its end move nothing."""
    return Optimization(
        optimizer=optimizer, learning_rate=learning_rate, epochs=2 * EPOCHS, warmup_epochs=1.0, **options
    )


ARTICLE = Recipe(
    "SGD, article's schedule",
    settings_of("sgd", 0.05, weight_decay=1e-2, schedule="article"),
    DEEP,
    size=(48, 32),
)
IMBALANCED = Recipe(
    "Adam with decay, clipping, Dice and cross-entropy",
    settings_of("adam", 1e-3, weight_decay=1e-2, clip_norm=0.3, loss="dice_ce"),
    (8, 16, 32),
    upsample="bilinear",
    conv_bias=False,
)
ACCUMULATED = Recipe(
    "SGD with micro-batches, averaged",
    settings_of("sgd", 0.05, weight_decay=1e-2, clip_norm=1.0, accumulate=2, ema=0.9),
    (8, 16, 32),
)
RECIPES = (
    ARTICLE,
    IMBALANCED,
    ACCUMULATED,
    Recipe("Adam", settings_of("adam", 1e-3), DEEP, gate=1e-9, size=(48, 32)),
    Recipe(
        "SGD, nesterov", settings_of("sgd", 0.05, nesterov=True), (16, 32, 64), upsample="bilinear", conv_bias=False
    ),
    Recipe(
        "RMSprop with momentum and decay",
        settings_of("rmsprop", 1e-4, weight_decay=1e-8),
        (32, 64),
        conv_bias=False,
    ),
    Recipe("AdamW, focal loss", settings_of("adamw", 1e-3, loss="focal"), (64, 128), conv_bias=False, size=(16, 16)),
)
QUICK_RECIPES = tuple(
    dataclasses.replace(recipe, widths=TINY, size=(16, 16), optimization=dataclasses.replace(o, accumulate=parts))
    for recipe, parts in ((ARTICLE, 1), (IMBALANCED, 1), (ACCUMULATED, 3))
    for o in (recipe.optimization,)
)


def run(settings: Settings) -> Answer:
    """Answers the training question.

    Evidence: {"curves": [{"name", "losses": [PyTorch's, by step], "apart": [jaxseg's minus PyTorch's]}]}.
    """
    rows, curves = [], []
    with jax.enable_x64(True):
        for recipe in QUICK_RECIPES if settings.quick else RECIPES:
            found, curve = exact_rows(recipe, settings.seed, settings.quick)
            rows += found
            curves.append(curve)
    return Answer(QUESTION, tuple(rows), {"curves": curves})


def exact_rows(recipe: Recipe, seed: int, quick: bool = False) -> tuple[list[Row], dict]:
    """Trains a recipe in float64 on both sides; returns the rows, and the losses for the evidence."""
    epochs, sizes = (QUICK_EPOCHS, QUICK_SIZES) if quick else (EPOCHS, SIZES)
    data = pairs.batches(seed, list(sizes) * epochs, *recipe.size)
    net, reference = recipe.networks(seed, "float64")
    ours, theirs = Ours(recipe.optimization, net, len(sizes)), Theirs(recipe.optimization, reference, len(sizes))
    start = theirs.weights()
    ours.start(start)

    rows, found, expected = [], [], []
    for i, batch in enumerate(data, start=1):
        found.append(ours.step(batch))
        expected.append(theirs.step(batch))
        if i == len(sizes) and recipe.optimization.schedule == "article":
            rows += standstill_rows(recipe, ours, theirs, start)

    def row(what: str, found, expected, note: str = "") -> Row:
        return compare.close(QUESTION, f"{recipe.name}: {what}", found, expected, recipe.gate, note=note)

    (values, rates), (expected_values, expected_rates) = np.transpose(found), np.transpose(expected)
    weights, expected_weights = ours.weights(), theirs.weights()
    way = compare.relative_l2(learned(expected_weights), learned(start))
    rows += [
        compare.equal_bytes(
            QUESTION,
            f"{recipe.name}: learning rates",
            rates.astype(np.float32),
            expected_rates.astype(np.float32),
            note=f"{expected_rates.min():.3g} to {expected_rates.max():.3g}, {len(set(expected_rates))} of them",
        ),
        row("losses", values, expected_values, f"{len(data)} steps, from {expected_values[0]:.3f}"),
        row("parameters", learned(weights), learned(expected_weights), f"they moved by {way:.2g} of their length"),
        row("running statistics", running(weights), running(expected_weights)),
        row("evaluation logits", ours.logits(data[0]), theirs.logits(data[0])),
    ]
    curve = {
        "name": recipe.name,
        "losses": expected_values.tolist(),
        "apart": (values - expected_values).tolist(),
    }
    return rows, curve


def standstill_rows(recipe: Recipe, ours: Ours, theirs: Theirs, start: pairs.Batch) -> list[Row]:
    """Rows after the first epoch, which has a learning rate of 1e-9."""
    found, expected = ours.weights(), theirs.weights()
    way = compare.relative_l2(running(expected), running(start))

    def name(what: str) -> str:
        return f"{recipe.name}: {what} after an epoch at 1e-9"

    return [
        compare.at_most(
            QUESTION,
            name("way of the parameters"),
            compare.relative_l2(learned(found), learned(start)),
            STANDSTILL,
            note=f"of their length; PyTorch's {compare.relative_l2(learned(expected), learned(start)):.3g}",
        ),
        compare.close(
            QUESTION,
            name("running statistics"),
            running(found),
            running(expected),
            recipe.gate,
            note=f"they moved by {way:.2g} of their length",
        ),
        compare.close(QUESTION, name("momentum"), ours.momentum(), theirs.momentum(), recipe.gate),
    ]
