"""3x3 convolution in the form that is fastest on its platform. All forms are the same sum in another order.

On a CPU, XLA hands convolutions to YNNPACK. Three forms are faster there than the plain one:

- `winograd` takes fewer products, forwards and for both gradients, where there are many channels.
- `packed` computes neighboring pixels as channels. YNNPACK refuses convolutions with 16 channels or fewer.
- `kernel_gradient_in_bands` loops over bands of rows that fit into a core's cache. The gradient of a kernel is a
  convolution with an image for a kernel, and slow where that image is large.

Elsewhere the form is plain, except for `forward_on_gpu` and `kernel_gradient_on_gpu`. The platform is the one that
the program is compiled for.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float

from jaxseg.nn import winograd

Image = Float[Array, "b h w i"]
Output = Float[Array, "b h w o"]
Kernel = Float[Array, "3 3 i o"]

ALIGNED = 8
"""Channels below which cuDNN is slower: it reads 16 bytes at a time, 8 values in bfloat16."""
REFUSED = 16
"""Most channels on both sides with which YNNPACK refuses a convolution."""
CACHED = 2**19
"""Most values in a band's operands, 2 MiB in float32."""
WHOLE = 2**17
"""Most values in a batch and its output for which a loop over bands saves less than a millisecond."""


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


@jax.jit  # traced once per shape
def _convolved(x, kernel):
    return lax.platform_dependent(x, kernel, cpu=forward_on_cpu, default=forward_on_gpu)


@jax.jit
def _kernel_gradient(x, g):
    return lax.platform_dependent(x, g, cpu=kernel_gradient_on_cpu, default=kernel_gradient_on_gpu)


