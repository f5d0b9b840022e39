"""Random changes of another formula or range, and draws that are not independent."""

import jax
import jax.numpy as jnp

from jaxseg.data.feed.pipeline import Pipeline
from jaxseg.learn import augment, step
from parity.checks import crops
from parity.mistakes import mistake


def image(change):
    """Replaces the images of a change by `change(right images, images before, most)`."""

    def wrong(right):
        def changed(key, batch, most):
            found = right(key, batch, most)
            return found | {"image": change(found["image"], batch["image"], most)}

        return changed

    return wrong


def weaker(share: float):
    """A change of a part of its strength."""
    return lambda right: lambda key, batch, most: right(key, batch, share * most)


def smoothed(right):
    """JAX's default, which smooths on the way down."""
    return lambda *args, antialias=True, **how: right(*args, **how)


def masks_from(shift: int):
    """Labels that are taken a pixel beside."""
    return lambda right: lambda key, batch, most: right(key, batch | {"mask": jnp.roll(batch["mask"], shift, 2)}, most)


def black_outside(right):
    """Zoom with 0 outside."""

    def zoom(key, batch, most):
        found = right(key, batch, most)
        inside = found["mask"] != augment.IGNORE_INDEX
        return found | {"image": jnp.where(inside[..., None], found["image"], 0)}

    return zoom


def mirrored_border(right):
    """Blur with borders that are mirrored, not repeated."""

    def blur(key, batch, most):
        sides = [(0, 0), (5, 5), (5, 5), (0, 0)]
        found = right(key, batch | {"image": jnp.pad(batch["image"], sides, mode="symmetric")}, most)
        return batch | {"image": found["image"][:, 5:-5, 5:-5]}

    return blur


def about_channels(new, old, most):
    """Contrast about each channel's own mean."""
    all_of_them = old.mean((1, 2, 3), keepdims=True)
    own = old.mean((1, 2), keepdims=True)
    return jnp.where(old == all_of_them, new, own + (old - own) * (new - all_of_them) / (old - all_of_them))


def one_key(right):
    """All changes of light draw from one key."""
    return lambda key, number: right(key, 4 if isinstance(number, int) and 4 <= number < 100 else number)


def flips_key(right):
    """The first change draws from a key of the flips."""
    return lambda key, number: right(key, 1 if isinstance(number, int) and number == 2 else number)


def first_part(right):
    """All micro-batches have the first one's key."""
    return lambda key, num=None: right(key) if num is None else jnp.stack([right(key, num)[0]] * num)


def all_alike(new, old, most):
    """Every sample gets the first one's change."""
    return old + (new - old)[:1]


def never_the_last(right):
    """Integers whose last value never comes."""
    return lambda key, shape, low, high, *rest: right(key, shape, low, high - 1, *rest)


def corner(change):
    """Crops from `change(right corner, room)`, or with another draw."""

    def wrong(right):
        def corner(self, size, draw):
            room = [max(n - c, 0) for n, c in zip(size, self.crop)]
            return change(lambda draw=draw: right(self, size, draw), room, draw)

        return corner

    return wrong


def gray(new, old, most):
    """Noise that is the same in all channels."""
    return old + (new - old)[..., :1]


def full_strength(right):
    """Noise that has its largest deviation in every sample."""

    def noise(key, batch, most):
        return batch | {"image": batch["image"] + most * jax.random.normal(key, batch["image"].shape)}

    return noise


def striped(new, old, most):
    """Noise whose rows come in pairs."""
    added = new - old
    return old + jnp.repeat(added[:, ::2], 2, 1)[:, : old.shape[1]]


def in_pairs(new, old, most):
    """Noise whose columns come in pairs."""
    added = new - old
    return old + jnp.repeat(added[:, :, ::2], 2, 2)[:, :, : old.shape[2]]


def drawn(change):
    """Draws by `change(right draws, most)`."""
    return lambda right: lambda key, batch, most: change(right(key, batch, most), most)


def uniform_scale(found, most):
    """Scales that are uniform, not their logarithms."""
    scale, place = found
    share = (jnp.log(scale) / jnp.log1p(most) + 1) / 2
    return (1 + share * ((1 + most) ** 2 - 1)) / (1 + most), place


def near_the_middle(factor, most):
    """Contrast that changes little more often than much, in the same range."""
    change = (factor - 1) / most
    return 1 + most * change * jnp.abs(change)


