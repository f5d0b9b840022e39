"""3x3 convolution in the form that is fastest where it runs; every form is the same sum in another order.

On a CPU, XLA hands convolutions to YNNPACK, which reaches PyTorch's speed on one core if they are put to it well. It
refuses those with 16 channels and fewer, which are `packed`. It divides one among cores by channels of the output only,
64 at a time: narrower ones are cut into `pieces`. And the gradient of a kernel, a convolution with an image for a
kernel, is fast only where that is a piece of one image that fits into a core's cache, and the larger number of channels
is that of the output; where both numbers are large, and images small, `kernel_gradient_by_product` is faster. Where
there are many pieces the program has those of a few images, in a loop: it takes less time to compile and less memory.

Elsewhere it is the plain form but for two things, see `forward_on_gpu` and `kernel_gradient_on_gpu`. The platform is
that for which the program is compiled, so one that is compiled for a GPU on a machine without one is that of a GPU.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float

Image = Float[Array, "b h w i"]
Output = Float[Array, "b h w o"]
Kernel = Float[Array, "3 3 i o"]

ALIGNED = 8
"""With fewer channels of the input cuDNN is slower: it reads 16 bytes at a time, so many in bfloat16."""
REFUSED = 16
"""Up to so many channels on both sides YNNPACK takes no convolution."""
SHARED = 128
"""From so many channels of the output on, YNNPACK employs more cores than one."""
PIECES = 10
"""XLA shares independent operations among cores where more than eight of them are ready."""
LOOPED = PIECES // 2
"""Pieces of a kernel's gradient that are together in a loop, if it has more than PIECES: two operands of each are ready
at once."""
LEAST_ROWS = 8
"""Of a piece, whose neighboring rows are read with it."""
CACHED = 2**19
"""Values of a piece's operands, 2 MiB: the gradient of the kernel takes 1.5 to 1.8 times as long with twice as many."""
MOST_PIECES = 100
"""Of an image, for a kernel's gradient: each takes 30 ms to compile."""
WHOLE = 2**17
"""Up to so many values of a batch and of its output a convolution is not cut: that would save less than a millisecond.
"""
WIDE = 256
"""From so many channels on both sides the product is the faster gradient of a kernel."""


@jax.custom_vjp
def conv3x3(x: Image, kernel: Kernel) -> Output:
    """Convolution of stride 1 that keeps the size, as `torch.nn.functional.conv2d(x, kernel, padding=1)`."""
    return _convolved(x, kernel)


def _forward(x, kernel):
    return conv3x3(x, kernel), (x, kernel)


def _backward(residuals, g):
    x, kernel = residuals
    return _convolved(g, kernel[::-1, ::-1].swapaxes(2, 3)), _kernel_gradient(x, g)


conv3x3.defvjp(_forward, _backward)


@jax.jit  # so that it is traced once for each shape: a third of the time before a step that is found compiled
def _convolved(x, kernel):
    return lax.platform_dependent(x, kernel, cpu=forward_on_cpu, default=forward_on_gpu)


@jax.jit
def _kernel_gradient(x, g):
    return lax.platform_dependent(x, g, cpu=kernel_gradient_on_cpu, default=kernel_gradient_on_gpu)


