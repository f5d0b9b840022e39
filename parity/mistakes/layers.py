"""Layers as Flax has them by default, as Keras has them, or as people write them."""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxseg.learn import step
from jaxseg.nn import convolution, layers, unet, winograd
from parity.mistakes import mistake


def setting(name: str, value: float):
    """BatchNorm made with another value of an attribute."""

    def wrong(right):
        def init(self, *args, **kwargs):
            right(self, *args, **kwargs)
            setattr(self, name, value)

        return init

    return wrong


def statistics(change):
    """BatchNorm whose batch statistics are `change(self, x, valid, mean, var, n)` after the right ones were found."""

    def wrong(right):
        def changed(self, x, valid):
            before = self.var[...]
            mean, var = right(self, x, valid)
            n = x[..., 0].size if valid is None else valid.sum() * x.shape[1] * x.shape[2]
            return change(self, x, mean, var, n, before)

        return changed

    return wrong


def biased_running(self, x, mean, var, n, before):
    """Flax: the running variance takes the biased variance."""
    self.var[...] = (1 - self.momentum) * before + self.momentum * jax.lax.stop_gradient(var)
    return mean, var


def fast_variance(right):
    """Flax: E[x^2] - E[x]^2, which cancels."""

    def wrong(self, x, valid):
        before = self.var[...]
        mean, var = right(self, x, valid)
        n = x[..., 0].size if valid is None else valid.sum() * x.shape[1] * x.shape[2]
        weight = jnp.ones(x.shape[0], x.dtype) if valid is None else valid.astype(x.dtype)
        squares = (jnp.square(x) * weight[:, None, None, None]).sum((0, 1, 2)) / n
        var = jnp.maximum(squares - jnp.square(mean), 0)
        self.var[...] = (1 - self.momentum) * before + self.momentum * jax.lax.stop_gradient(var * n / (n - 1))
        return mean, var

    return wrong


def float32_statistics(right):
    """Flax: running statistics are float32 whatever the parameters are."""

    def wrong(self, x, valid):
        moments = right(self, x, valid)
        for running in (self.mean, self.var):
            running[...] = running[...].astype(jnp.float32).astype(running.dtype)
        return moments

    return wrong


def detached(right):
    """No gradient through the statistics of the batch."""

    def wrong(self, x, valid):
        return tuple(map(jax.lax.stop_gradient, right(self, x, valid)))

    return wrong


def few_pixels(right):
    """Statistics of some of the pixels, as of those about whose mean they are taken."""
    return lambda x, *more: right(x[:, :: layers.NEAR, :: layers.NEAR], *more)


def not_halved(right):
    """The gradient by the variance of x / sqrt(variance), twice what it is."""

    def wrong(*how):
        by_x, by_mean, by_variance, *others = right(*how)
        return by_x, by_mean, 2 * by_variance, *others

    return wrong


def through_at_zero(right):
    """ReLU lets the gradient through where BatchNorm's result is exactly 0."""
    return lambda x, mean, var, scale, bias, *rest: right(x, mean, var, scale, bias + 1e-300, *rest)


def eps_beside_root(right):
    """eps added to the deviation, not to the variance."""
    return lambda x, mean, var, *rest: right(x, mean, var + 2 * jnp.sqrt(var * rest[-1]), *rest)


def no_lower_than(least: float):
    """Pooling that begins from a number, where infinity belongs."""
    return lambda right: lambda x: right(jnp.maximum(x, least))


def filled_in_front(right):
    """Channels of zeros before the others."""

    def wrong(x, axis=3):
        more = right(x, axis).shape[axis] - x.shape[axis]
        return jnp.pad(x, [(more if i == axis else 0, 0) for i in range(x.ndim)])

    return wrong


def without_last(right):
    """The last image of a batch left out."""
    return lambda x, g: right(x[: max(len(x) - 1, 1)], g[: max(len(g) - 1, 1)])


def split_ties(right):
    """Pooling by reshape: equal values share the gradient."""

    def wrong(x):
        b, h, w, c = x.shape
        return x[:, : h // 2 * 2, : w // 2 * 2].reshape(b, h // 2, 2, w // 2, 2, c).max((2, 4))

    return wrong


def last_tie(right):
    """The last of equal values gets the gradient."""
    return lambda x: right(x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2][:, ::-1, ::-1])[:, ::-1, ::-1]


def up_conv(kernel, bias=True):
    """UpConv with another reading of its kernel [h w in out], or without its bias."""

    def wrong(right):
        def call(self, x):
            b, h, w, _ = x.shape
            y = jnp.einsum("bhwi,yxio->bhywxo", x.astype(self.dtype), kernel(self.kernel[...]).astype(self.dtype))
            y = y.reshape(b, 2 * h, 2 * w, -1)
            return y + self.bias[...][None, None, None] if bias else y

        return call

    return wrong


