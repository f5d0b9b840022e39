"""U-Net with a ResNet as encoder, with the structure and names of segmentation_models.pytorch's `Unet`.

Written from the papers' description and the names of the weights, not from its code. Any height and width: features
that are a pixel too large after upsampling lose their last row or column.
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

BASE = 64
"""Channels of the encoder's first convolution in the published networks."""
DEPTHS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)}


class Block(nn.Module):
    """Basic block: 3x3 convolutions of `width` channels. `deep`: bottleneck of 1x1, 3x3 and 1x1 convolutions.

    The result has `width` channels, or four times as many if `deep`. Its size is divided by `stride`, in the first 3x3
    convolution of a basic block and in the only one of a bottleneck.
    """

    def __init__(self, inputs: int, width: int, stride: int, deep: bool):
        super().__init__()
        outputs = 4 * width if deep else width
        shapes = [(inputs, width, 1, 1), (width, width, 3, stride), (width, outputs, 1, 1)]
        if not deep:
            shapes = [(inputs, width, 3, stride), (width, width, 3, 1)]
        for number, (before, after, size, step) in enumerate(shapes, start=1):
            conv = nn.Conv2d(before, after, size, step, padding=size // 2, bias=False)
            self.add_module(f"conv{number}", conv)
            self.add_module(f"bn{number}", nn.BatchNorm2d(after))
        self.convolutions, self.downsample = len(shapes), None
        around = stride > 1 or inputs != outputs
        self.relus = [f"relu{number}" for number in range(1, len(shapes) + 1)]
        if around:
            self.relus[-1] = "relu_down"
        for name in self.relus:
            self.add_module(name, nn.ReLU())
        if around:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features float [b c h w]; ReLU follows the addition."""
        y = x
        for number in range(1, self.convolutions + 1):
            y = getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(y))
            if number == self.convolutions:
                y = y + (x if self.downsample is None else self.downsample(x))
            y = getattr(self, self.relus[number - 1])(y)
        return y


class Encoder(nn.Module):
    """Features at 1/2, 1/4, 1/8, 1/16 and 1/32 of height and width, rounded up."""

    def __init__(self, name: str, in_channels: int, base: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, base, 7, 2, padding=3, bias=False)
        self.bn1, self.relu, self.maxpool = nn.BatchNorm2d(base), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1)
        deep, self.widths = name == "resnet50", [base]
        for number, depth in enumerate(DEPTHS[name]):
            blocks = []
            for i in range(depth):
                stride = 2 if number and not i else 1
                before = self.widths[-1] if not i else (4 if deep else 1) * (base << number)
                blocks.append(Block(before, base << number, stride, deep))
            self.add_module(f"layer{number + 1}", nn.Sequential(*blocks))
            self.widths.append((4 if deep else 1) * (base << number))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Features from the largest to the smallest."""
        features = [self.relu(self.bn1(self.conv1(x)))]
        y = self.maxpool(features[0])
        for number in range(1, 5):
            y = getattr(self, f"layer{number}")(y)
            features.append(y)
        return features


class Convolved(nn.Sequential):
    """3x3 convolution, BatchNorm and ReLU."""

    def __init__(self, inputs: int, outputs: int):
        conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        super().__init__(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class DecoderBlock(nn.Module):
    """Nearest upsampling, concatenation with the skip, two 3x3 convolutions."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv1, self.conv2 = Convolved(inputs, outputs), Convolved(outputs, outputs)

    def forward(self, x: torch.Tensor, skip: torch.Tensor | None) -> torch.Tensor:
        """Features of the size of `skip`, or of twice that of `x`."""
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        if skip is not None:
            x = torch.cat([x[:, :, : skip.shape[2], : skip.shape[3]], skip], dim=1)
        return self.conv2(self.conv1(x))


class EncoderUNet(nn.Module):
    """Maps images float [b c h w] to logits [b k h w].

    encoder: "resnet18", "resnet34" or "resnet50".
    in_channels, classes: c and k.
    base: channels of the encoder's first convolution; BASE if None.
    """

    def __init__(self, encoder: str, in_channels: int = 3, classes: int = 2, base: int | None = None):
        super().__init__()
        base = base or BASE
        self.encoder = Encoder(encoder, in_channels, base)
        outputs = [4 * base, 2 * base, base, base // 2, base // 4]
        *skips, below = self.encoder.widths
        blocks = []
        for skip, width in zip([*reversed(skips), 0], outputs):
            blocks.append(DecoderBlock(below + skip, width))
            below = width
        self.decoder = nn.Module()
        self.decoder.blocks = nn.ModuleList(blocks)
        self.segmentation_head = nn.Sequential(OrderedDict({"0": nn.Conv2d(below, classes, 3, padding=1)}))
        self.frozen = False

    def freeze(self, frozen: bool) -> None:
        """Holds the encoder's weights and running statistics, or lets them go on, as `freeze_encoder` of the original.

        A frozen encoder evaluates. Its parameters get no gradient, so an optimizer skips them.
        """
        self.frozen = frozen
        self.encoder.requires_grad_(not frozen)
        self.train(self.training)

    def train(self, mode: bool = True) -> "EncoderUNet":
        """As `Module.train`, but for an encoder that is frozen."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    def forward(self, x: torch.Tensor, kept: torch.Tensor | None = None) -> torch.Tensor:
        """Logits float [b k h w] of images float [b c h w].

        kept: factors [b c' h' w'] of the deepest features: 1 / (1 - p) where dropout keeps one, 0 elsewhere.
        """
        *skips, y = self.encoder(x)
        y = y if kept is None else y * kept
        for block, skip in zip(self.decoder.blocks, [*reversed(skips), None]):
            y = block(y, skip)
        return self.segmentation_head(y)[:, :, : x.shape[2], : x.shape[3]]


def in_channels_of(weight: torch.Tensor, channels: int) -> torch.Tensor:
    """The first convolution's weight [o 3 h w] for another number of channels, by the original's rule.

    One channel gets the sum. More get red, green, blue in turn, times 3 / channels.
    """
    if channels == 3:
        return weight
    if channels == 1:
        return weight.sum(1, keepdim=True)
    return torch.stack([weight[:, i % 3] for i in range(channels)], dim=1) * (3 / channels)
