"""3x3 max-pooling of stride 2, the one in a ResNet's stem. `jaxseg.nn.layers.max_pool` is the U-Net's, 2x2."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

NOWHERE = 9
"""Number of no place in a 3x3 window."""


def max_pool_3x3(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """3x3 max-pooling: `torch.nn.MaxPool2d(3, stride=2, padding=1)`. The result has half the sides, rounded up.

    Among equal values the first in row-major order gets the gradient, as in PyTorch; of several NaN the last one.
    The gradient of `lax.reduce_window` gives a NaN's to another pixel, and is a scatter, slow on CPU and GPU.

    >>> max_pool_3x3(jnp.array([[1.0, 2.0, 9.0], [4.0, 3.0, 8.0]]).reshape(1, 2, 3, 1)).ravel().tolist()
    [4.0, 9.0]
    """
    return _max_pool(x, x.shape[1:3])


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _max_pool(x, size):
    return _largest(x, size)[0]


def _largest(x: Float[Array, "b h w c"], _) -> tuple[Float[Array, "b h2 w2 c"], UInt8[Array, "b h2 w2 c"]]:
    """Maximum of each window, and its place: 0 to 8 in row-major order."""
    rows, columns = (-(-n // 2) for n in x.shape[1:3])
    missing = [(0, 0), *((1, 2 * half - n) for half, n in zip((rows, columns), x.shape[1:3])), (0, 0)]
    x = jnp.pad(x, missing, constant_values=-jnp.inf)
    best, place = None, None
    for number in range(9):
        i, j = divmod(number, 3)
        value = x[:, i : i + 2 * rows : 2, j : j + 2 * columns : 2]
        if best is None:
            best, place = value, jnp.zeros(value.shape, jnp.uint8)
            continue
        larger = (value > best) | jnp.isnan(value)
        best, place = jnp.where(larger, value, best), jnp.where(larger, jnp.uint8(number), place)
    return best, place


def _gradient(size, place, g):
    """Adds up the gradients that a pixel gets from up to four windows.

    A pixel of an even row lies in the middle row of one window. One of an odd row lies in the last row of a window, and
    in the first row of the next. It is alike for columns.
    """
    b, rows, columns, c = g.shape
    place = jnp.pad(place, ((0, 0), (0, 1), (0, 1), (0, 0)), constant_values=NOWHERE)
    g = jnp.pad(g, ((0, 0), (0, 1), (0, 1), (0, 0)))

    def from_place(i, j):
        """Gradients of windows whose maximum is at row `i` and column `j`; with row or column 0 those of the next."""
        below, right = int(i == 0), int(j == 0)
        which = slice(None), slice(below, below + rows), slice(right, right + columns)
        return jnp.where(place[which] == 3 * i + j, g[which], 0)

    def of_rows(*ours):
        even = sum(from_place(i, 1) for i in ours)
        odd = sum(from_place(i, j) for i in ours for j in (2, 0))
        return jnp.stack([even, odd], axis=3).reshape(b, rows, 2 * columns, c)

    both = jnp.stack([of_rows(1), of_rows(2, 0)], axis=2).reshape(b, 2 * rows, 2 * columns, c)
    return (both[:, : size[0], : size[1]],)


_max_pool.defvjp(_largest, _gradient)