def half_pixel(right):
    """align_corners=False."""
    return lambda x: jax.image.resize(x, (x.shape[0], 2 * x.shape[1], 2 * x.shape[2], x.shape[3]), "bilinear")


def nearest(right):
    """Repeats pixels."""
    return lambda x: jnp.repeat(jnp.repeat(x, 2, 1), 2, 2)


def padded(*sides, **how):
    """3x3 convolutions of something else than zeros around the image: `jnp.pad` by `sides`, and the inside of that."""

    def wrong(right):
        def call(self, x):
            if self.kernel.shape[0] == 1:
                return right(self, x)
            return right(self, jnp.pad(x, ((0, 0), sides, sides, (0, 0)), **how))[:, 1:-1, 1:-1]

        return call

    return wrong


def without_bias(right):
    """The bias left out."""

    def wrong(self, x):
        y = right(self, x)
        return y if self.bias is None else y - self.bias[...][None, None, None]

    return wrong


def alone(right):
    """Bands of an image with zeros around, where they have neighbors."""

    def wrong(x, image, start, rows):
        band = right(x, image, start, rows)
        return band.at[:, jnp.array([0, -1])].set(0)

    return wrong


def in_order(right):
    """Packed pixels in the order in which they do not lie in memory."""

    def wrong(x, kernel, rows=(1, 1), pixels=2):
        return _reversed(right(x, kernel, rows, pixels), pixels)

    return wrong


def gradient_in_order(right):
    """The kernel's gradient, for packed pixels in that order."""
    return lambda x, g, rows=(1, 1), pixels=1: right(x, _reversed(g, pixels), rows, pixels)


def _reversed(y, pixels: int):
    return y.reshape(*y.shape[:2], -1, pixels, y.shape[-1])[:, :, :, ::-1].reshape(y.shape)


def unpadded(right):
    """The border of the result is 0."""
    edge = jnp.array([0, -1])
    return lambda x, kernel: right(x, kernel).at[:, edge].set(0).at[:, :, edge].set(0)


def unturned(right):
    """The kernel's gradient for the kernel turned round, as of a true convolution."""
    return lambda x, g: right(x, g)[::-1, ::-1]


def biasless(right):
    """A layer of Flax without its bias."""
    return lambda self, x: right(self, x) - self.bias[...]


def with_antialias(antialias: bool):
    """Resizing that smooths on the way down, or does not, whatever is asked."""
    return lambda right: lambda x, shape, method, **how: right(x, shape, method, antialias=antialias)


def by_method(asked: str, taken: str):
    """Resizing by another method than is asked."""
    return lambda right: lambda x, shape, method, **how: right(x, shape, taken if method == asked else method, **how)


def edges_by_count(right):
    """Averages over the pixels inside the image."""
    return lambda x, *shape: right(x, *shape, count_include_pad=False)


def in_computed_type(right):
    """Statistics in the dtype of the computation."""

    def init(self, *args, dtype=jnp.float32, param_dtype=jnp.float32, **how):
        right(self, *args, dtype=dtype, param_dtype=dtype, **how)

    return init


def one_value_is_enough(right):
    """Trains on one value per channel: its variance is 0."""

    def wrong(self, x, valid):
        if x.shape[0] * x.shape[1] * x.shape[2] > 1:
            return right(self, x, valid)
        return x[0, 0, 0], jnp.zeros_like(x[0, 0, 0])

    return wrong


def rounded(right):
    """Results in bfloat16."""
    return lambda self, x: right(self, x).astype(jnp.bfloat16).astype(x.dtype)


def cut_off(right):
    """bfloat16 cut off from float32, not rounded."""

    def wrong(x, kernel):
        if x.dtype != jnp.bfloat16:
            return right(x, kernel)
        y = right(x.astype(jnp.float32), kernel.astype(jnp.float32))
        bits = jax.lax.bitcast_convert_type(y, jnp.uint32) & jnp.uint32(0xFFFF0000)
        return jax.lax.bitcast_convert_type(bits, jnp.float32).astype(jnp.bfloat16)

    return wrong


def straight_through(right):
    """The gradient goes to what was dropped, too."""

    def call(self, x, **how):
        return x + jax.lax.stop_gradient(right(self, x, **how) - x)

    return call


def weaker_in_evaluation(right):
    """Scaled down in evaluation, as where nothing is scaled up in training."""

    def call(self, x, **how):
        return right(self, x, **how) * (1 - self.rate if self.deterministic else 1)

    return call


