"""Losses of precision in float32 and bfloat16, which float64 does not show."""

import jax
import jax.numpy as jnp

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


MISTAKES = [
    mistake("BatchNorm: fast variance", layers.BatchNorm, "_statistics", fast_variance),
    mistake("BatchNorm: statistics in bfloat16", layers.BatchNorm, "_statistics", low_statistics),
    mistake("logits in bfloat16", unet.UNet, "__call__", low_logits),
    mistake("transposed convolution in TF32", unet.UpConv, "__call__", ten_bits),
]
