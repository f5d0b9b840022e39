"""Layers with PyTorch's meaning that Flax does not have. Images are `b h w c`."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Num

from jaxseg.devices import rows
from jaxseg.nn.convolution import conv3x3
from jaxseg.nn.initializers import RULES, Rule, torch_default_bias
from jaxseg.nn.strided import conv_stem, conv_strided


class BatchNorm(nnx.Module):
    """BatchNorm over `b h w`: `torch.nn.BatchNorm2d` (Ioffe and Szegedy 2015).

    - `features`: c
    - `momentum`: weight of the *new* value in the running statistics, PyTorch's convention (Flax: 0.9)
    - `eps`: added to the variance
    - `dtype`: of the result
    - `param_dtype`: of parameters and statistics

    Differs from `nnx.BatchNorm` in three ways. The batch is normalized with its biased variance, computed about a value
    near the mean. The running variance takes the *unbiased* one. Statistics have the parameters' dtype.
    For evaluation take a view: `nnx.view(model, use_running_average=True)`.

    >>> norm = BatchNorm(2)
    >>> x = jnp.array([[1.0, 10.0], [3.0, 30.0]]).reshape(2, 1, 1, 2)
    >>> norm(x).round(2).reshape(2, 2).tolist()
    [[-1.0, -1.0], [1.0, 1.0]]
    >>> [round(float(mean), 2) for mean in norm.mean]  # a tenth of the batch's mean
    [0.2, 2.0]
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
        """Called by `nnx.view`: True evaluates with the running statistics."""
        if use_running_average is not None:
            self.use_running_average = use_running_average

    def __call__(
        self, x: Float[Array, "b h w c"], valid: Bool[Array | np.ndarray, " b"] | None = None
    ) -> Float[Array, "b h w c"]:
        """Normalizes `x`. In training, only `valid` samples count in the statistics.

        - `x`: [b h w c]
        - `valid`: bool [b]; all are valid if not given

        A short batch that is padded to the full shape thus gives what the short batch gives. A batch without a valid
        sample leaves the running statistics as they are. Raises ValueError in training when there is one value per
        channel, as PyTorch does.
        """
        return self._apply(_normalized, x, valid)

    def _apply(self, function, x, valid):
        """Calls `function`, which has the arguments of `_normalized`, with the statistics and parameters."""
        x = x.astype(self.mean.dtype)
        if self.use_running_average:
            mean, var = self.mean[...], self.var[...]
        else:
            mean, var = self._statistics(x, valid)
        return function(x, mean, var, self.scale[...], self.bias[...], self.eps).astype(self.dtype)

    def _statistics(self, x, valid):
        """Mean and biased variance of the batch; updates the running statistics."""
        b, h, w, _ = x.shape
        if rows.count() * b * h * w == 1:
            raise ValueError(
                f"BatchNorm got one value per channel (shape {x.shape}) and cannot train on it: "
                "use larger tiles or batches"
            )
        valid = jnp.ones(b, bool) if valid is None else jnp.asarray(valid)
        mean, var, unbiased = _moments(x, valid, self.mean[...])
        # not `[...] =`: it asks a tracer for its sharding and builds a long error message, which is slow
        self.mean.set_value(_moved(self.mean[...], mean, valid, self.momentum))
        self.var.set_value(_moved(self.var[...], unbiased, valid, self.momentum))
        return mean, var


def norm_relu(
    norm: nnx.Module, x: Float[Array, "b h w c"], valid: Bool[Array | np.ndarray, " b"] | None = None
) -> Float[Array, "b h w c"]:
    """BatchNorm and ReLU: `plain_norm_relu` with a gradient that moves less memory, see `_normalized_relu`.

    - `norm`: the layer, whose running statistics are updated in training; what `folded` puts in its place also fits
    - `x`: [b h w c]
    - `valid`: bool [b], see `BatchNorm.__call__`

    >>> norm_relu(BatchNorm(1), jnp.array([1.0, 3.0]).reshape(2, 1, 1, 1)).round(2).ravel().tolist()
    [0.0, 1.0]
    """
    return norm._apply(_normalized_relu, x, valid) if isinstance(norm, BatchNorm) else jax.nn.relu(norm(x, valid))