def by_element(right):
    """Dropout of single elements where whole channels are asked."""
    return lambda self, rate, *, broadcast_dims=(), **how: right(self, rate, **how)


def mean_in_float32(right):
    """The mean rounded to 10 bits."""

    def wrong(*of):
        mean, *others = right(*of)
        return jax.lax.reduce_precision(mean, 8, 10), *others

    return wrong


def unscaled(right):
    """What stays is left as it is."""
    return lambda self, x, **how: right(self, x, **how) * (1 - self.rate)


def kept_share(right):
    """Keras' and PyTorch's rate read as the share that stays."""
    return lambda self, rate, **options: right(self, 1 - rate, **options)


def normalized(formula):
    """Another use of mean and deviation."""

    def wrong(right):
        def normalize(image, mean=None, std=None, *_):
            x = right(image)
            if mean is None:
                return x
            return formula(x, *(jnp.array(y, x.dtype, ndmin=x.ndim) for y in (mean, std)))

        return normalize

    return wrong


def powers_of_two(right):
    """uint16 / 65536, int16 / 32768, uint8 / 256."""

    def unit(image, dtype=jnp.float32):
        integers = jnp.issubdtype(image.dtype, jnp.integer)
        return image.astype(dtype) / (jnp.iinfo(image.dtype).max + 1 if integers else 1)

    return unit


NORM = layers.BatchNorm


def without_neighbors(right):
    """Takes zeros for the rows above and below a band."""
    return lambda bands, x, turn: right(bands, x, turn).at[:, [0, -1]].set(0)


def one_sign(right):
    """Transforms the second pixel of a tile's gradient with another sign."""
    return lambda first, second: right(first, second).at[3].set(second)


def bands_in_bfloat16(right):
    """Adds the bands of a kernel's gradient in bfloat16 where images have that."""
    return lambda x, g: convolution.kernel_gradient_in_bands(x, g) if x.dtype == jnp.bfloat16 else right(x, g)