MISTAKES = [
    mistake("zoom: scale uniform", augment, "draw_zoom", drawn(uniform_scale)),
    mistake("zoom: places near the borders", augment, "draw_zoom", drawn(lambda found, _: (found[0], found[1] ** 2))),
    mistake("blur: labels of the pixel beside", augment, "blur", masks_from(1)),
    mistake("blur: little more often than much", augment, "draw_blur", drawn(lambda found, most: found**2 / most)),
    mistake("blur: at least half of the range", augment, "draw_blur", drawn(lambda found, most: (found + most) / 2)),
    mistake("contrast: labels of the pixel beside", augment, "contrast", masks_from(1)),
    mistake("contrast: little more often than much", augment, "draw_contrast", drawn(near_the_middle)),
    mistake("brightness: labels of the pixel beside", augment, "brightness", masks_from(1)),
    mistake("brightness: times", augment, "brightness", image(lambda new, old, most: old * (1 + new - old))),
    mistake("noise: signs", augment, "draw_noise", drawn(lambda found, _: (found[0], jnp.sign(found[1])))),
    mistake("noise: columns in pairs", augment, "noise", image(in_pairs)),
    mistake("zoom: smooths on the way down", jax.image, "scale_and_translate", smoothed),
    mistake("zoom: labels of the pixel beside", augment, "zoom", masks_from(1)),
    mistake("zoom: black outside", augment, "zoom", black_outside),
    mistake("zoom: not to the ends of its range", augment, "zoom", weaker(0.9)),
    mistake("blur: not to the end of its range", augment, "blur", weaker(0.9)),
    mistake("blur: border mirrored", augment, "blur", mirrored_border),
    mistake("contrast: about each channel's mean", augment, "contrast", image(about_channels)),
    mistake("contrast: not to the ends of its range", augment, "contrast", weaker(0.9)),
    mistake("brightness: only up", augment, "brightness", image(lambda new, old, most: old + jnp.abs(new - old))),
    mistake("brightness: one number for a batch", augment, "brightness", image(all_alike)),
    mistake("brightness: not to the ends of its range", augment, "brightness", weaker(0.9)),
    mistake("noise: of one channel", augment, "noise", image(gray)),
    mistake("noise: rows in pairs", augment, "noise", image(striped)),
    mistake("noise: always of the largest deviation", augment, "noise", full_strength),
    mistake("noise: half of its range", augment, "noise", weaker(0.5)),
    mistake("turns: never the last", jax.random, "randint", never_the_last),
    mistake(
        "flips: never", jax.random, "bernoulli", lambda right: lambda key, *a, shape=(), **k: jnp.zeros(shape, bool)
    ),
    mistake(
        "flips: of the image only",
        augment,
        "flips_and_turns",
        lambda right: lambda key, batch: right(key, batch) | {"mask": batch["mask"]},
    ),
    mistake("contrast, brightness and noise from one key", jax.random, "fold_in", one_key),
    mistake("zoom from a key of the flips", jax.random, "fold_in", flips_key),
    mistake("dropout from augmentation's key", step, "DROPOUT", lambda right: 3),
    mistake("micro-batches drop the same", jax.random, "split", first_part),
    mistake("every step draws the same", step, "step_key", lambda right: lambda seed, step: right(seed, 0)),
    mistake("every seed draws the same", step, "step_key", lambda right: lambda seed, step: right(0, step)),
    mistake(
        "crops: never the last row",
        Pipeline,
        "_corner",
        corner(lambda right, room, draw: (min(right()[0], max(room[0] - 1, 0)), right()[1])),
    ),
    mistake(
        "crops: never the first column",
        Pipeline,
        "_corner",
        corner(lambda right, room, draw: (right()[0], max(right()[1], min(room[1], 1)))),
    ),
    mistake(
        "crops: alike in every epoch",
        Pipeline,
        "_corner",
        corner(lambda right, room, draw: right((draw[0], 0, draw[2]))),
    ),
    mistake(
        "crops: alike for every seed", Pipeline, "_corner", corner(lambda right, room, draw: right((0, *draw[1:])))
    ),
    mistake(
        "crops: seed and epoch added",
        Pipeline,
        "_corner",
        corner(lambda right, room, draw: right((draw[0] + draw[1], draw[2]))),
    ),
    mistake(
        "crops: epoch and position added",
        Pipeline,
        "_corner",
        corner(lambda right, room, draw: right((draw[0], draw[1] + draw[2]))),
    ),
    mistake(
        "crops: alike in pairs", Pipeline, "_corner", corner(lambda right, room, draw: right((*draw[:2], draw[2] // 2)))
    ),
    mistake(
        "crops: alike in every batch",
        Pipeline,
        "_corner",
        corner(lambda right, room, draw: right((*draw[:2], draw[2] % crops.BATCH))),
    ),
    mistake(
        "crops: along the diagonal",
        Pipeline,
        "_corner",
        corner(lambda right, room, draw: (right()[0], min(right()[0] * (room[1] + 1) // (room[0] + 1), room[1]))),
    ),
    mistake(
        "order: alike for every seed",
        Pipeline,
        "order",
        lambda right: lambda self, epoch: right(_with_seed(self, 0), epoch),
    ),
]


def _with_seed(pipeline: Pipeline, seed: int) -> Pipeline:
    other = object.__new__(Pipeline)
    other.__dict__ |= pipeline.__dict__ | {"seed": seed}
    return other
