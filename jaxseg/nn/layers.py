"""The layers of which Flax has none with PyTorch's meaning. Images are `b h w c`."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Num

from jaxseg.nn.convolution import conv3x3
from jaxseg.nn.initializers import RULES, Rule, torch_default_bias


class BatchNorm(nnx.Module):
    """BatchNorm over `b h w` as `torch.nn.BatchNorm2d` computes it; `nnx.BatchNorm` differs in three ways.

    The batch is normalized with its biased variance, about a value near the mean; the running variance takes the
    *unbiased* one; the statistics have the parameters' dtype. `momentum` is the weight of the *new* value, PyTorch's
    convention (Flax would say 0.9). Evaluation is a view: `nnx.view(model, use_running_average=True)`.
    """

    def __init__(
        self, features: int, *, momentum: float = 0.1, eps: float = 1e-5, dtype=jnp.float32, param_dtype=jnp.float32
    ):
        self.scale = nnx.Param(_filled(1.0, features, param_dtype))
        self.bias = nnx.Param(_filled(0.0, features, param_dtype))
        self.mean = nnx.BatchStat(_filled(0.0, features, param_dtype))
        self.var = nnx.BatchStat(_filled(1.0, features, param_dtype))
        self.momentum, self.eps, self.dtype = momentum, eps, dtype
        self.use_running_average = False

    def set_view(self, use_running_average: bool | None = None):
        """For `nnx.view`."""
        if use_running_average is not None:
            self.use_running_average = use_running_average

    def __call__(
        self, x: Float[Array, "b h w c"], valid: Bool[Array | np.ndarray, " b"] | None = None
    ) -> Float[Array, "b h w c"]:
        """Normalizes `x`; in training, samples that are not `valid` take no part in the statistics.

        That makes a short batch, padded to the full shape, the same as the short batch itself; one without any valid
        sample moves nothing.
        Raises ValueError in training when there is one value per channel, as PyTorch does.
        """
        return self._apply(_normalized, x, valid)

    def _apply(self, function, x, valid):
        """`function`, which is `_normalized` or has its arguments."""
        x = x.astype(self.mean.dtype)
        if self.use_running_average:
            mean, var = self.mean[...], self.var[...]
        else:
            mean, var = self._statistics(x, valid)
        return function(x, mean, var, self.scale[...], self.bias[...], self.eps).astype(self.dtype)

    def _statistics(self, x, valid):
        """Mean and biased variance of the batch; moves the running ones."""
        b, h, w, _ = x.shape
        if b * h * w == 1:
            raise ValueError(
                f"BatchNorm got one value per channel (shape {x.shape}) and cannot train on it: "
                "use larger tiles or batches"
            )
        valid = jnp.ones(b, bool) if valid is None else jnp.asarray(valid)
        mean, var, unbiased = _moments(x, valid)
        # not `[...] =`, which asks a tracer for its sharding, and an error that is long to word is the answer
        self.mean.set_value(_moved(self.mean[...], mean, valid, self.momentum))
        self.var.set_value(_moved(self.var[...], unbiased, valid, self.momentum))
        return mean, var


def norm_relu(
    norm: BatchNorm, x: Float[Array, "b h w c"], valid: Bool[Array | np.ndarray, " b"] | None = None
) -> Float[Array, "b h w c"]:
    """`plain_norm_relu`, with a gradient that XLA computes with less traffic to memory: see `_normalized_relu`."""
    return norm._apply(_normalized_relu, x, valid)


def plain_norm_relu(
    norm: BatchNorm, x: Float[Array, "b h w c"], valid: Bool[Array | np.ndarray, " b"] | None = None
) -> Float[Array, "b h w c"]:
    """BatchNorm and ReLU, as it is written everywhere."""
    return jax.nn.relu(norm(x, valid))


def _filled(value: float, features: int, dtype) -> Float[Array, " features"]:
    """`jnp.full`, which is a program to compile for each size, 5 for a U-Net."""
    return jax.device_put(np.full(features, value, dtype), may_alias=False)


# What `jax.jit` stands before is traced once for each shape, of which a U-Net has one at each level.


@partial(jax.jit, static_argnums=5)
def _normalized(x, mean, var, scale, bias, eps):
    return (x - _channels(mean)) * _channels(scale * jax.lax.rsqrt(var + eps)) + _channels(bias)


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _normalized_relu(x, mean, var, scale, bias, eps):
    """ReLU of `_normalized`.

    The gradient that ReLU lets through is needed twice, for sums over all pixels and, with these, for the gradient of
    x. XLA would write it to memory in between, once for every layer; it computes it twice where it is written in two
    ways.
    """
    return jax.nn.relu(_normalized(x, mean, var, scale, bias, eps))


def _normalized_relu_fwd(x, mean, var, scale, bias, eps):
    return _normalized_relu(x, mean, var, scale, bias, eps), (x, mean, var, scale, bias)


def _normalized_relu_bwd(eps, residuals, g):
    return _normalized_relu_gradients(*residuals, g, eps)


_normalized_relu.defvjp(_normalized_relu_fwd, _normalized_relu_bwd)


@partial(jax.jit, static_argnums=6)
def _normalized_relu_gradients(x, mean, var, scale, bias, g, eps):
    inverse = jax.lax.rsqrt(var + eps)
    slope, centered = scale * inverse, x - _channels(mean)
    normalized = _normalized(x, mean, var, scale, bias, eps)
    through, same = jnp.where(normalized > 0, g, 0), jnp.where(normalized <= 0, 0, g)
    total, product = _pixel_sums(through, through * centered)
    return same * _channels(slope), -slope * total, -product * scale * inverse**3 / 2, product * inverse, total


def _pixel_sums(*images):
    """Of each channel."""
    return tuple(x.sum((0, 1, 2)) for x in images)


@partial(jax.jit, static_argnums=3)
def _moved(running, new, valid, momentum):
    moved = (1 - momentum) * running + momentum * jax.lax.stop_gradient(new)
    return jnp.where(valid.any(), moved, running)


NEAR = 4
"""Every so many rows and columns have a pixel that says where about the mean is."""


@jax.jit
def _moments(
    x: Float[Array, "b h w c"], valid: Bool[Array, " b"]
) -> tuple[Float[Array, " c"], Float[Array, " c"], Float[Array, " c"]]:
    """Mean, biased and unbiased variance, in one pass over all pixels.

    They are the moments about `near` (shifted data, Chan, Golub and LeVeque 1983), which is a constant for the
    gradient. It is the mean of a share p of the pixels of each image, at least 1/16: however they are chosen, its
    distance from the mean of all is at most sqrt(var (1 - p) / p), so that rounding is less than 16 times that of two
    passes, and the usual amount where those pixels are like the others.
    """
    weight = valid.astype(x.dtype)
    some = x[:, ::NEAR, ::NEAR]
    count = jnp.maximum(weight.sum(), 1)
    n = count * (x.shape[1] * x.shape[2])
    (near,) = _sums(weight / (count * (some.shape[1] * some.shape[2])), jax.lax.stop_gradient(some))
    centered = x - _channels(near)
    rest, squares = (total / n for total in _sums(weight, centered, jnp.square(centered)))
    var = jnp.maximum(squares - jnp.square(rest), 0)  # by rounding below 0
    return near + rest, var, var * (n / (n - 1))


@jax.jit
def _sums(weight: Float[Array, " b"], *images: Float[Array, "b h w c"]) -> tuple[Float[Array, " c"], ...]:
    """Of each of `images` over all pixels, each with its sample's weight.

    A GPU multiplies on the way to the sum; XLA on a CPU would first fill an array of x's size with the weights.
    """

    def by_pixel(weight, *images):
        return _pixel_sums(*(x * weight[:, None, None, None] for x in images))

    def by_sample(weight, *images):
        return tuple((x.sum((1, 2)) * weight[:, None]).sum(0) for x in images)

    return jax.lax.platform_dependent(weight, *images, cpu=by_sample, default=by_pixel)


def _channels(x: Float[Array, " c"]) -> Float[Array, "1 1 1 c"]:
    return x[None, None, None, :]


@jax.custom_vjp
def _max_pool_even(x):
    return _largest(x)[0]


def _largest(x):
    """The largest value of each window, and its place (uint8): 0 to 3 in row-major order, the first of equals; 4 for
    NaN.

    The place by comparisons of the pixels with one another. Where XLA on a CPU computed x once more for them they
    differed in the last bit from the maximum, none was equal to it, and the gradient was lost.
    """
    n, h, w, channels = x.shape
    windows = x.reshape(n, h // 2, 2, w // 2, 2, channels)
    a, b, c, d = (windows[:, :, i, :, j] for i in range(2) for j in range(2))
    above, below = jnp.maximum(a, b), jnp.maximum(c, d)
    y = windows.max((2, 4))
    place = jnp.where(below > above, 2 + (d > c).astype(jnp.uint8), (b > a).astype(jnp.uint8))
    return y, jnp.where(jnp.isnan(y), jnp.uint8(4), place)


def _max_pool_bwd(place, g):
    b, h, w, c = g.shape
    here = place[:, :, None, :, None] == jnp.arange(4, dtype=jnp.uint8).reshape(1, 1, 2, 1, 2, 1)
    return (jnp.where(here, g[:, :, None, :, None], 0).reshape(b, 2 * h, 2 * w, c),)


_max_pool_even.defvjp(_largest, _max_pool_bwd)


def max_pool(x: Num[Array, "b h w c"]) -> Num[Array, "b h2 w2 c"]:
    """2x2 max-pooling, as `torch.nn.MaxPool2d(2)`: an odd last row or column is left out.

    Of equal values the first in row-major order gets the gradient, as in PyTorch. Written with comparisons, because
    the gradient of `lax.reduce_window` is a scatter, which is slow on CPU and GPU alike.
    """
    _, h, w, _ = x.shape
    return _max_pool_even(x[:, : h // 2 * 2, : w // 2 * 2])


class Conv(nnx.Module):
    """Convolution that keeps the size: `torch.nn.Conv2d(in_features, out_features, kernel_size, padding="same")`.

    - `kernel_size`: 1 or 3; ValueError for others
    - `rule`: draws the kernel [h w i o]; PyTorch's default if not given. The bias is always PyTorch's default.

    >>> conv = Conv(3, 8, kernel_size=3, rngs=nnx.Rngs(0))
    >>> conv(jnp.ones((2, 16, 16, 3))).shape
    (2, 16, 16, 8)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int,
        *,
        rule: Rule = RULES["torch_default"],
        use_bias: bool = True,
        dtype=jnp.float32,
        param_dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        if kernel_size not in (1, 3):
            raise ValueError(f"`kernel_size` is {kernel_size}; expected 1 or 3")
        shape = (kernel_size, kernel_size, in_features, out_features)
        self.kernel = nnx.Param(rule.conv(rngs.params(), shape, param_dtype))
        bias = torch_default_bias(shape)
        self.bias = nnx.Param(bias(rngs.params(), (out_features,), param_dtype)) if use_bias else None
        self.dtype = dtype

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h w o"]:
        """The same height and width."""
        x, kernel = x.astype(self.dtype), self.kernel[...].astype(self.dtype)
        y = conv3x3(x, kernel) if len(kernel) == 3 else _conv1x1(x, kernel)
        return y if self.bias is None else _add_bias(y, self.bias[...])


