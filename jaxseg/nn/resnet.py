"""ResNet (He et al. 2016) as an encoder: features at five levels, with torchvision's structure. Images are `b h w c`.

Blocks have their stride in the 3x3 convolution, as torchvision's. A block whose input and output differ in size or
channels has a 1x1 convolution and a BatchNorm on the way around, `conv_down` and `norm_down`.
"""

import dataclasses
from typing import Literal, get_args

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from jaxseg.nn.initializers import Rule
from jaxseg.nn.layers import BatchNorm, Conv, norm_relu
from jaxseg.nn.network import caller
from jaxseg.nn.pooling import max_pool_3x3

Name = Literal["resnet18", "resnet34", "resnet50"]


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions, added to the input: torchvision's `BasicBlock`.

    - `in_features`: channels of the input
    - `width`: channels of the result
    - `strides`: 1 or 2, of the first convolution
    - `rule`, and `dtype` and `param_dtype` in `kinds`: as in `Conv`

    >>> from jaxseg.nn.initializers import RULES
    >>> BasicBlock(4, 8, 2, rule=RULES["article"], rngs=nnx.Rngs(0))(jax.numpy.ones((1, 6, 5, 4))).shape
    (1, 3, 3, 8)
    """

    expansion = 1

    def __init__(self, in_features: int, width: int, strides: int, *, rule: Rule, rngs: nnx.Rngs, **kinds):
        made = {"rule": rule, "use_bias": False, "rngs": rngs, **kinds}
        self.conv1, self.norm1 = Conv(in_features, width, 3, strides, **made), BatchNorm(width, **kinds)
        self.conv2, self.norm2 = Conv(width, width, 3, **made), BatchNorm(width, **kinds)
        self.conv_down, self.norm_down = _down(in_features, width, strides, made, kinds)

    def __call__(
        self, x: Float[Array, "b h w i"], valid: Bool[Array | np.ndarray, " b"] | None = None
    ) -> Float[Array, "b h2 w2 o"]:
        """Features. `valid` marks the samples that count in BatchNorm's statistics."""
        y = norm_relu(self.norm1, self.conv1(x), valid)
        y = self.norm2(self.conv2(y), valid)
        return jax.nn.relu(y + _around(self, x, valid))


class Bottleneck(nnx.Module):
    """1x1, 3x3 and 1x1 convolutions, added to the input: torchvision's `Bottleneck`, with the stride in the 3x3 one.

    - `in_features`: channels of the input
    - `width`: channels of the 3x3 convolution; the result has four times as many
    - `strides`: 1 or 2, of the 3x3 convolution
    - `rule`, and `dtype` and `param_dtype` in `kinds`: as in `Conv`

    >>> from jaxseg.nn.initializers import RULES
    >>> Bottleneck(8, 2, 2, rule=RULES["article"], rngs=nnx.Rngs(0))(jax.numpy.ones((1, 6, 5, 8))).shape
    (1, 3, 3, 8)
    """

    expansion = 4

    def __init__(self, in_features: int, width: int, strides: int, *, rule: Rule, rngs: nnx.Rngs, **kinds):
        made = {"rule": rule, "use_bias": False, "rngs": rngs, **kinds}
        wide = 4 * width
        self.conv1, self.norm1 = Conv(in_features, width, 1, **made), BatchNorm(width, **kinds)
        self.conv2, self.norm2 = Conv(width, width, 3, strides, **made), BatchNorm(width, **kinds)
        self.conv3, self.norm3 = Conv(width, wide, 1, **made), BatchNorm(wide, **kinds)
        self.conv_down, self.norm_down = _down(in_features, wide, strides, made, kinds)

    def __call__(
        self, x: Float[Array, "b h w i"], valid: Bool[Array | np.ndarray, " b"] | None = None
    ) -> Float[Array, "b h2 w2 o"]:
        """Features. `valid` marks the samples that count in BatchNorm's statistics."""
        y = norm_relu(self.norm1, self.conv1(x), valid)
        y = norm_relu(self.norm2, self.conv2(y), valid)
        y = self.norm3(self.conv3(y), valid)
        return jax.nn.relu(y + _around(self, x, valid))


def _down(
    inputs: int, outputs: int, strides: int, made: dict, kinds: dict
) -> tuple[Conv, BatchNorm] | tuple[None, None]:
    """Convolution and BatchNorm of the way around a block; None for both where it returns its input."""
    if strides == 1 and inputs == outputs:
        return None, None
    return Conv(inputs, outputs, 1, strides, **made), BatchNorm(outputs, **kinds)


def _around(block: BasicBlock | Bottleneck, x, valid):
    """The way around a block: `x`, or `x` in the size and channels of the result."""
    return x if block.conv_down is None else block.norm_down(block.conv_down(x), valid)


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Kind and number of the blocks of a ResNet's four layers."""

    block: type[BasicBlock] | type[Bottleneck]
    depths: tuple[int, int, int, int]


ARCHITECTURES: dict[str, Architecture] = {
    "resnet18": Architecture(BasicBlock, (2, 2, 2, 2)),
    "resnet34": Architecture(BasicBlock, (3, 4, 6, 3)),
    "resnet50": Architecture(Bottleneck, (3, 4, 6, 3)),
}
assert tuple(ARCHITECTURES) == get_args(Name)


class ResNet(nnx.Module):
    """Features of a ResNet, without its average pooling and classifier. The module's names are torchvision's.

    - `name`: architecture
    - `in_channels`: channels of an image
    - `base`: channels of the first convolution; torchvision's have 64
    - `remat`: True to recompute each block in the backward pass
    - `rule`, and `dtype` and `param_dtype` in `kinds`: as in `Conv`

    >>> from jaxseg.nn.initializers import RULES
    >>> net = nnx.eval_shape(lambda: ResNet("resnet50", 3, rule=RULES["article"], rngs=nnx.Rngs(0)))
    >>> found = nnx.eval_shape(lambda net, x: net(x), net, jax.numpy.ones((2, 64, 96, 3)))
    >>> [features.shape[1:] for features in found][:3]
    [(32, 48, 64), (16, 24, 256), (8, 12, 512)]
    """

    def __init__(
        self,
        name: Name,
        in_channels: int,
        *,
        base: int = 64,
        remat: bool = False,
        rule: Rule,
        rngs: nnx.Rngs,
        **kinds,
    ):
        block, made = ARCHITECTURES[name].block, {"rule": rule, "rngs": rngs, **kinds}
        self.name, self.in_channels, self.remat = name, in_channels, remat
        self.widths = (base, *(block.expansion * base << i for i in range(4)))
        self.conv1, self.norm1 = Conv(in_channels, base, 7, 2, use_bias=False, **made), BatchNorm(base, **kinds)
        for i, depth in enumerate(ARCHITECTURES[name].depths):
            before, after = self.widths[i], self.widths[i + 1]
            first = block(before, base << i, 2 if i else 1, **made)
            others = (block(after, base << i, 1, **made) for _ in range(depth - 1))
            setattr(self, f"layer{i + 1}", nnx.List([first, *others]))

    def __call__(
        self, x: Float[Array | np.ndarray, "b h w c"], valid: Bool[Array | np.ndarray, " b"] | None = None
    ) -> list[Float[Array, "b h2 w2 o"]]:
        """Features at 1/2, 1/4, 1/8, 1/16 and 1/32 of height and width, rounded up."""
        run = caller(self.remat)
        features = [norm_relu(self.norm1, self.conv1(x), valid)]
        y = max_pool_3x3(features[0])
        for blocks in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in blocks:
                y = run(block, y, valid)
            features.append(y)
        return features
