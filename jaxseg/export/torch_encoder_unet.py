"""A U-Net with a ResNet as encoder in PyTorch, with the weights of a run of jaxseg.

Structure and names are those of `Unet` in segmentation_models.pytorch. Images may have any height and width.

    from model import load

    net = load("model.safetensors")
    classes = net(images).argmax(1)  # images [b c h w] as files have them -> logits [b k h w]

Needs torch and safetensors. `SETTINGS` says which channels an image has, in which order, and how it is normalized.
"""

import torch
import torch.nn.functional as F
from torch import nn

SETTINGS = {}

DEPTHS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)}
"""Blocks of each layer."""


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, added to the input."""

    expansion = 1

    def __init__(self, inputs, width, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = downsample(inputs, width, stride)

    def forward(self, x):
        """Features."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, added to the input; the stride is in the 3x3 one."""

    expansion = 4

    def __init__(self, inputs, width, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = downsample(inputs, 4 * width, stride)

    def forward(self, x):
        """Features."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x))


def downsample(inputs, outputs, stride):
    """The way around a block."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class ResNet(nn.Module):
    """Features at 1/2, 1/4, 1/8, 1/16 and 1/32 of height and width."""

    def __init__(self):
        super().__init__()
        block = Bottleneck if SETTINGS["encoder"] == "resnet50" else BasicBlock
        base = SETTINGS["base"]
        self.conv1 = nn.Conv2d(len(SETTINGS["channels"]), base, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(base)
        self.widths, inputs = [base], base
        for i, depth in enumerate(DEPTHS[SETTINGS["encoder"]]):
            outputs = block.expansion * (base << i)
            first = block(inputs, base << i, 2 if i else 1)
            setattr(
                self, f"layer{i + 1}", nn.Sequential(first, *(block(outputs, base << i, 1) for _ in range(depth - 1)))
            )
            self.widths.append(inputs := outputs)

    def forward(self, x):
        """List of features."""
        features = [F.relu(self.bn1(self.conv1(x)))]
        x = F.max_pool2d(features[0], 3, 2, padding=1)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            features.append(x)
        return features


class DecoderBlock(nn.Module):
    """Doubles the size, concatenates the skip connection if there is one, then two 3x3 convolutions."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv1, self.conv2 = conv_norm_relu(inputs, outputs), conv_norm_relu(outputs, outputs)

    def forward(self, x, skip=None):
        """Features with the height and width of `skip`."""
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        if skip is not None:
            x = torch.cat([x[:, :, : skip.shape[2], : skip.shape[3]], skip], dim=1)
        return self.conv2(self.conv1(x))


def conv_norm_relu(inputs, outputs):
    """3x3 convolution, BatchNorm, ReLU."""
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class Decoder(nn.Module):
    """Five blocks."""

    def __init__(self, widths):
        super().__init__()
        *skips, below = widths
        base = SETTINGS["base"]
        outputs = [4 * base, 2 * base, base, base // 2, base // 4]
        joined = [x + skip for x, skip in zip([below, *outputs], [*skips[::-1], 0])]
        self.blocks = nn.ModuleList(DecoderBlock(*pair) for pair in zip(joined, outputs))

    def forward(self, features):
        """Features of the images' size or up to 31 pixels more."""
        *skips, x = features
        for block, skip in zip(self.blocks, [*skips[::-1], None]):
            x = block(x, skip)
        return x


class UNet(nn.Module):
    """U-Net: images [b c h w] as files have them -> logits [b k h w]."""

    def __init__(self):
        super().__init__()
        self.encoder = ResNet()
        self.decoder = Decoder(self.encoder.widths)
        self.segmentation_head = nn.Sequential(nn.Conv2d(SETTINGS["base"] // 4, len(SETTINGS["classes"]), 3, padding=1))

    def normalize(self, images):
        """Scales values to 0 to 1 by the range of their type, then standardizes; float32."""
        x = images.float() / SETTINGS["full"]
        mean, std = (x.new_tensor(SETTINGS[name])[:, None, None] for name in ("mean", "std"))
        return (x - mean) / std

    def forward(self, images):
        """Logits."""
        x = self.decoder(self.encoder(self.normalize(images)))
        return self.segmentation_head(x)[:, :, : images.shape[2], : images.shape[3]]


def load(weights="model.safetensors"):
    """Returns the network with its weights, in evaluation."""
    from safetensors.torch import load_file

    net = UNet()
    net.load_state_dict(load_file(weights), strict=True)
    return net.eval()
