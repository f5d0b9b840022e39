"""Initial weights by the defaults of JAX and Flax, and wrong fans, gains and biases."""

import math

import jax
import jax.numpy as jnp

from jaxseg.nn import initializers, layers
from parity.mistakes import mistake

Rule = initializers.Rule


def truncated(right):
    """Truncates normals as JAX's he_normal and glorot_normal do: cut at two standard deviations, then rescaled."""

    def normal(std):
        cut = jax.nn.initializers.truncated_normal(std / 0.87962566103423978, lower=-2.0, upper=2.0)
        return lambda key, shape, dtype=jnp.float32: cut(key, shape, dtype)

    return normal


def article(**changes):
    """Changes an initializer of the article's rule."""
    return lambda rules: rules | {"article": Rule(**(vars(rules["article"]) | changes))}


def swapped(right):
    """Exchanges fan_in and fan_out."""
    return lambda shape, transposed=False: right(shape, transposed)[::-1]


def no_gain(right):
    """Makes every gain 1."""
    return lambda nonlinearity, param=0.0: 1.0 if right(nonlinearity, param) else 0.0


def bias_law(make):
    """Gives biases another law."""
    return lambda right: lambda kernel_shape, *, transposed=False: make(kernel_shape, transposed)


def zero_bias(kernel_shape, transposed):
    """Zero, Flax's default for biases."""
    return initializers.constant(0.0)


def bias_of_other_fan(kernel_shape, transposed):
    """Uniform with its bound from fan_out."""
    return initializers.uniform(1 / math.sqrt(initializers.fans(kernel_shape, transposed)[1]))


def same_draws(right):
    """Ignores the key."""
    return lambda draw: lambda key, shape, dtype=jnp.float32: right(draw)(jax.random.key(0), shape, dtype)


MISTAKES = [
    mistake("normals truncated", initializers, "normal", truncated),
    mistake(
        "uniform's bound is its standard deviation",
        initializers,
        "uniform",
        lambda right: lambda bound: right(bound / math.sqrt(3)),
    ),
    mistake("fans exchanged", initializers, "fans", swapped),
    mistake(
        "fans of transposed convolutions by their own shape",
        initializers,
        "fans",
        lambda right: lambda shape, transposed=False: right(shape),
    ),
    mistake("gain omitted", initializers, "calculate_gain", no_gain),
    mistake(
        "leaky ReLU's slope ignored",
        initializers,
        "calculate_gain",
        lambda right: lambda nonlinearity, param=0.0: right(nonlinearity),
    ),
    mistake(
        "article: fan_in for fan_out",
        initializers,
        "RULES",
        article(conv=initializers.kaiming_normal(nonlinearity="relu")),
    ),
    mistake(
        "article: Flax's he_normal",
        initializers,
        "RULES",
        article(conv=jax.nn.initializers.he_normal()),
    ),
    mistake("article: Flax's default kernels", initializers, "RULES", article(conv=jax.nn.initializers.lecun_normal())),
    mistake(
        "article: transposed convolutions by the rule too",
        initializers,
        "RULES",
        article(up=initializers.kaiming_normal(mode="fan_out", nonlinearity="relu", transposed=True)),
    ),
    mistake("biases zero", layers, "torch_default_bias", bias_law(zero_bias)),
    mistake("biases bound by fan_out", layers, "torch_default_bias", bias_law(bias_of_other_fan)),
    mistake("every key draws the same", initializers, "_drawn", same_draws),
    mistake(
        "BatchNorm's scale starts at 0",
        layers.BatchNorm,
        "__init__",
        lambda right: (
            lambda self, *a, **k: (right(self, *a, **k), self.scale.set_value(jnp.zeros_like(self.scale[...])))[0]
        ),
    ),
]
