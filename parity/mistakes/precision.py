"""Losses of precision in float32 and bfloat16, which float64 does not show."""

import jax
import jax.numpy as jnp

from jaxseg.learn import losses
from jaxseg.nn import layers, unet
from parity.mistakes import mistake
from parity.mistakes.layers import fast_variance


def low_statistics(right):
    """Computes the statistics of the batch in bfloat16."""

    def wrong(self, x, valid):
        mean, var = right(self, x.astype(jnp.bfloat16).astype(x.dtype), valid)
        return mean.astype(jnp.bfloat16).astype(x.dtype), var.astype(jnp.bfloat16).astype(x.dtype)

    return wrong


def low_logits(right):
    """Rounds logits to bfloat16."""
    return lambda self, *args: right(self, *args).astype(jnp.bfloat16).astype(jnp.float32)


def ten_bits(right):
    """Rounds float32 inputs to the ten bits of TF32."""
    return lambda self, x: right(self, jax.lax.reduce_precision(x, 8, 10) if x.dtype == jnp.float32 else x)


def low_loss(right):
    """Computes the loss in bfloat16, to save memory."""
    return lambda logits, *args, **options: right(logits.astype(jnp.bfloat16), *args, **options)


def low_factors(right):
    """Rounds the factors of float32 convolutions to bfloat16, JAX's default on a TPU."""
    return lambda x, kernel: right(*(jax.lax.reduce_precision(a, 8, 7) for a in (x, kernel)))


def norm_in_network_dtype(right):
    """Normalizes in the dtype of the network."""

    def apply(self, function, x, valid):
        x = x.astype(self.dtype)
        mean, var = (self.mean[...], self.var[...]) if self.use_running_average else self._statistics(x, valid)
        mean, var, scale, bias = (a.astype(self.dtype) for a in (mean, var, self.scale[...], self.bias[...]))
        return function(x, mean, var, scale, bias, self.eps)

    return apply


def statistics_in_network_dtype(right):
    """Keeps BatchNorm's parameters and statistics in the dtype of the network."""
    return lambda self, features, *, dtype, param_dtype, **options: right(
        self, features, dtype=dtype, param_dtype=dtype, **options
    )


def low_bias(right):
    """Adds the bias in the dtype of the features, so its gradient is summed in that."""
    return lambda y, bias: y + bias.astype(y.dtype)


def low_sums(right):
    """Sums pixels one by one in the dtype of the network, as a kernel without an accumulator of its own does."""

    def mean(x):
        return jax.lax.reduce(x, x.dtype.type(0), jax.lax.add, (0, 1, 2)) / (x.size // x.shape[-1])

    def statistics(self, x, valid):
        right(self, x, valid)
        x = x.astype(self.dtype)
        center = mean(x)
        return center.astype(jnp.float32), mean(jnp.square(x - center)).astype(jnp.float32)

    return statistics


MISTAKES = [
    mistake("BatchNorm: fast variance", layers.BatchNorm, "_statistics", fast_variance),
    mistake("BatchNorm: statistics in bfloat16", layers.BatchNorm, "_statistics", low_statistics),
    mistake("BatchNorm: in the network's dtype", layers.BatchNorm, "_apply", norm_in_network_dtype),
    mistake("BatchNorm: kept in the network's dtype", layers.BatchNorm, "__init__", statistics_in_network_dtype),
    mistake("BatchNorm: sums in the network's dtype", layers.BatchNorm, "_statistics", low_sums),
    mistake("logits in bfloat16", unet.UNet, "__call__", low_logits),
    mistake("loss in bfloat16", losses, "cross_entropy", low_loss),
    mistake("convolution of bfloat16", layers, "conv3x3", low_factors),
    mistake("bias: gradient in the network's dtype", layers, "_add_bias", low_bias),
    mistake("transposed convolution in TF32", unet.UpConv, "__call__", ten_bits),
]
