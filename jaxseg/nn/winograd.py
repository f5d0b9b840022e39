"""3x3 convolution with fewer products, for prediction on a CPU: F(2x2, 3x3) of Lavin and Gray (2016).

Four neighboring pixels of the result take 16 products a channel instead of 36. Sums around them double the rounding
error, in float32 to some 1e-6 of the largest value.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

WIDE = 64
"""Fewest channels on both sides with which it is faster than the plain convolution."""
CACHED = 2**20
"""Most transformed values at a time, 4 MiB in float32."""


def is_faster(inputs: int, outputs: int) -> bool:
    """True if a convolution with so many channels is wide enough."""
    return min(inputs, outputs) >= WIDE


def winograd(x: Float[Array, "b h w i"], kernel: Float[Array, "16 i o"]) -> Float[Array, "b h w o"]:
    """`jaxseg.nn.convolution.plain`, band by band of rows in a loop, so that a band's values stay in the cache.

    `kernel` is what `kernel_values` makes of the convolution's.

    >>> import jax
    >>> from jaxseg.nn.convolution import plain
    >>> x, kernel = (jax.random.normal(jax.random.key(0), shape) for shape in ((2, 5, 6, 3), (3, 3, 3, 4)))
    >>> bool(jnp.allclose(winograd(x, jnp.asarray(kernel_values(kernel))), plain(x, kernel), atol=1e-5))
    True
    """
    b, h, w, inputs = x.shape
    outputs = kernel.shape[-1]
    wide, values = w + w % 2, 4 * w * (inputs + outputs)  # values: of a row, in both transforms
    bands = -(-h // max(4, CACHED // values))
    rows = -(-h // (2 * bands)) * 2  # per band
    images = max(1, min(b, CACHED // (values * h))) if bands == 1 else 1  # at a time; small ones go together
    turns = -(-b // images)
    x = jnp.pad(x, ((0, turns * images - b), (1, 1 + bands * rows - h), (1, 1 + wide - w), (0, 0)))

    def add(turn, total):
        where = turn // bands * images, turn % bands * rows, 0, 0
        band = lax.dynamic_slice(x, where, (images, rows + 2, wide + 2, inputs))
        return lax.dynamic_update_slice(total, _band(lax.optimization_barrier(band), kernel), where)

    total = jnp.zeros((turns * images, bands * rows, wide, outputs), x.dtype)
    return lax.fori_loop(0, turns * bands, add, total)[:b, :h, :w]


def kernel_values(kernel: Float[Array | np.ndarray, "3 3 i o"]) -> Float[np.ndarray, "16 i o"]:
    """Transforms a kernel, on the host: 4x4 values for each pair of channels."""
    rows = _of_kernel(np.asarray(kernel))  # [4 3 i o]
    return _of_kernel(rows.swapaxes(0, 1)).swapaxes(0, 1).reshape(16, *kernel.shape[2:])


def _of_kernel(g: Float[np.ndarray, "3 n i o"]) -> Float[np.ndarray, "4 n i o"]:
    """Transforms three neighbors in a row or column to four values, in a new first dimension."""
    outer = (g[0] + g[2]) / 2
    return np.stack([g[0], outer + g[1] / 2, outer - g[1] / 2, g[2]])


def _band(x: Float[Array, "b h2 w2 i"], kernel: Float[Array, "16 i o"]) -> Float[Array, "b h w o"]:
    """Convolution of an image with a border of one pixel; h and w are even."""
    b, h, w, inputs = x.shape
    h, w = h - 2, w - 2
    columns = _of_image([lax.slice_in_dim(x, j, j + w - 1, 2, axis=2) for j in range(4)])
    values = _of_image([lax.slice_in_dim(columns, i, i + h - 1, 2, axis=2) for i in range(4)])
    products = lax.dot_general(values.reshape(16, -1, inputs), kernel, (((2,), (1,)), ((0,), (0,))))
    rows = _of_result(products.reshape(4, 4, b, h // 2, w // 2, -1), axis=2)  # [4 b 2 h/2 w/2 o]
    return _of_result(rows, axis=-2).transpose(0, 2, 1, 3, 4, 5).reshape(b, h, w, -1)


def _of_image(d: Sequence[Array]) -> Array:
    """Transforms four neighbors in a row or column; in a new first dimension."""
    return jnp.stack([d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]])


def _of_result(m: Array, axis: int) -> Array:
    """Transforms the first dimension, of four values, to two pixels in a new dimension."""
    return jnp.stack([m[0] + m[1] + m[2], m[1] - m[2] - m[3]], axis=axis)
