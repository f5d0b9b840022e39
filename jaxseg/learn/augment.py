"""Random changes of a batch, on the device and inside the compiled step.

Geometry changes image and mask alike; light changes the image alone. All randomness comes from the step's key, so a
resumed run draws the same.

Every change takes
- `key`: JAX key; the same key makes the same change
- `batch`: dict with "image" [b h w c] and "mask" uint8 [b h w]; other entries stay
- `most`: largest strength; each sample draws its own

and returns a batch of the same shapes. Images must be float, except for `flips_and_turns`. What a change draws, a
function `draw_...` returns: [b] or [b 1 1 1], one draw for each sample.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxseg.base.config import IGNORE_INDEX, Augmentation
from jaxseg.devices import rows

Batch = dict[str, jax.Array | np.ndarray]
Augment = Callable[[jax.Array, Batch], Batch]
"""(key, batch) -> batch of the same shape."""


def augment_from(settings: Augmentation, unit: Callable[[jax.Array], jax.Array]) -> Augment | None:
    """Builds the augmentation that `settings` describe; None if there is nothing to do.

    `unit` scales images of any type to floats, mostly 0 to 1. Flips and turns keep an image's type; after any other
    change it is the one that `unit` makes.

    >>> augment_from(Augmentation(augment=False), lambda image: image) is None
    True
    """
    s = settings
    changes = [(s.zoom, zoom), (s.blur, blur), (s.contrast, contrast), (s.brightness, brightness), (s.noise, noise)]
    changes = [(strength, change) for strength, change in changes if strength]
    if not s.augment or not (s.flips or changes):
        return None

    def augment(key: jax.Array, batch: Batch) -> Batch:
        if s.flips:
            batch = flips_and_turns(key, batch)
        if changes:
            batch = batch | {"image": unit(batch["image"])}
        # from 2 on, because `flips_and_turns` splits the keys 0 and 1 off
        for number, (strength, change) in enumerate(changes, 2):
            batch = change(jax.random.fold_in(key, number), batch, strength)
        return batch

    return augment


def flips_and_turns(key: jax.Array, batch: Batch) -> Batch:
    """Mirrors each sample or not and turns it by 0, 90, 180 or 270 degrees, all eight equally likely.

    Tiles that are not square are turned by 0 or 180 degrees only.

    >>> batch = {"image": jnp.zeros((2, 4, 4, 3)), "mask": jnp.zeros((2, 4, 4), jnp.uint8)}
    >>> jax.jit(flips_and_turns)(jax.random.key(0), batch)["image"].shape
    (2, 4, 4, 3)
    """
    flip, turns = draw_flips_and_turns(key, batch)
    return batch | {name: dihedral(batch[name], flip, turns) for name in ("image", "mask")}


def draw_flips_and_turns(key: jax.Array, batch: Batch) -> tuple[Bool[Array, " b"], Int[Array, " b"]]:
    """Draws whether to mirror each sample, and its quarter turns, for `dihedral`.

    >>> batch = {"image": jnp.zeros((2, 4, 6, 3)), "mask": jnp.zeros((2, 4, 6), jnp.uint8)}
    >>> flip, turns = draw_flips_and_turns(jax.random.key(0), batch)
    >>> flip.shape, bool((turns % 2 == 0).all())
    ((2,), True)
    """
    _, h, w = batch["mask"].shape
    flip_key, turn_key = jax.random.split(key)
    flip = _each(batch, lambda b: jax.random.bernoulli(flip_key, shape=(b,)))
    turns = _each(batch, lambda b: jax.random.randint(turn_key, (b,), 0, 4 if h == w else 2))
    return flip, turns if h == w else 2 * turns


def dihedral(
    x: Shaped[Array | np.ndarray, "b h w *c"], flip: Shaped[Array, " b"], turns: Shaped[Array, " b"]
) -> Shaped[Array, "b h w *c"]:
    """Mirrors sample i along its width if `flip[i]`, then turns it counterclockwise by `turns[i]` quarters.

    - `x`: [b h w ...]
    - `flip`: bool [b]
    - `turns`: int [b], 0 to 3; even for images that are not square

    Selects between reversed and transposed copies, without a gather.

    >>> x = jnp.array([[[0, 1], [2, 3]]])
    >>> dihedral(x, jnp.array([False]), jnp.array([1]))[0].tolist()
    [[1, 3], [0, 2]]
    """

    def choose(condition, yes, no):
        return jnp.where(jnp.reshape(condition, (-1,) + (1,) * (x.ndim - 1)), yes, no)

    x = choose(flip, x[:, :, ::-1], x)
    x = choose(turns >= 2, x[:, ::-1, ::-1], x)
    if x.shape[1] == x.shape[2]:
        x = choose(turns % 2 == 1, jnp.swapaxes(x, 1, 2)[:, ::-1], x)
    return x


def zoom(key: jax.Array, batch: Batch, most: float) -> Batch:
    """Scales each sample by 1 / (1 + most) to 1 + most (log-uniform) about a random place; shapes stay.

    Images are interpolated linearly, labels taken from the nearest pixel. What lies outside is ignored and has the
    sample's mean color, which changes BatchNorm's statistics least.

    >>> batch = {"image": jnp.zeros((2, 4, 4, 3)), "mask": jnp.zeros((2, 4, 4), jnp.uint8)}
    >>> jax.jit(zoom, static_argnums=2)(jax.random.key(0), batch, 0.5)["mask"].shape
    (2, 4, 4)
    """
    image, mask = batch["image"], batch["mask"]
    _, h, w, _ = image.shape
    scale, place = draw_zoom(key, batch, most)
    shift = (1 - scale)[:, None] * place * jnp.array([[h, w]], image.dtype)

    def one(image, mask, scale, shift):
        moved = jax.image.scale_and_translate(
            image, image.shape, (0, 1), jnp.stack([scale, scale]), shift, "linear", antialias=False
        )
        rows, columns = (jnp.floor((jnp.arange(n) + 0.5 - shift[i]) / scale).astype(int) for i, n in enumerate((h, w)))
        inside = ((rows >= 0) & (rows < h))[:, None] & ((columns >= 0) & (columns < w))[None, :]
        mask = mask[jnp.clip(rows, 0, h - 1)][:, jnp.clip(columns, 0, w - 1)]
        mean = image.mean((0, 1), keepdims=True)
        return jnp.where(inside[..., None], moved, mean), jnp.where(inside, mask, IGNORE_INDEX)

    image, mask = jax.vmap(one)(image, mask, scale, shift)
    return batch | {"image": image, "mask": mask}


def draw_zoom(key: jax.Array, batch: Batch, most: float) -> tuple[Float[Array, " b"], Float[Array, "b 2"]]:
    """Draws the scale of each sample, and its place along both axes.

    At place 0 the left and upper borders coincide with those of the image before, at 1 the right and lower ones.

    >>> batch = {"image": jnp.zeros((2, 4, 4, 3)), "mask": jnp.zeros((2, 4, 4), jnp.uint8)}
    >>> scale, place = draw_zoom(jax.random.key(0), batch, 0.5)
    >>> bool((scale <= 1.5).all()), place.shape
    (True, (2, 2))
    """
    dtype = batch["image"].dtype
    scale_key, place_key = jax.random.split(key)
    scale = _each(batch, lambda b: jax.random.uniform(scale_key, (b,), dtype, minval=-1))
    return jnp.exp(scale * math.log1p(most)), _each(batch, lambda b: jax.random.uniform(place_key, (b, 2), dtype))


def brightness(key: jax.Array, batch: Batch, most: float) -> Batch:
    """Adds a number from -most to most to all values of a sample.

    >>> batch = {"image": jnp.zeros((1, 2, 2, 3)), "mask": jnp.zeros((1, 2, 2), jnp.uint8)}
    >>> bool(abs(brightness(jax.random.key(0), batch, 0.2)["image"]).max() <= 0.2)
    True
    """
    return batch | {"image": batch["image"] + draw_brightness(key, batch, most)}


def draw_brightness(key: jax.Array, batch: Batch, most: float) -> Float[Array, "b 1 1 1"]:
    """Draws what `brightness` adds to each sample.

    >>> batch = {"image": jnp.zeros((2, 4, 4, 3)), "mask": jnp.zeros((2, 4, 4), jnp.uint8)}
    >>> draw_brightness(jax.random.key(0), batch, 0.2).shape
    (2, 1, 1, 1)
    """
    return _uniform(key, batch, -most, most)


def contrast(key: jax.Array, batch: Batch, most: float) -> Batch:
    """Multiplies the distance of a sample's values from their mean by 1 - most to 1 + most.

    >>> batch = {"image": jnp.ones((1, 2, 2, 3)), "mask": jnp.zeros((1, 2, 2), jnp.uint8)}
    >>> float(contrast(jax.random.key(0), batch, 0.5)["image"].mean())
    1.0
    """
    image = batch["image"]
    mean = image.mean((1, 2, 3), keepdims=True)
    return batch | {"image": mean + (image - mean) * draw_contrast(key, batch, most)}


def draw_contrast(key: jax.Array, batch: Batch, most: float) -> Float[Array, "b 1 1 1"]:
    """Draws the factor of `contrast` for each sample.

    >>> batch = {"image": jnp.zeros((2, 4, 4, 3)), "mask": jnp.zeros((2, 4, 4), jnp.uint8)}
    >>> draw_contrast(jax.random.key(0), batch, 0.5).shape
    (2, 1, 1, 1)
    """
    return _uniform(key, batch, 1 - most, 1 + most)


def noise(key: jax.Array, batch: Batch, most: float) -> Batch:
    """Adds independent normal noise; its standard deviation is 0 to most for each sample.

    >>> batch = {"image": jnp.ones((1, 2, 2, 3)), "mask": jnp.zeros((1, 2, 2), jnp.uint8)}
    >>> jax.jit(noise, static_argnums=2)(jax.random.key(0), batch, 0.1)["image"].shape
    (1, 2, 2, 3)
    """
    deviation, normal = draw_noise(key, batch, most)
    return batch | {"image": batch["image"] + deviation * normal}


def draw_noise(key: jax.Array, batch: Batch, most: float) -> tuple[Float[Array, "b 1 1 1"], Float[Array, "b h w c"]]:
    """Draws the standard deviation of each sample's noise, and normal numbers of variance 1.

    >>> batch = {"image": jnp.zeros((2, 4, 4, 3)), "mask": jnp.zeros((2, 4, 4), jnp.uint8)}
    >>> [x.shape for x in draw_noise(jax.random.key(0), batch, 0.1)]
    [(2, 1, 1, 1), (2, 4, 4, 3)]
    """
    strength_key, noise_key = jax.random.split(key)
    _, *shape = batch["image"].shape
    keys = _each(batch, lambda b: jax.random.split(noise_key, b))
    normal = jax.vmap(lambda key: jax.random.normal(key, shape, batch["image"].dtype))(keys)
    return _uniform(strength_key, batch, 0.0, most), normal


def blur(key: jax.Array, batch: Batch, most: float) -> Batch:
    """Gaussian blur; its standard deviation is 0 to most pixels for each sample. Borders are repeated outward.

    >>> batch = {"image": jnp.ones((1, 2, 2, 3)), "mask": jnp.zeros((1, 2, 2), jnp.uint8)}
    >>> blurred = jax.jit(blur, static_argnums=2)(jax.random.key(0), batch, 1.0)
    >>> round(float(blurred["image"].mean()), 4)
    1.0
    """
    image, reach = batch["image"], math.ceil(3 * most)
    sigma = jnp.maximum(draw_blur(key, batch, most), 1e-3)
    taps = jnp.exp(-0.5 * jnp.square(jnp.arange(-reach, reach + 1)[:, None, None, None, None] / sigma[None]))
    taps = taps / taps.sum(0, keepdims=True)
    for axis in (1, 2):
        n = image.shape[axis]
        wide = jnp.pad(image, [(reach, reach) if i == axis else (0, 0) for i in range(4)], mode="edge")
        parts = (jax.lax.slice_in_dim(wide, i, i + n, axis=axis) * tap for i, tap in enumerate(taps))
        image = sum(parts)
    return batch | {"image": image}


def draw_blur(key: jax.Array, batch: Batch, most: float) -> Float[Array, "b 1 1 1"]:
    """Draws the standard deviation of each sample's blur in pixels.

    >>> batch = {"image": jnp.zeros((2, 4, 4, 3)), "mask": jnp.zeros((2, 4, 4), jnp.uint8)}
    >>> draw_blur(jax.random.key(0), batch, 1.0).shape
    (2, 1, 1, 1)
    """
    return _uniform(key, batch, 0.0, most)


def _uniform(key: jax.Array, batch: Batch, low: float, high: float) -> Float[Array, "b 1 1 1"]:
    """Uniform number for each sample."""
    return _each(batch, lambda b: jax.random.uniform(key, (b, 1, 1, 1), batch["image"].dtype, low, high))


def _each(batch: Batch, draw: Callable[[int], Array]) -> Array:
    """Calls `draw` with a number of samples, and returns what it drew for those of `batch`.

    Where devices share a batch, each draws for all positions in it, since a draw must not depend on the device.
    """
    if "position" not in batch:
        return draw(len(batch["image"]))
    return draw(rows.count() * len(batch["image"]))[batch["position"]]
