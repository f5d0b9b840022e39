"""3x3 convolution with fewer products, for a CPU: F(2x2, 3x3) of Lavin and Gray (2016), and its gradient.

Four neighboring pixels of the result take 16 products a channel instead of 36. Sums around them double the rounding
error, in float32 to some 1e-6 of the largest value.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

WIDE, WIDE_GRADIENT = 64, 32
"""Fewest channels on both sides with which `winograd` and `gradient_of_kernel` are faster than other forms."""
CACHED = 2**20
"""Most transformed values at a time, 4 MiB in float32."""
TILES = 128
"""Fewest tiles of four pixels at a time: the kernel's values are read once for all of them."""


def is_faster(inputs: int, outputs: int) -> bool:
    """True if a convolution with so many channels is wide enough for `winograd`."""
    return min(inputs, outputs) >= WIDE


def gradient_is_faster(inputs: int, outputs: int) -> bool:
    """True if a convolution with so many channels is wide enough for `gradient_of_kernel`."""
    return min(inputs, outputs) >= WIDE_GRADIENT


def winograd(x: Float[Array, "b h w i"], kernel: Float[Array, "16 i o"]) -> Float[Array, "b h w o"]:
    """`jaxseg.nn.convolution.plain`, band by band of rows in a loop, so that a band's values stay in the cache.

    `kernel` is what `kernel_values` makes of the convolution's.

    >>> import jax
    >>> from jaxseg.nn.convolution import plain
    >>> x, kernel = (jax.random.normal(jax.random.key(0), shape) for shape in ((2, 5, 6, 3), (3, 3, 3, 4)))
    >>> bool(jnp.allclose(winograd(x, kernel_values(kernel)), plain(x, kernel), atol=1e-5))
    True
    """
    b, h, w, inputs = x.shape
    outputs = kernel.shape[-1]
    bands = _Bands.of(b, h, w, inputs + outputs)

    def add(turn, total):
        products = lax.dot_general(_image_values(bands.of_image(x, turn)), kernel, (((2,), (1,)), ((0,), (0,))))
        return lax.dynamic_update_slice(total, _result(products, bands), bands.start(turn))

    x = bands.with_border(x)
    return lax.fori_loop(0, bands.turns, add, jnp.zeros((*bands.whole, outputs), x.dtype))[:b, :h, :w]


def gradient_of_kernel(x: Float[Array, "b h w i"], g: Float[Array, "b h w o"]) -> Float[Array, "3 3 i o"]:
    """`jaxseg.nn.convolution.kernel_gradient`, band by band as `winograd`.

    >>> import jax
    >>> from jaxseg.nn.convolution import kernel_gradient
    >>> x, g = (jax.random.normal(jax.random.key(0), (2, 5, 6, c)) for c in (3, 4))
    >>> bool(jnp.allclose(gradient_of_kernel(x, g), kernel_gradient(x, g), atol=1e-4))
    True
    """
    inputs, outputs = x.shape[-1], g.shape[-1]
    bands = _Bands.of(*x.shape[:3], inputs + outputs)
    x, g = bands.with_border(x), bands.filled(g)

    def add(turn, total):
        values = _image_values(bands.of_image(x, turn)), _gradient_values(bands.of_result(g, turn))
        return total + lax.dot_general(*values, (((1,), (1,)), ((0,), (0,))))

    total = lax.fori_loop(0, bands.turns, add, jnp.zeros((16, inputs, outputs), x.dtype))
    columns = _to_kernel(total.reshape(4, 4, inputs, outputs))  # [3 4 i o]
    return _to_kernel(columns.swapaxes(0, 1)).swapaxes(0, 1)