def plain_norm_relu(
    norm: BatchNorm, x: Float[Array, "b h w c"], valid: Bool[Array | np.ndarray, " b"] | None = None
) -> Float[Array, "b h w c"]:
    """ReLU of BatchNorm, the ordinary way. Arguments as in `norm_relu`.

    >>> plain_norm_relu(BatchNorm(1), jnp.array([1.0, 3.0]).reshape(2, 1, 1, 1)).round(2).ravel().tolist()
    [0.0, 1.0]
    """
    return jax.nn.relu(norm(x, valid))


def _filled(value: float, features: int, dtype) -> Float[Array, " features"]:
    """An array of `value`, made on the host: `jnp.full` compiles a program for each size."""
    return jax.device_put(np.full(features, value, dtype), may_alias=False)


# Jitted so that each is traced once per shape.


@partial(jax.jit, static_argnums=5)
def _normalized(x, mean, var, scale, bias, eps):
    return (x - _channels(mean)) * _channels(scale * jax.lax.rsqrt(var + eps)) + _channels(bias)


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _normalized_relu(x, mean, var, scale, bias, eps):
    """ReLU of `_normalized`.

    The backward pass needs the gradient that ReLU lets through twice: for sums over all pixels, and then for the
    gradient of x. XLA would write it to memory in between, once for every layer. Two different expressions make it
    compute the gradient twice instead.
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
    """Sums over `b h w`, one per channel, for each of `images`."""
    return tuple(x.sum((0, 1, 2)) for x in images)


@partial(jax.jit, static_argnums=3)
def _moved(running, new, valid, momentum):
    moved = (1 - momentum) * running + momentum * jax.lax.stop_gradient(new)
    return jnp.where(rows.total(valid.sum()) > 0, moved, running)


NEAR = 4
"""Stride of the pixels that estimate the mean."""


@jax.jit
def _moments(
    x: Float[Array, "b h w c"], valid: Bool[Array, " b"], running: Float[Array, " c"]
) -> tuple[Float[Array, " c"], Float[Array, " c"], Float[Array, " c"]]:
    """Mean, biased and unbiased variance, in one pass over all pixels.

    Moments are taken about `near` (shifted data, Chan, Golub and LeVeque 1983), a constant for the gradient. It is the
    mean of a share p >= 1/16 of each image's pixels. Its distance from the mean of all is at most sqrt(var (1 - p) /
    p). Rounding is therefore less than 16 times that of two passes, and equal to it where those pixels are like the
    others. Several devices take the running mean, since each of them waits for every sum over all of them.
    """
    weight = valid.astype(x.dtype)
    count = jnp.maximum(rows.total(weight.sum()), 1)
    n = count * (x.shape[1] * x.shape[2])
    near = _near(x, weight, count) if rows.count() == 1 else jax.lax.stop_gradient(running)
    centered = x - _channels(near)
    rest, squares = (total / n for total in rows.total(_sums(weight, centered, jnp.square(centered))))
    var = jnp.maximum(squares - jnp.square(rest), 0)  # rounding may make it negative
    return near + rest, var, var * (n / (n - 1))


def _near(x: Float[Array, "b h w c"], weight: Float[Array, " b"], count: Float[Array, ""]) -> Float[Array, " c"]:
    """Mean of some pixels of each of `count` images with a weight of 1."""
    some = jax.lax.stop_gradient(x[:, ::NEAR, ::NEAR])
    return _sums(weight / (count * (some.shape[1] * some.shape[2])), some)[0]


@jax.jit
def _sums(weight: Float[Array, " b"], *images: Float[Array, "b h w c"]) -> tuple[Float[Array, " c"], ...]:
    """Weighted sum over all pixels for each of `images`; a pixel has its sample's weight.

    A GPU multiplies on the way to the sum. XLA on a CPU would first fill an array of x's size with the weights.
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
    """Maximum of each 2x2 window, and its place (uint8): 0 to 3 in row-major order, the first among equals; 4 for NaN.

    The place comes from comparing pixels with each other, not with the maximum. XLA on a CPU may recompute x for that
    comparison with another last bit; then no pixel equals the maximum and the gradient is lost.
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
    """2x2 max-pooling: `torch.nn.MaxPool2d(2)`. Drops an odd last row or column.

    Among equal values the first in row-major order gets the gradient, as in PyTorch. Written with comparisons: the
    gradient of `lax.reduce_window` is a scatter, slow on CPU and GPU.

    >>> max_pool(jnp.array([[1.0, 2.0, 9.0], [4.0, 3.0, 9.0]]).reshape(1, 2, 3, 1)).ravel().tolist()
    [4.0]
    """
    _, h, w, _ = x.shape
    return _max_pool_even(x[:, : h // 2 * 2, : w // 2 * 2])


class Conv(nnx.Module):
    """Convolution: `torch.nn.Conv2d(in_features, out_features, kernel_size, strides, padding=kernel_size // 2)`.

    - `in_features`, `out_features`: channels of input and output
    - `kernel_size`: 1 or 3, or 7 with strides of 2; ValueError for others
    - `strides`: 1 keeps height and width, 2 halves them and rounds up; ValueError for others
    - `rule`: draws the kernel [h w i o]; PyTorch's default if not given. The bias is always PyTorch's default
    - `use_bias`: False for no bias
    - `dtype`: of the computation
    - `param_dtype`: of kernel and bias

    >>> conv = Conv(3, 8, kernel_size=3, rngs=nnx.Rngs(0))
    >>> conv(jnp.ones((2, 16, 16, 3))).shape
    (2, 16, 16, 8)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int,
        strides: int = 1,
        *,
        rule: Rule = RULES["torch_default"],
        use_bias: bool = True,
        dtype=jnp.float32,
        param_dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        if (kernel_size, strides) not in ((1, 1), (3, 1), (1, 2), (3, 2), (7, 2)):
            what = f"`kernel_size` is {kernel_size} and `strides` {strides}"
            raise ValueError(f"{what}; expected 1 or 3 with strides of 1 or 2, or 7 with 2")
        shape = (kernel_size, kernel_size, in_features, out_features)
        self.kernel = nnx.Param(rule.conv(rngs.params(), shape, param_dtype))
        bias = torch_default_bias(shape)
        self.bias = nnx.Param(bias(rngs.params(), (out_features,), param_dtype)) if use_bias else None
        self.strides, self.dtype = strides, dtype

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h2 w2 o"]:
        """Convolves `x` with zero padding of `kernel_size // 2` on each side."""
        x, kernel = x.astype(self.dtype), self.kernel[...].astype(self.dtype)
        if len(kernel) == 1:
            y = _conv1x1(x[:, :: self.strides, :: self.strides], kernel)
        elif len(kernel) == 7:
            y = conv_stem(x, kernel)
        else:
            y = conv3x3(x, kernel) if self.strides == 1 else conv_strided(x, kernel)
        return y if self.bias is None else _add_bias(y, self.bias[...])