def plain(
    x: Image, kernel: Float[Array, "3 columns i o"], rows: tuple[int, int] = (1, 1), stride: int = 1
) -> Float[Array, "b h2 w2 o"]:
    """As it is written everywhere. `rows` of zeros go above and below, a column on each side; `stride` in a row."""
    return lax.conv_general_dilated(x, kernel, (1, stride), (rows, (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC"))


def kernel_gradient(x: Image, g: Output) -> Kernel:
    """The gradient of `plain` by its kernel, for the gradient `g` of its output."""
    shape = (3, 3, x.shape[-1], g.shape[-1])
    (gradient,) = jax.linear_transpose(lambda kernel: plain(x, kernel), jax.ShapeDtypeStruct(shape, x.dtype))(g)
    return gradient


# On a GPU -------------------------------------------------------------------------------------------------------------


def forward_on_gpu(x: Image, kernel: Kernel) -> Output:
    """`plain`, with channels of zeros for images of a few."""
    return plain(_filled(x), _filled(kernel, axis=2))


def kernel_gradient_on_gpu(x: Image, g: Output) -> Kernel:
    """`kernel_gradient`, with the kernel's dimensions in their own order in memory.

    XLA would leave it in cuDNN's, update the kernel in that, and copy kernel and moments there and back.
    """
    gradient = kernel_gradient(_filled(x), g)[:, :, : x.shape[-1]]
    return with_layout_constraint(gradient, Layout((0, 1, 2, 3)))


def _filled(x: Float[Array, "..."], axis: int = 3) -> Float[Array, "..."]:
    """With `ALIGNED` channels at least, those that are added 0."""
    more = max(ALIGNED - x.shape[axis], 0)
    return jnp.pad(x, [(0, more if i == axis else 0) for i in range(x.ndim)]) if more else x


# On a CPU. XLA computes bfloat16 in float32 there; so do these, in the forms of float32, which halves the time --------


def forward_on_cpu(x: Image, kernel: Kernel) -> Output:
    """`plain` or `packed`, whole or in `pieces`, by shape."""
    inputs, outputs = kernel.shape[2:]
    if x.dtype == jnp.bfloat16:
        return forward_on_cpu(x.astype(jnp.float32), kernel.astype(jnp.float32)).astype(x.dtype)
    pixels = _packing(x.shape[2], inputs, outputs)
    form = plain if pixels == 1 else partial(packed, pixels=pixels)
    if outputs >= SHARED or math.prod(x.shape[:3]) * (inputs + outputs) <= WHOLE:
        return form(x, kernel)
    x = lax.optimization_barrier(x)  # or what x is made of would be computed anew for every piece
    cut = pieces(x.shape, PIECES, PIECES)
    parts = [[x[part.images, part.read] for part in bands] for bands in cut]
    done = [[form(x, kernel, part.padding) for x, part in zip(*both)] for both in zip(parts, cut)]
    y = jnp.concatenate([jnp.concatenate(bands, axis=1) for bands in done])
    return lax.optimization_barrier((y, parts))[0]  # or a piece would wait for another's memory


def kernel_gradient_on_cpu(x: Image, g: Output) -> Kernel:
    """`kernel_gradient` of `pieces`, `plain` or `packed`, or `kernel_gradient_by_product`, by shape."""
    if x.dtype == jnp.bfloat16:
        return kernel_gradient_on_cpu(x.astype(jnp.float32), g.astype(jnp.float32)).astype(x.dtype)
    x, g = lax.optimization_barrier((x, g))
    if min(x.shape[-1], g.shape[-1]) >= WIDE:
        return kernel_gradient_by_product(x, g)
    if x.shape[-1] > g.shape[-1]:  # the same sum with image and gradient in each other's place
        return kernel_gradient_by_pieces(g, x)[::-1, ::-1].swapaxes(2, 3)
    return kernel_gradient_by_pieces(x, g)


def kernel_gradient_by_pieces(x: Image, g: Output) -> Kernel:
    """`kernel_gradient` as a sum over `pieces` of single images, in a loop over a few images at a time."""
    b, h, w, inputs = x.shape
    outputs, channels = g.shape[-1], inputs + g.shape[-1]
    gradient = partial(packed_kernel_gradient, pixels=_packing(w, inputs, outputs))
    if b * h * w * channels <= WHOLE:
        return gradient(x, g)
    together, bands = _together(b, min(math.ceil(h * w * channels / CACHED), MOST_PIECES))

    def of_some(x, g):
        return sum(
            gradient(x[part.images, part.read], g[part.images, part.rows], part.padding)
            for bands_of_one in pieces(x.shape, together, together * bands)
            for part in bands_of_one
        )

    if together == b:
        return of_some(x, g)

    def add(turn, total):  # not a scan over reshaped arrays, of which XLA would make copies
        return total + of_some(*(lax.dynamic_slice_in_dim(a, turn * together, together) for a in (x, g)))

    return lax.fori_loop(0, b // together, add, jnp.zeros((3, 3, inputs, outputs), x.dtype))


def _together(b: int, bands: int) -> tuple[int, int]:
    """How many of `b` images make a turn of the loop, and of how many bands each, when `bands` fit into the cache.

    All images where that is not too many pieces. Else at least LOOPED pieces and as few as there can be, with at most
    twice the bands.
    """
    if b * bands <= PIECES:
        return b, bands
    some = [(n, max(bands, math.ceil(LOOPED / n))) for n in range(1, b) if b % n == 0]
    few = [(n, cut) for n, cut in some if cut <= 2 * bands]
    return min([*few, (b, bands)], key=lambda choice: (math.prod(choice), -choice[0]))


def packed_kernel_gradient(
    x: Image, g: Float[Array, "b h2 w o"], rows: tuple[int, int] = (1, 1), pixels: int = 1
) -> Kernel:
    """The gradient of `packed` by its kernel, for the gradient `g` of its output.

    Its dimensions are in the order that XLA gives to those of every convolution, but not in a loop, where YNNPACK would
    not have it in another: 20 times slower.
    """
    b, h, w, outputs = g.shape
    wide = lax.conv_general_dilated(
        x.transpose(3, 1, 2, 0),
        g.reshape(b, h, w // pixels, pixels * outputs).transpose(1, 2, 0, 3),
        (1, 1),
        (rows, (1, 1)),
        rhs_dilation=(1, pixels),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    moved = [wide[:, :, i : i + 3, i * outputs : (i + 1) * outputs] for i in range(pixels)]
    return sum(moved).transpose(1, 2, 0, 3)


def kernel_gradient_by_product(x: Image, g: Output) -> Kernel:
    """`kernel_gradient` as products of matrices: three columns of `x` side by side with three rows of `g`.

    In groups of images, so that not all of the operands are in memory together.
    """
    inputs, outputs = x.shape[-1], g.shape[-1]

    def product(x, g):
        columns = _neighbors(x, 2, (0, 1, 2)).reshape(-1, 3 * inputs)
        rows = _neighbors(g, 1, (2, 1, 0)).reshape(-1, 3 * outputs)
        return lax.dot_general(columns, rows, (((0,), (0,)), ((), ())))

    total = sum(product(x[group], g[group]) for group in _cut(len(x), PIECES))
    return total.reshape(3, inputs, 3, outputs).transpose(2, 0, 1, 3)


def _neighbors(x: Array, axis: int, order: tuple[int, int, int]) -> Array:
    """[b h w 3 c]: along `axis` the pixel before (0), the pixel itself (1) and the one after (2); zero outside."""
    n = x.shape[axis]
    padded = jnp.pad(x, [(1, 1) if i == axis else (0, 0) for i in range(x.ndim)])
    return jnp.stack([lax.slice_in_dim(padded, i, i + n, axis=axis) for i in order], axis=3)


def _packing(width: int, inputs: int, outputs: int) -> int:
    """How many neighbors in a row to have `packed`: more than 1 where YNNPACK would refuse `plain`, and it can be."""
    pixels = 4 if outputs <= REFUSED // 2 else 2
    refused = max(inputs, outputs) <= REFUSED or (inputs <= 4 and outputs <= 2 * REFUSED)
    return pixels if refused and width % pixels == 0 else 1


def packed(x: Image, kernel: Kernel, rows: tuple[int, int] = (1, 1), pixels: int = 2) -> Float[Array, "b h2 w o"]:
    """`plain` with so many neighbors in a row, which divide w, computed as so many times the channels.

    The kernel is wider by the neighbors, and the result lies in memory as that of `plain` does. Costs (pixels + 2) / 3
    as many products, in a convolution with enough channels for wide registers.
    """
    moved = [jnp.pad(kernel, ((0, 0), (i, pixels - 1 - i), (0, 0), (0, 0))) for i in range(pixels)]
    y = plain(x, jnp.concatenate(moved, axis=-1), rows, pixels)
    return y.reshape(*y.shape[:2], x.shape[2], kernel.shape[-1])


class Piece(NamedTuple):
    """A band of some images."""

    images: slice
    rows: slice
    """Of the output."""
    read: slice
    """Of the input: a row more on each side, where there is one."""
    padding: tuple[int, int]
    """Rows of zeros above and below, where there is none."""


def pieces(shape: tuple[int, ...], groups: int, least: int) -> list[list[Piece]]:
    """Images `b h w c` cut into `groups`, one image at least in each, and these into bands: `least` pieces in all or a
    few more, if there are rows enough."""
    cut, h = _cut(shape[0], groups), shape[1]
    bands = _cut(h, min(math.ceil(least / len(cut)), max(1, h // LEAST_ROWS)))
    return [
        [
            Piece(group, band, slice(max(band.start - 1, 0), band.stop + 1), (int(not band.start), int(band.stop == h)))
            for band in bands
        ]
        for group in cut
    ]


def _cut(n: int, parts: int) -> list[slice]:
    """`n` things in `parts` as equal as can be, none of them empty."""
    parts = min(n, parts)
    return [slice(n * i // parts, n * (i + 1) // parts) for i in range(parts)]
