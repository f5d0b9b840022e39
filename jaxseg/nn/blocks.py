"""The block of convolutions that both kinds of U-Net are made of. Images are `b h w c`."""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from jaxseg.nn.initializers import Rule
from jaxseg.nn.layers import BatchNorm, Conv, norm_relu


class ConvBlock(nnx.Module):
    """3x3 convolution, BatchNorm, ReLU; twice. Keeps height and width.

    - `in_features`, `out_features`: channels of input and output
    - `middle`: channels between the two convolutions; `out_features` if not given
    - `rule`: initial weights of the convolutions
    - `conv_bias`: True for biases in the convolutions
    - `dtype`: of the computation
    - `param_dtype`: of parameters and statistics

    >>> from jaxseg.nn.initializers import RULES
    >>> block = ConvBlock(3, 8, rule=RULES["article"], rngs=nnx.Rngs(0))
    >>> block(jnp.ones((2, 4, 4, 3))).shape
    (2, 4, 4, 8)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        middle: int | None = None,
        *,
        rule: Rule,
        conv_bias: bool = True,
        dtype=jnp.float32,
        param_dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        middle = middle or out_features
        kinds = {"dtype": dtype, "param_dtype": param_dtype}
        self.conv1 = Conv(in_features, middle, 3, rule=rule, use_bias=conv_bias, rngs=rngs, **kinds)
        self.norm1 = BatchNorm(middle, **kinds)
        self.conv2 = Conv(middle, out_features, 3, rule=rule, use_bias=conv_bias, rngs=rngs, **kinds)
        self.norm2 = BatchNorm(out_features, **kinds)

    def __call__(
        self, x: Float[Array, "b h w i"], valid: Bool[Array | np.ndarray, " b"] | None = None
    ) -> Float[Array, "b h w o"]:
        """Features `b h w o`. `valid` marks the samples that count in BatchNorm's statistics."""
        x = norm_relu(self.norm1, self.conv1(x), valid)
        return norm_relu(self.norm2, self.conv2(x), valid)
