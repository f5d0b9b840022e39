"""3x3 convolution in the form that is fastest where it runs; every form is the same sum in another order.

On a CPU, XLA hands convolutions to YNNPACK, which reaches PyTorch's speed on one core, with two exceptions that are
rewritten here: it refuses those with 16 channels and fewer (`packed`), and it is slow at the gradient of a kernel where
images are large, as that is a convolution with an image for a kernel (`kernel_gradient_by_product`). And it divides a
convolution among cores by channels of the output only, 64 at a time: narrower ones are cut into `pieces`.

Elsewhere the plain form is used. The platform is that for which the program is compiled, so one that is compiled for a
GPU on a machine without one is that of a GPU.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Image = Float[Array, "b h w i"]
Output = Float[Array, "b h w o"]
Kernel = Float[Array, "3 3 i o"]

REFUSED = 16
"""Up to so many channels on both sides YNNPACK takes no convolution."""
SHARED = 128
"""From so many channels of the output on, YNNPACK employs more cores than one."""
PIECES = 10
"""XLA shares independent operations among cores where more than eight of them are ready."""
LARGE = 2**18
"""Values of an image, the 1 MiB of a core's cache, from which the product is the faster gradient of a kernel."""


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
    return lax.platform_dependent(x, kernel, cpu=forward_on_cpu, default=plain)


@jax.jit
def _kernel_gradient(x, g):
    return lax.platform_dependent(x, g, cpu=kernel_gradient_on_cpu, default=kernel_gradient)


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


# On a CPU -------------------------------------------------------------------------------------------------------------


def forward_on_cpu(x: Image, kernel: Kernel) -> Output:
    """`plain` or `packed`, whole or in `pieces`, by shape. XLA computes bfloat16 in float32, by other ways."""
    inputs, outputs = kernel.shape[2:]
    pixels = 4 if outputs <= REFUSED // 2 else 2
    refused = max(inputs, outputs) <= REFUSED or (inputs <= 4 and outputs <= 2 * REFUSED)
    if x.dtype == jnp.bfloat16:
        return plain(x, kernel)
    form = partial(packed, stride=pixels) if refused and x.shape[2] % pixels == 0 else plain
    if outputs >= SHARED:
        return form(x, kernel)
    done = [[form(part, kernel, rows) for part, rows in image] for image in pieces(x)]
    return jnp.concatenate([jnp.concatenate(image, axis=1) for image in done])


def packed(x: Image, kernel: Kernel, rows: tuple[int, int] = (1, 1), stride: int = 2) -> Float[Array, "b h2 w o"]:
    """`plain` with `stride` neighbors in a row, which divide w, computed as so many times the channels.

    The kernel is wider by the neighbors, and the result lies in memory as that of `plain` does. Costs (stride + 2) / 3
    as many products, in a convolution with enough channels for wide registers.
    """
    moved = [jnp.pad(kernel, ((0, 0), (i, stride - 1 - i), (0, 0), (0, 0))) for i in range(stride)]
    y = plain(x, jnp.concatenate(moved, axis=-1), rows, stride)
    return y.reshape(*y.shape[:2], x.shape[2], kernel.shape[-1])


def pieces(x: Image) -> list[list[tuple[Float[Array, "_ _ w i"], tuple[int, int]]]]:
    """`x` cut into groups of images, and each of these into bands if there are few images; PIECES or a few more in all.

    A band comes with its neighboring rows, and with the number of rows of zeros that it needs above and below.
    """
    h, groups = x.shape[1], _cut(len(x), PIECES)
    bands = _cut(h, min(math.ceil(PIECES / len(groups)), max(1, h // 8)))
    return [
        [
            (x[group, max(band.start - 1, 0) : band.stop + 1], (int(band.start == 0), int(band.stop == h)))
            for band in bands
        ]
        for group in groups
    ]


def _cut(n: int, parts: int) -> list[slice]:
    """`n` things in `parts` as equal as can be, none of them empty."""
    parts = min(n, parts)
    return [slice(n * i // parts, n * (i + 1) // parts) for i in range(parts)]


def kernel_gradient_on_cpu(x: Image, g: Output) -> Kernel:
    """`kernel_gradient` or `kernel_gradient_by_product`, by shape."""
    h, w, inputs = x.shape[1:]
    channels = min(inputs, g.shape[-1])
    if h * w * channels >= LARGE and channels > REFUSED and x.dtype != jnp.bfloat16:
        return kernel_gradient_by_product(x, g)
    return kernel_gradient(x, g)


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
