"""The U-Net, and `unet_from`, which builds this one or the one with an encoder. Images are `b h w c`.

Layout as in milesial's Pytorch-UNet. Every level has (3x3 convolution, BatchNorm, ReLU) twice. Down: 2x2 max-pooling.
Up: a 2x2 transposed convolution or bilinear interpolation, then the skip connection first in the concatenation.
The head is a 1x1 convolution.
"""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from jaxseg.base.config import Model
from jaxseg.nn import initializers
from jaxseg.nn.blocks import ConvBlock
from jaxseg.nn.encoder_unet import EncoderUNet
from jaxseg.nn.initializers import Rule
from jaxseg.nn.layers import Conv, Dropout, UpConv, max_pool, upsample_bilinear
from jaxseg.nn.network import Network, caller


class Up(nnx.Module):
    """Doubles height and width, concatenates the skip connection, then applies a ConvBlock.

    - `below`: channels of the level below
    - `skip`: channels of the skip connection
    - `outputs`: channels of the result
    - `upsample`: "transpose" or "bilinear"
    - `rule`, `conv_bias`, and `dtype` and `param_dtype` in `kinds`: as in `ConvBlock`

    >>> from jaxseg.nn.initializers import RULES
    >>> up = Up(8, 4, 4, upsample="transpose", rule=RULES["article"], conv_bias=True, rngs=nnx.Rngs(0))
    >>> up(jnp.ones((1, 2, 2, 8)), jnp.ones((1, 5, 5, 4))).shape
    (1, 5, 5, 4)
    """

    def __init__(
        self,
        below: int,
        skip: int,
        outputs: int,
        *,
        upsample: str,
        rule: Rule,
        conv_bias: bool,
        rngs: nnx.Rngs,
        **kinds,
    ):
        if upsample == "transpose":
            self.up = UpConv(below, skip, rule=rule, rngs=rngs, **kinds)
            joined, middle = 2 * skip, outputs
        else:
            self.up = None
            joined = skip + below
            middle = joined // 2
        self.block = ConvBlock(joined, outputs, middle, rule=rule, conv_bias=conv_bias, rngs=rngs, **kinds)

    def __call__(
        self,
        x: Float[Array, "b h w i"],
        skip: Float[Array, "b h2 w2 s"],
        valid: Bool[Array | np.ndarray, " b"] | None = None,
    ) -> Float[Array, "b h2 w2 o"]:
        """Joins `x` from below with `skip` from the same level. The result has the height and width of `skip`."""
        x = upsample_bilinear(x) if self.up is None else self.up(x)
        rows, columns = skip.shape[1] - x.shape[1], skip.shape[2] - x.shape[2]
        if rows or columns:  # pooling dropped an odd row or column
            x = jnp.pad(x, [(0, 0), (rows // 2, rows - rows // 2), (columns // 2, columns - columns // 2), (0, 0)])
        return self.block(jnp.concatenate([skip, x], axis=-1), valid)


class UNet(Network):
    """U-Net (Ronneberger et al. 2015) with BatchNorm. Keeps height and width: images `b h w c` -> logits `b h w k`.

    - `widths`: channels at each level, two levels or more. Each step down halves the sides, so an image needs at least
      2**(len(widths) - 1) pixels a side
    - `in_channels`: c
    - `classes`: k
    - `upsample`: "transpose" for UpConv, "bilinear" for interpolation with the halved widths of milesial's network
    - `conv_bias`: True for biases in the 3x3 convolutions
    - `init`: a name in `initializers.RULES`
    - `dropout`: 0 to 1, the probability that a feature at the end of the contracting path is dropped in training,
      element by element, the others scaled up (`torch.nn.Dropout`)
    - `remat`: True to recompute each level in the backward pass (`jax.checkpoint`): less memory, more time
    - `dtype`: of the computation; logits are at least float32
    - `param_dtype`: of parameters and statistics
    - `rngs`: draws the weights from its `params` stream

    Raises ValueError for fewer than two levels and for another `upsample`.

    >>> net = UNet((4, 8), in_channels=3, classes=2, rngs=nnx.Rngs(0))
    >>> net(jnp.zeros((1, 4, 6, 3))).shape
    (1, 4, 6, 2)
    >>> net.least_side, net.parameters
    (2, 1786)
    """

    def __init__(
        self,
        widths: Sequence[int] = (16, 32, 64, 128, 256),
        in_channels: int = 3,
        classes: int = 2,
        *,
        upsample: Literal["transpose", "bilinear"] = "transpose",
        conv_bias: bool = True,
        init: str = "article",
        dropout: float = 0.0,
        remat: bool = False,
        dtype=jnp.float32,
        param_dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        if len(widths) < 2 or upsample not in ("transpose", "bilinear"):
            raise ValueError(
                f"`widths` is {tuple(widths)} and `upsample` {upsample!r}; "
                "expected two levels or more and 'transpose' or 'bilinear'"
            )
        rule = initializers.RULES[init]
        kinds = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        halved = 2 if upsample == "bilinear" else 1
        encoder = [*widths[:-1], widths[-1] // halved]
        decoder = [widths[0], *(width // halved for width in widths[1:-1])]  # outputs of each Up
        self.in_channels, self.remat = in_channels, remat
        self.down = nnx.List(
            ConvBlock(i, o, rule=rule, conv_bias=conv_bias, **kinds) for i, o in zip([in_channels, *encoder], encoder)
        )
        self.dropout = Dropout(dropout)
        below = encoder[-1]
        self.up = nnx.List()
        for skip, outputs in zip(encoder[-2::-1], decoder[::-1]):
            self.up.append(Up(below, skip, outputs, upsample=upsample, rule=rule, conv_bias=conv_bias, **kinds))
            below = outputs
        self.head = Conv(below, classes, 1, rule=rule, **kinds)

    @property
    def least_side(self) -> int:
        """Smallest height and width of an image, in pixels."""
        return 2 ** len(self.up)

    def _logits(self, x, valid, key):
        run = caller(self.remat)
        skips = []
        for level, block in enumerate(self.down):
            x = run(block, max_pool(x) if level else x, valid)
            skips.append(x)
        x = self.dropout(skips.pop(), rngs=key)
        for up in self.up:
            x = run(up, x, skips.pop(), valid)
        return self.head(x)


def evaluation(net: Network) -> Network:
    """View of `net` for evaluation: shares its weights, uses its running statistics, drops nothing.

    >>> net = UNet((4, 8), rngs=nnx.Rngs(0))
    >>> evaluation(net).down[0].norm1.use_running_average, net.down[0].norm1.use_running_average
    (True, False)
    """
    return nnx.view(net, use_running_average=True, deterministic=True)


def unet_from(
    settings: Model, *, in_channels: int, classes: int, seed: int, dtype: jax.typing.DTypeLike = jnp.float32
) -> Network:
    """Builds the network that `settings` describe: a U-Net, or one with a ResNet as encoder.

    - `settings`: encoder or widths, upsampling, initializer, dropout, precision
    - `in_channels`: channels of an image
    - `classes`: channels of the logits
    - `seed`: of the initial weights
    - `dtype`: of parameters and statistics, and of the computation in full precision

    >>> net = unet_from(Model(widths=(4, 8)), in_channels=3, classes=2, seed=0)
    >>> net.in_channels, net.head.kernel.shape
    (3, (1, 1, 4, 2))
    """
    options = {"in_channels": in_channels, "classes": classes, "rngs": nnx.Rngs(seed), "param_dtype": dtype}
    options |= {name: getattr(settings, name) for name in ("init", "dropout", "remat")}
    options["dtype"] = {"f32": dtype, "bf16": jnp.bfloat16}[settings.precision]
    if settings.encoder is not None:
        return EncoderUNet(settings.encoder, **options)
    return UNet(settings.widths, upsample=settings.upsample, conv_bias=settings.conv_bias, **options)