class _Bands(NamedTuple):
    """Parts of a batch of images that are convolved one after the other.

    - `images`, `rows`, `columns`: of a part; rows and columns of the result, both even
    - `groups`, `bands`: of images in the batch, and of rows in an image
    """

    images: int
    rows: int
    columns: int
    groups: int
    bands: int

    @classmethod
    def of(cls, b: int, h: int, w: int, channels: int) -> "_Bands":
        """Bands for images `b h w`, with so many transformed channels together."""
        columns = w + w % 2
        tiles = max(CACHED // (16 * channels), TILES)  # at a time
        bands = -(-h // (2 * max(1, tiles // (columns // 2))))
        rows = -(-h // (2 * bands)) * 2
        images = max(1, min(b, tiles // (rows * columns // 4))) if bands == 1 else 1  # small ones go together
        return cls(images, rows, columns, -(-b // images), bands)

    @property
    def turns(self) -> int:
        return self.groups * self.bands

    @property
    def whole(self) -> tuple[int, int, int]:
        """Images, rows and columns of all bands together, those that fill the last ones up included."""
        return self.groups * self.images, self.bands * self.rows, self.columns

    def start(self, turn: Array) -> tuple:
        return turn // self.bands * self.images, turn % self.bands * self.rows, 0, 0

    def filled(self, x: Array, border: int = 0) -> Array:
        """Adds zeros below and on the right up to `whole`, and as many as `border` on each side of an image."""
        more = [n - have for n, have in zip(self.whole, x.shape)]
        return jnp.pad(x, ((0, more[0]), *((border, border + n) for n in more[1:]), (0, 0)))

    def with_border(self, x: Array) -> Array:
        return self.filled(x, 1)

    def of_result(self, x: Array, turn: Array, border: int = 0) -> Array:
        """Reads a band of `x`, with so many pixels more on each side."""
        size = (self.images, self.rows + 2 * border, self.columns + 2 * border, x.shape[-1])
        return lax.optimization_barrier(lax.dynamic_slice(x, self.start(turn), size))

    def of_image(self, x: Array, turn: Array) -> Array:
        return self.of_result(x, turn, 1)


def kernel_values(kernel: Float[Array | np.ndarray, "3 3 i o"]) -> Float[Array | np.ndarray, "16 i o"]:
    """Transforms a kernel to 4x4 values for each pair of channels."""
    rows = _of_kernel(kernel)  # [4 3 i o]
    return _of_kernel(rows.swapaxes(0, 1)).swapaxes(0, 1).reshape(16, *kernel.shape[2:])


def _of_kernel(g: Float[Array | np.ndarray, "3 n i o"]) -> Float[Array | np.ndarray, "4 n i o"]:
    """Transforms three neighbors in a row or column to four values, in a new first dimension."""
    stack, outer = g.__array_namespace__().stack, (g[0] + g[2]) / 2
    return stack([g[0], outer + g[1] / 2, outer - g[1] / 2, g[2]])


def _to_kernel(u: Float[Array, "4 n i o"]) -> Float[Array, "3 n i o"]:
    """Transpose of `_of_kernel`."""
    outer = (u[1] + u[2]) / 2
    return jnp.stack([u[0] + outer, (u[1] - u[2]) / 2, u[3] + outer])


def _image_values(x: Float[Array, "b h2 w2 i"]) -> Float[Array, "16 n i"]:
    """Transforms the tiles of images with a border of one pixel, 4x4 pixels each, two pixels apart."""
    _, h, w, inputs = x.shape
    columns = _of_image([lax.slice_in_dim(x, j, j + w - 3, 2, axis=2) for j in range(4)])
    values = _of_image([lax.slice_in_dim(columns, i, i + h - 3, 2, axis=2) for i in range(4)])
    return values.reshape(16, -1, inputs)


def _of_image(d: Sequence[Array]) -> Array:
    """Transforms four neighbors in a row or column; in a new first dimension."""
    return jnp.stack([d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]])


def _result(products: Float[Array, "16 n o"], bands: _Bands) -> Float[Array, "b h w o"]:
    """Transforms each tile's values to 2x2 pixels."""
    b, h, w = bands.images, bands.rows, bands.columns
    rows = _of_result(products.reshape(4, 4, b, h // 2, w // 2, -1), axis=2)  # [4 b 2 h/2 w/2 o]
    return _of_result(rows, axis=-2).transpose(0, 2, 1, 3, 4, 5).reshape(b, h, w, -1)


def _of_result(m: Array, axis: int) -> Array:
    """Transforms the first dimension, of four values, to two pixels in a new dimension."""
    return jnp.stack([m[0] + m[1] + m[2], m[1] - m[2] - m[3]], axis=axis)


def _gradient_values(g: Float[Array, "b h w o"]) -> Float[Array, "16 n o"]:
    """Transpose of `_result`."""
    columns = _to_values(g[:, :, 0::2], g[:, :, 1::2])  # [4 b h w/2 o]
    return _to_values(columns[:, :, 0::2], columns[:, :, 1::2]).reshape(16, -1, g.shape[-1])


def _to_values(first: Array, second: Array) -> Array:
    """Transpose of `_of_result`; in a new first dimension."""
    return jnp.stack([first, first + second, first - second, -second])