def _conv1x1(x: Float[Array, "b h w i"], kernel: Float[Array, "1 1 i o"]) -> Float[Array, "b h w o"]:
    """1x1 convolution as one matrix product.

    With more dimensions XLA on a CPU sums the gradient of a bfloat16 kernel in less than float32: 3 to 6 % off in jax
    0.11.
    """
    *pixels, inputs = x.shape
    return (x.reshape(-1, inputs) @ kernel[0, 0]).reshape(*pixels, -1)


def _add_bias(y: Float[Array, "b h w o"], bias: Float[Array, " o"]) -> Float[Array, "b h w o"]:
    """y + bias in the dtype of `bias`, rounded to that of `y`.

    The gradient of a bias is a sum over all pixels. XLA on a CPU adds bfloat16 to bfloat16 one by one, until the sum is
    too large to grow: of 16,384 pixels nine tenths are lost. Here the summands are float32.
    """
    return (y.astype(bias.dtype) + _channels(bias)).astype(y.dtype)


class Dropout(nnx.Dropout):
    """`nnx.Dropout` whose draws follow from a sample's place in the batch, whatever device it is on.

    >>> Dropout(0.5)(jnp.ones((2, 1, 1, 3)), rngs=jax.random.key(0)).shape
    (2, 1, 1, 3)
    """

    def __call__(self, x: Float[Array, "b h w c"], *, rngs: jax.Array | None = None) -> Float[Array, "b h w c"]:
        """Drops elements of `x` and scales the others up."""
        if rows.count() == 1 or self.deterministic or not self.rate:
            return super().__call__(x, rngs=rngs)
        factors = rows.own(super().__call__(jnp.ones((rows.count() * len(x), *x.shape[1:]), x.dtype), rngs=rngs))
        return jnp.where(factors > 0, x * factors, 0)