def _conv1x1(x: Float[Array, "b h w i"], kernel: Float[Array, "1 1 i o"]) -> Float[Array, "b h w o"]:
    """A product of two matrices.

    Of more dimensions XLA on a CPU takes the gradient of a bfloat16 kernel for one whose sum it need not keep in
    float32: in jax 0.11 it is 3 to 6 % off.
    """
    *pixels, inputs = x.shape
    return (x.reshape(-1, inputs) @ kernel[0, 0]).reshape(*pixels, -1)


def _add_bias(y: Float[Array, "b h w o"], bias: Float[Array, " o"]) -> Float[Array, "b h w o"]:
    """y + bias in the type of `bias`, rounded to that of `y`.

    The gradient of a bias is a sum over all pixels. XLA on a CPU adds bfloat16 to bfloat16 one after the other, until
    the sum is so large that nothing moves it: of 16,384 pixels it loses nine tenths. Here the summands are float32.
    """
    return (y.astype(bias.dtype) + _channels(bias)).astype(y.dtype)


class UpConv(nnx.Module):
    """2x2 transposed convolution of stride 2: `torch.nn.ConvTranspose2d(in_features, out_features, 2, 2)`.

    Windows do not overlap, so it is one matrix product and a rearrangement: exact, and much faster under XLA than a
    dilated convolution. `kernel[i, j]` makes the output pixels (2y + i, 2x + j); PyTorch's weight `(in, out, h, w)`
    is its transpose (2, 3, 0, 1).

    >>> up = UpConv(8, 4, rngs=nnx.Rngs(0))
    >>> up(jnp.ones((2, 16, 16, 8))).shape
    (2, 32, 32, 4)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        rule: Rule = RULES["torch_default"],
        dtype=jnp.float32,
        param_dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        shape = (2, 2, in_features, out_features)
        self.kernel = nnx.Param(rule.up(rngs.params(), shape, param_dtype))
        self.bias = nnx.Param(torch_default_bias(shape, transposed=True)(rngs.params(), (out_features,), param_dtype))
        self.dtype = dtype

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b 2*h 2*w o"]:
        """Twice the height and width."""
        b, h, w, inputs = x.shape
        kernel = self.kernel[...].astype(self.dtype).transpose(2, 0, 1, 3)
        y = x.astype(self.dtype).reshape(-1, inputs) @ kernel.reshape(inputs, -1)  # XLA is slow at this by einsum
        y = y.reshape(b, h, w, 2, 2, -1).swapaxes(2, 3)
        return _add_bias(y.reshape(b, 2 * h, 2 * w, -1), self.bias[...])


def upsample_bilinear(x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c"]:
    """Twice the size, as `torch.nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)`, which `jax.image`
    lacks.
    """
    _, h, w, _ = x.shape
    rows, columns = (jnp.asarray(_interpolation(n), x.dtype) for n in (h, w))
    return jnp.einsum("yh,bhwc,xw->byxc", rows, x, columns)


def _interpolation(n: int) -> np.ndarray:
    """Matrix [2n n] that interpolates n samples at 2n positions from the first sample to the last."""
    position = np.arange(2 * n) * ((n - 1) / (2 * n - 1))
    return np.maximum(0.0, 1.0 - np.abs(position[:, None] - np.arange(n)[None, :]))
