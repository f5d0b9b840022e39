"""U-Net with a ResNet as encoder: `Unet` of segmentation_models.pytorch. Images are `b h w c`.

Decoder: nearest upsampling, the skip connection last in the concatenation, two 3x3 convolutions without bias. The head
is a 3x3 convolution. segmentation_models.pytorch takes images whose sides are multiples of 32. Here any side from 32 on
will do: features that come out a pixel too large after upsampling are cut to the size of the skip connection, below and
on the right. Where 32 divides the sides there is nothing to cut.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from jaxseg.nn import initializers
from jaxseg.nn.blocks import ConvBlock
from jaxseg.nn.layers import Conv, Dropout, upsample_nearest
from jaxseg.nn.network import Network, caller
from jaxseg.nn.resnet import ARCHITECTURES, Name, ResNet

BASE = 64
"""Channels of the encoder's first convolution."""


class UpBlock(nnx.Module):
    """Doubles height and width, concatenates the skip connection if there is one, then applies a ConvBlock.

    - `below`: channels of the level below
    - `skip`: channels of the skip connection; 0 for none
    - `outputs`: channels of the result
    - `rule`, and `dtype`, `param_dtype` and `rngs` in `kinds`: as in `ConvBlock`

    >>> from jaxseg.nn.initializers import RULES
    >>> up = UpBlock(8, 4, 2, rule=RULES["article"], rngs=nnx.Rngs(0))
    >>> up(jnp.ones((1, 3, 3, 8)), jnp.ones((1, 5, 6, 4))).shape
    (1, 5, 6, 2)
    """

    def __init__(self, below: int, skip: int, outputs: int, **kinds):
        self.block = ConvBlock(below + skip, outputs, conv_bias=False, **kinds)

    def __call__(
        self,
        x: Float[Array, "b h w i"],
        skip: Float[Array, "b h2 w2 s"] | None = None,
        valid: Bool[Array | np.ndarray, " b"] | None = None,
    ) -> Float[Array, "b h2 w2 o"]:
        """Features with the height and width of `skip`, which may be 1 less than twice those of `x`."""
        x = upsample_nearest(x)
        if skip is not None:
            x = jnp.concatenate([x[:, : skip.shape[1], : skip.shape[2]], skip], axis=-1)
        return self.block(x, valid)


class EncoderUNet(Network):
    """`segmentation_models_pytorch.Unet(encoder, in_channels=, classes=)`. Images `b h w c` -> logits `b h w k`.

    - `encoder`: "resnet18", "resnet34" or "resnet50"
    - `in_channels`: c
    - `classes`: k
    - `base`: channels of the encoder's first convolution; 64 if not given, as torchvision's weights have. The decoder
      has 4, 2, 1, 1/2 and 1/4 times as many
    - `init`: a name in `initializers.RULES`
    - `dropout`: 0 to 1, the probability that one of the deepest features is dropped in training
    - `remat`: True to recompute each block in the backward pass: less memory, more time
    - `dtype`: of the computation; logits are at least float32
    - `param_dtype`: of parameters and statistics
    - `rngs`: draws the weights from its `params` stream

    Raises ValueError for another `encoder`.

    >>> net = nnx.eval_shape(lambda: EncoderUNet("resnet34", in_channels=3, classes=2, rngs=nnx.Rngs(0)))
    >>> nnx.eval_shape(lambda net, x: net(x), net, jnp.zeros((2, 40, 33, 3))).shape, net.least_side, net.parameters
    ((2, 40, 33, 2), 32, 24436514)
    """

    least_side = 32

    def __init__(
        self,
        encoder: Name,
        in_channels: int = 3,
        classes: int = 2,
        *,
        base: int | None = None,
        init: str = "article",
        dropout: float = 0.0,
        remat: bool = False,
        dtype=jnp.float32,
        param_dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        if encoder not in ARCHITECTURES:
            raise ValueError(f"`encoder` is {encoder!r}; expected one of {', '.join(ARCHITECTURES)}")
        base = base or BASE
        kinds = {"rule": initializers.RULES[init], "dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.in_channels, self.remat = in_channels, remat
        self.frozen = False
        self.encoder = ResNet(encoder, in_channels, base=base, remat=remat, **kinds)
        self.dropout = Dropout(dropout)
        *skips, below = self.encoder.widths
        self.decoder = nnx.List()
        for skip, outputs in zip([*skips[::-1], 0], [4 * base, 2 * base, base, base // 2, base // 4]):
            self.decoder.append(UpBlock(below, skip, outputs, **kinds))
            below = outputs
        self.segmentation_head = Conv(below, classes, 3, **kinds)

    def _logits(self, x, valid, key):
        run = caller(self.remat)
        features = self.encoder(x, valid)
        *skips, y = jax.lax.stop_gradient(features) if self.frozen else features
        y = self.dropout(y, rngs=key)
        for block, skip in zip(self.decoder, [*skips[::-1], None]):
            y = run(block, y, skip, valid)
        return self.segmentation_head(y)[:, : x.shape[1], : x.shape[2]]


def with_frozen_encoder(net: EncoderUNet) -> EncoderUNet:
    """View of `net` whose encoder gets no gradient and uses its running statistics, as `Unet.freeze_encoder` does.

    It shares all weights and statistics with `net`.

    >>> net = nnx.eval_shape(lambda: EncoderUNet("resnet18", rngs=nnx.Rngs(0)))
    >>> view = with_frozen_encoder(net)
    >>> view.encoder.norm1.use_running_average, net.encoder.norm1.use_running_average
    (True, False)
    """
    view = nnx.view(net)
    view.encoder, view.frozen = nnx.view(net.encoder, use_running_average=True), True
    return view
