"""Both sides of a whole run: jaxseg's own assembly in float64, and the reference's reading of the same settings.

jaxseg's side is what `python -m jaxseg.train` does: settings, `open_data`, `assemble`, compiled steps. What is random
by JAX is drawn here from the keys that the settings state, by jaxseg's functions, and handed to the reference.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg.base.config import Augmentation, Config
from jaxseg.base.terminal import console
from jaxseg.data.feed.pipeline import Batch
from jaxseg.learn import augment
from jaxseg.nn.torch_weights import to_torch
from jaxseg.training import assembly, dataset, loop, steps
from parity.reference import resnet
from parity.reference.augmentation import Draws
from parity.reference.files import Labels, Pair
from parity.reference.recipe import Recipe
from parity.twins import pairs

CHANGES = ("zoom", "blur", "contrast", "brightness", "noise")
"""Changes of the augmentation in order. The number of a change, among those asked for and from 2 on, is folded into its
key."""
DROPOUT = 2**31
"""Folded into a step's key for dropout."""

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Side:
    """What one side of a run computed."""

    batches: Arrays
    """Images, masks and number of samples of each step's batch, as read and cropped."""
    rates: np.ndarray
    losses: np.ndarray
    weights: Arrays
    """Parameters and running statistics after the last step, by PyTorch's names."""
    scores: Arrays
    """Of the validation; a score that is 0 / 0 is -1."""


@dataclasses.dataclass(frozen=True)
class Played:
    """Both sides of a run, and the weights with which both began, by PyTorch's names."""

    start: Arrays
    found: Side
    expected: Side


def play(config: Config, files: tuple[Sequence[Pair], Sequence[Pair]], labels: Labels, most: int) -> Played:
    """Takes the first `most` steps of a run on both sides, and evaluates them.

    config: checked settings.
    files: pairs for training and for validation.
    labels: of the masks.
    """
    with jax.enable_x64(True), console.capture():
        ours = assembly.assemble(config, dataset.open_data(config), load=config.run, dtype=jnp.float64)
        return side_by_side(config, ours, Recipe(config, *files, labels), most)


def side_by_side(
    config: Config, ours: assembly.Assembly, theirs: Recipe, most: int, batches: int | None = None
) -> Played:
    """Takes `most` steps on both sides, then evaluates the first `batches` batches of validation, or all.

    config: checked settings.
    ours, theirs: what both sides made of them. x64 must be on.
    """
    start, plan, o = to_torch(ours.net), ours.plan, config.optimization
    theirs.start(start)
    read, found, expected, plateau = ({}, {}), [], [], None
    for epoch in range(plan.epochs):
        first, end = epoch * plan.epoch_steps, min(plan.end(epoch), most)
        for step, batch in zip(range(first, end), ours.training.epoch(epoch)):
            raw = theirs.batch(epoch, step - first)
            note(read, step, batch, raw)
            record = jax.device_get(ours.step(epoch)(jax.device_put(batch)))
            found.append((record["loss"], record["learning_rate"]))
            expected.append(theirs.step(raw, *draws(config, step, batch)))
        if end == most:
            break
        if o.schedule == "plateau":
            scores = steps.evaluate(ours.eval_step, ours.validation, epoch)
            plateau = loop.watch_plateau(o, plateau, {"validation": scores}, ours.optimizer)
            theirs.end_epoch(float(theirs.validate()["miou"]))
    scores = steps.evaluate(ours.eval_step, ours.validation, epoch, batches)
    their_scores = theirs.validate(batches)
    (losses, rates), (their_losses, their_rates) = np.transpose(found), np.transpose(expected)
    return Played(
        start,
        Side(read[0], rates, losses, to_torch(ours.net), numbers(scores, their_scores)),
        Side(read[1], their_rates, their_losses, theirs.weights(), numbers(their_scores, their_scores)),
    )


def note(read: tuple[Arrays, Arrays], step: int, batch: Batch, raw: tuple) -> None:
    """Keeps what both sides read for a step."""
    valid = np.asarray(batch["valid"])
    sides = [np.asarray(batch[name])[valid] for name in ("image", "mask")], [np.stack(arrays) for arrays in raw]
    for kept, (images, masks) in zip(read, sides):
        kept |= {f"step {step}, images": images, f"step {step}, masks": masks}


def numbers(scores: dict, like: dict) -> Arrays:
    """Scores as arrays, those named in `like`, -1 for NaN."""
    return {name: np.nan_to_num(np.asarray(scores[name], np.float64), nan=-1) for name in like}


# Draws ----------------------------------------------------------------------------------------------------------------


def draws(config: Config, step: int, batch: Batch) -> tuple[list[Draws] | None, np.ndarray | None]:
    """What is drawn in a step: of the augmentation for each valid sample, and the features [b c h w] dropout keeps.

    None where nothing is drawn. The keys are those that the settings state: the seed's, with the step folded in.
    """
    valid, key = np.asarray(batch["valid"]), jax.random.fold_in(jax.random.key(config.run.seed), step)
    drawn = kept = None
    if config.augmentation.augment and not config.run.overfit:
        found = jax.device_get(augmentation_draws(config.augmentation, batch["image"].shape, key))
        drawn = [{name: [x[i] for x in arrays] for name, arrays in found.items()} for i in np.flatnonzero(valid)]
    if config.model.dropout:
        m, parts = config.model, config.optimization.accumulate
        b, h, w, _ = batch["image"].shape
        least, channels = 2 ** (len(m.widths) - 1), m.widths[-1] // (1 + (m.upsample == "bilinear"))
        sides = h // least, w // least
        if m.encoder:
            sides, channels = (-(-h // 32), -(-w // 32)), resnet.BASE * (32 if m.encoder == "resnet50" else 8)
        shape, key = (b // parts, *sides, channels), jax.random.fold_in(key, DROPOUT)
        keys = [key] if parts == 1 else jax.random.split(key, parts)
        kept = pairs.nchw(np.concatenate([jax.random.bernoulli(part, 1 - m.dropout, shape) for part in keys]))[valid]
    return drawn, kept


@partial(jax.jit, static_argnums=(0, 1))
def augmentation_draws(a: Augmentation, shape: tuple[int, ...], key: jax.Array) -> dict[str, tuple[jax.Array, ...]]:
    """Draws of a step by the setting's name, for a batch of `shape`."""
    batch, found = {"image": jnp.zeros(shape), "mask": jnp.zeros(shape[:3], jnp.uint8)}, {}
    if a.flips:
        found["flips"] = augment.draw_flips_and_turns(key, batch)
    asked = [name for name in CHANGES if getattr(a, name)]
    for number, name in enumerate(asked, start=2):
        draw = getattr(augment, f"draw_{name}")
        drawn = draw(jax.random.fold_in(key, number), batch, getattr(a, name))
        found[name] = drawn if isinstance(drawn, tuple) else (drawn,)
    return found