def plain(
    x: Image, kernel: Float[Array, "3 columns i o"], rows: tuple[int, int] = (1, 1), stride: int = 1
) -> Float[Array, "b h2 w2 o"]:
    """The ordinary convolution, with `rows` of zeros above and below, a column on each side, `stride` along rows."""
    return lax.conv_general_dilated(x, kernel, (1, stride), (rows, (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC"))


def kernel_gradient(x: Image, g: Output) -> Kernel:
    """The gradient of `plain` by its kernel, for the gradient `g` of its output."""
    shape = (3, 3, x.shape[-1], g.shape[-1])
    (gradient,) = jax.linear_transpose(lambda kernel: plain(x, kernel), jax.ShapeDtypeStruct(shape, x.dtype))(g)
    return gradient


# On a GPU -------------------------------------------------------------------------------------------------------------


def forward_on_gpu(x: Image, kernel: Kernel) -> Output:
    """`plain`, with channels of zeros added below `ALIGNED`."""
    return plain(_filled(x), _filled(kernel, axis=2))


def kernel_gradient_on_gpu(x: Image, g: Output) -> Kernel:
    """`kernel_gradient`, with the kernel's dimensions in their own order in memory.

    XLA would leave it in cuDNN's, update the kernel in that, and copy kernel and moments there and back.
    """
    gradient = kernel_gradient(_filled(x), g)[:, :, : x.shape[-1]]
    return with_layout_constraint(gradient, Layout((0, 1, 2, 3)))


def _filled(x: Float[Array, "..."], axis: int = 3) -> Float[Array, "..."]:
    """Pads `axis` with zeros to `ALIGNED` channels."""
    more = max(ALIGNED - x.shape[axis], 0)
    return jnp.pad(x, [(0, more if i == axis else 0) for i in range(x.ndim)]) if more else x


# On a CPU, where bfloat16 is computed in float32 and rounded once -----------------------------------------------------


def forward_on_cpu(x: Image, kernel: Kernel) -> Output:
    """`winograd` with many channels, `packed` where YNNPACK refuses `plain`, otherwise `plain`."""
    if x.dtype == jnp.bfloat16:
        return forward_on_cpu(x.astype(jnp.float32), kernel.astype(jnp.float32)).astype(x.dtype)
    if winograd.is_faster(*kernel.shape[2:]):
        return winograd.winograd(x, winograd.kernel_values(kernel))
    pixels = _packing(x.shape[2], *kernel.shape[2:])
    return plain(x, kernel) if pixels == 1 else packed(x, kernel, pixels=pixels)


def kernel_gradient_on_cpu(x: Image, g: Output) -> Kernel:
    """`winograd.gradient_of_kernel` with many channels, otherwise `kernel_gradient_in_bands`."""
    if x.dtype == jnp.bfloat16:
        return kernel_gradient_on_cpu(x.astype(jnp.float32), g.astype(jnp.float32)).astype(x.dtype)
    if winograd.gradient_is_faster(x.shape[-1], g.shape[-1]):
        return winograd.gradient_of_kernel(x, g)
    if x.shape[-1] > g.shape[-1]:  # the same sum with image and gradient in each other's place
        return kernel_gradient_in_bands(g, x)[::-1, ::-1].swapaxes(2, 3)
    return kernel_gradient_in_bands(x, g)


def kernel_gradient_in_bands(x: Image, g: Output) -> Kernel:
    """`kernel_gradient` as a sum over bands of rows of single images, in a loop with one band a turn."""
    b, h, w, inputs = x.shape
    outputs, values = g.shape[-1], h * w * (inputs + g.shape[-1])
    pixels = _packing(w, inputs, outputs)
    if b * values <= WHOLE:
        return packed_kernel_gradient(x, g, pixels=pixels)
    rows = max(1, h // math.ceil(values / CACHED))
    bands = math.ceil(h / rows)
    below = bands * rows - h  # rows of zeros that fill the last band: they add nothing
    x = jnp.pad(x, ((0, 0), (1, below + 1), (0, 0), (0, 0)))
    g = jnp.pad(g, ((0, 0), (0, below), (0, 0), (0, 0)))

    def add(turn, total):
        image, start = turn // bands, turn % bands * rows
        read = _band(x, image, start, rows + 2), _band(g, image, start, rows)
        return total + packed_kernel_gradient(*lax.optimization_barrier(read), (0, 0), pixels)

    return lax.fori_loop(0, b * bands, add, jnp.zeros((3, 3, inputs, outputs), x.dtype))


def _band(x: Image, image: Array, start: Array, rows: int) -> Float[Array, "1 rows w i"]:
    return lax.dynamic_slice(x, (image, start, 0, 0), (1, rows, *x.shape[2:]))


def packed_kernel_gradient(
    x: Image, g: Float[Array, "b h2 w o"], rows: tuple[int, int] = (1, 1), pixels: int = 1
) -> Kernel:
    """The gradient of `packed` by its kernel, for the gradient `g` of its output.

    Dimensions are in the order that XLA gives those of every convolution. In a loop it keeps those that are given, and
    in another order the gradient takes 20 times as long.
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


def _packing(width: int, inputs: int, outputs: int) -> int:
    """Neighbors in a row to pack: more than 1 where YNNPACK refuses `plain` and they divide the width."""
    pixels = 4 if outputs <= REFUSED // 2 else 2
    refused = max(inputs, outputs) <= REFUSED or (inputs <= 4 and outputs <= 2 * REFUSED)
    return pixels if refused and width % pixels == 0 else 1


def packed(x: Image, kernel: Kernel, rows: tuple[int, int] = (1, 1), pixels: int = 2) -> Float[Array, "b h2 w o"]:
    """`plain`, computed with `pixels` neighbors in a row as channels; `pixels` divides w.

    The kernel is wider by the neighbors, and the result lies in memory as that of `plain` does. It takes
    (pixels + 2) / 3 times the products, with enough channels for wide registers.
    """
    moved = [jnp.pad(kernel, ((0, 0), (i, pixels - 1 - i), (0, 0), (0, 0))) for i in range(pixels)]
    y = plain(x, jnp.concatenate(moved, axis=-1), rows, pixels)
    return y.reshape(*y.shape[:2], x.shape[2], kernel.shape[-1])