MISTAKES = [
    mistake("convolution: no bias", unet.Conv, "__call__", without_bias),
    mistake("convolution: bands added in bfloat16", convolution, "kernel_gradient_on_cpu", bands_in_bfloat16),
    mistake("BatchNorm: running variance biased", NORM, "_statistics", statistics(biased_running)),
    mistake("BatchNorm: momentum 0.99", NORM, "__init__", setting("momentum", 0.01)),
    mistake("BatchNorm: momentum weighs the old value", NORM, "__init__", setting("momentum", 0.9)),
    mistake("BatchNorm: eps 1e-3", NORM, "__init__", setting("eps", 1e-3)),
    mistake("BatchNorm: eps 1e-6", NORM, "__init__", setting("eps", 1e-6)),
    mistake(
        "BatchNorm: normalizes with the unbiased variance",
        NORM,
        "_statistics",
        statistics(lambda self, x, mean, var, n, before: (mean, var * n / (n - 1))),
    ),
    mistake("BatchNorm: fast variance", NORM, "_statistics", fast_variance),
    mistake("BatchNorm: statistics kept in float32", NORM, "_statistics", float32_statistics),
    mistake("BatchNorm: statistics detached", NORM, "_statistics", detached),
    mistake(
        "BatchNorm: padding takes part",
        NORM,
        "_statistics",
        lambda right: lambda self, x, valid: right(self, x, None),
    ),
    mistake("BatchNorm: statistics of some pixels", layers, "_moments", few_pixels),
    mistake("BatchNorm with ReLU: gradient by the variance", layers, "_normalized_relu_gradients", not_halved),
    mistake("BatchNorm with ReLU: gradient at 0", layers, "_normalized_relu_gradients", through_at_zero),
    mistake("BatchNorm with ReLU: eps beside the root", layers, "_normalized_relu", eps_beside_root),
    mistake("max-pool from 0 on", unet, "max_pool", no_lower_than(0.0)),
    mistake("max-pool: the mean", unet, "max_pool", lambda right: lambda x: nnx.avg_pool(x, (2, 2), (2, 2))),
    mistake("max-pool from -1e30 on", unet, "max_pool", no_lower_than(-1e30)),
    mistake("max-pool by reshape, ties split", unet, "max_pool", split_ties),
    mistake("max-pool, last of the ties", unet, "max_pool", last_tie),
    mistake("ReLU by jnp.maximum", jax.nn, "relu", lambda right: lambda x: jnp.maximum(x, 0)),
    mistake("transposed convolution: kernel not flipped", unet.UpConv, "__call__", up_conv(lambda k: k[::-1, ::-1])),
    mistake("transposed convolution: rows and columns", unet.UpConv, "__call__", up_conv(lambda k: k.swapaxes(0, 1))),
    mistake("transposed convolution: no bias", unet.UpConv, "__call__", up_conv(lambda k: k, bias=False)),
    mistake("bilinear: align_corners=False", unet, "upsample_bilinear", half_pixel),
    mistake("bilinear: nearest instead", unet, "upsample_bilinear", nearest),
    mistake("convolution: pads by wrapping round", unet.Conv, "__call__", padded(1, 1, mode="wrap")),
    mistake("convolution: pads by reflection", unet.Conv, "__call__", padded(1, 1, mode="reflect")),
    mistake("convolution: pads right and below only", unet.Conv, "__call__", padded(0, 2)),
    mistake("convolution: bands without their neighbors", convolution, "_band", alone),
    mistake("convolution: packed pixels in another order", convolution, "packed", in_order),
    mistake("convolution: gradient of packed pixels", convolution, "packed_kernel_gradient", gradient_in_order),
    mistake("convolution: gradient of the turned kernel", convolution, "kernel_gradient_on_cpu", unturned),
    mistake("convolution: never packed", convolution, "_packing", lambda right: lambda *shape: 1),
    mistake("convolution: never by Winograd", winograd, "WIDE", lambda right: 10**6),
    mistake("convolution on a GPU: filled up in front", convolution, "_filled", filled_in_front),
    mistake("convolution on a GPU: flipped gradient", convolution, "kernel_gradient_on_gpu", unturned),
    mistake("convolution on a GPU: no padding", convolution, "forward_on_gpu", unpadded),
    mistake(
        "convolution by Winograd: rows and columns",
        winograd,
        "kernel_values",
        lambda right: lambda k: right(k.swapaxes(0, 1)),
    ),
    mistake("convolution by Winograd: bands without neighbors", winograd._Bands, "of_image", without_neighbors),
    mistake("convolution by Winograd: gradient without the last image", winograd, "gradient_of_kernel", without_last),
    mistake("convolution by Winograd: gradient by another sign", winograd, "_to_values", one_sign),
    mistake(
        "convolution by Winograd: gradient's rows and columns",
        winograd,
        "gradient_of_kernel",
        lambda right: lambda x, g: right(x, g).swapaxes(0, 1),
    ),
    mistake("convolution: rounded to bfloat16", unet.Conv, "__call__", rounded),
    mistake("convolution: bfloat16 cut off", convolution, "forward_on_cpu", cut_off),
    mistake("nnx.Conv: no bias", nnx.Conv, "__call__", biasless),
    mistake("nnx.ConvTranspose: no bias", nnx.ConvTranspose, "__call__", biasless),
    mistake("nnx.max_pool: the mean", nnx, "max_pool", lambda right: nnx.avg_pool),
    mistake("nnx.avg_pool: padding not counted", nnx, "avg_pool", edges_by_count),
    mistake("jax.image.resize: always smooth", jax.image, "resize", with_antialias(True)),
    mistake("jax.image.resize: never smooth", jax.image, "resize", with_antialias(False)),
    mistake("jax.image.resize: cubic", jax.image, "resize", by_method("bilinear", "cubic")),
    mistake("jax.image.resize: linear for nearest", jax.image, "resize", by_method("nearest", "bilinear")),
    mistake("GELU: approximate", jax.nn, "gelu", lambda right: lambda x, approximate: right(x, approximate=True)),
    mistake("ReLU: from 1e-37 on", jax.nn, "relu", lambda right: lambda x: jnp.maximum(right(x), 1e-37)),
    mistake("BatchNorm: statistics in the computed type", NORM, "__init__", in_computed_type),
    mistake("BatchNorm: one value per channel is enough", NORM, "_statistics", one_value_is_enough),
    mistake("BatchNorm: mean of 10 bits", layers, "_moments", mean_in_float32),
    mistake("dropout: gradient to all", nnx.Dropout, "__call__", straight_through),
    mistake("dropout: scaled down in evaluation", nnx.Dropout, "__call__", weaker_in_evaluation),
    mistake("dropout: elements, not channels", nnx.Dropout, "__init__", by_element),
    mistake("dropout: not scaled up", nnx.Dropout, "__call__", unscaled),
    mistake("dropout: the share that stays", nnx.Dropout, "__init__", kept_share),
    mistake("normalization: times the deviation", step, "normalize", normalized(lambda x, mean, std: (x - mean) * std)),
    mistake("normalization: deviation first", step, "normalize", normalized(lambda x, mean, std: x / std - mean)),
    mistake(
        "normalization: eps beside the deviation",
        step,
        "normalize",
        normalized(lambda x, mean, std: (x - mean) / (std + 1e-7)),
    ),
    mistake("normalization: bits, not range", step, "unit", powers_of_two),
]