class UpConv(nnx.Module):
    """2x2 transposed convolution of stride 2: `torch.nn.ConvTranspose2d(in_features, out_features, 2, 2)`.

    - `in_features`, `out_features`: channels of input and output
    - `rule`: draws the kernel [2 2 i o]; PyTorch's default if not given. The bias is always PyTorch's default
    - `dtype`: of the computation
    - `param_dtype`: of kernel and bias

    Windows do not overlap, so it is one matrix product and a rearrangement: exact, and much faster under XLA than a
    dilated convolution. `kernel[i, j]` makes the output pixels (2y + i, 2x + j). PyTorch's weight `(in, out, h, w)` is
    its transpose (2, 3, 0, 1).

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
        """Doubles height and width."""
        b, h, w, inputs = x.shape
        kernel = self.kernel[...].astype(self.dtype).transpose(2, 0, 1, 3)
        y = x.astype(self.dtype).reshape(-1, inputs) @ kernel.reshape(inputs, -1)  # einsum is slow under XLA
        y = y.reshape(b, h, w, 2, 2, -1).swapaxes(2, 3)
        return _add_bias(y.reshape(b, 2 * h, 2 * w, -1), self.bias[...])


def upsample_bilinear(x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c"]:
    """Doubles height and width: `torch.nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)`.

    `jax.image` has no aligned corners.

    >>> up = upsample_bilinear(jnp.array([0.0, 3.0]).reshape(1, 1, 2, 1))
    >>> [round(float(x), 3) for x in up[0, 0, :, 0]]
    [0.0, 1.0, 2.0, 3.0]
    """
    _, h, w, _ = x.shape
    rows, columns = (jnp.asarray(_interpolation(n), x.dtype) for n in (h, w))
    return jnp.einsum("yh,bhwc,xw->byxc", rows, x, columns)


def upsample_nearest(x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c"]:
    """Doubles height and width: `torch.nn.Upsample(scale_factor=2, mode="nearest")`.

    >>> upsample_nearest(jnp.array([1.0, 2.0]).reshape(1, 1, 2, 1))[0, :, :, 0].tolist()
    [[1.0, 1.0, 2.0, 2.0], [1.0, 1.0, 2.0, 2.0]]
    """
    b, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)


def _interpolation(n: int) -> np.ndarray:
    """Matrix [2n n] that interpolates n samples at 2n positions from the first sample to the last."""
    position = np.arange(2 * n) * ((n - 1) / (2 * n - 1))
    return np.maximum(0.0, 1.0 - np.abs(position[:, None] - np.arange(n)[None, :]))
