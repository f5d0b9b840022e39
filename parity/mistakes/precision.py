"""Float32 and bfloat16 lost on the way: invisible in float64."""

import jax
import jax.numpy as jnp

from jaxseg.nn import unet
from parity.mistakes import mistake
from parity.mistakes.layers import fast_variance


def low_statistics(right):
    """Statistics of the batch computed in the type of the computation."""

    def wrong(self, x, valid):
        mean, var = right(self, x.astype(jnp.bfloat16).astype(x.dtype), valid)
        return mean.astype(jnp.bfloat16).astype(x.dtype), var.astype(jnp.bfloat16).astype(x.dtype)

    return wrong


def low_logits(right):
    """Logits in bfloat16."""
    return lambda self, *args: right(self, *args).astype(jnp.bfloat16).astype(jnp.float32)


def ten_bits(right):
    """Inputs rounded to TF32's ten bits, where float32 is asked."""
    return lambda self, x: right(self, jax.lax.reduce_precision(x, 8, 10) if x.dtype == jnp.float32 else x)


MISTAKES = [
    mistake("BatchNorm: fast variance", unet.BatchNorm, "_statistics", fast_variance),
    mistake("BatchNorm: statistics in bfloat16", unet.BatchNorm, "_statistics", low_statistics),
    mistake("logits in bfloat16", unet.UNet, "__call__", low_logits),
    mistake("transposed convolution in TF32", unet.UpConv, "__call__", ten_bits),
]
