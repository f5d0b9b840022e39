"""Random geometry, the same for image and mask, on the device and inside the compiled step."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped

Batch = dict[str, jax.Array | np.ndarray]


def flips_and_turns(key: jax.Array, batch: Batch) -> Batch:
    """Each sample flipped left-right or not and turned by 0, 90, 180 or 270 degrees, all eight alike probable.

    Tiles that are not square are turned by 0 or 180 degrees only. `key`: a JAX key; the same key does the same.
    """
    _, h, w, _ = batch["image"].shape
    flip_key, turn_key = jax.random.split(key)
    flip = jax.random.bernoulli(flip_key, shape=batch["mask"].shape[:1])
    turns = jax.random.randint(turn_key, batch["mask"].shape[:1], 0, 4 if h == w else 2)
    if h != w:
        turns = 2 * turns
    return batch | {name: dihedral(batch[name], flip, turns) for name in ("image", "mask")}


def dihedral(
    x: Shaped[Array | np.ndarray, "b h w *c"], flip: Shaped[Array, " b"], turns: Shaped[Array, " b"]
) -> Shaped[Array, "b h w *c"]:
    """Sample i of `x` mirrored along its width if `flip[i]`, then turned counterclockwise by `turns[i]` quarters.

    For images that are not square, `turns` must be even. Made of selections between reversed and transposed copies,
    no gather.
    """

    def choose(condition, yes, no):
        return jnp.where(jnp.reshape(condition, (-1,) + (1,) * (x.ndim - 1)), yes, no)

    x = choose(flip, x[:, :, ::-1], x)
    x = choose(turns >= 2, x[:, ::-1, ::-1], x)
    if x.shape[1] == x.shape[2]:
        x = choose(turns % 2 == 1, jnp.swapaxes(x, 1, 2)[:, ::-1], x)
    return x
