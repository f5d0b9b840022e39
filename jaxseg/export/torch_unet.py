"""A U-Net in PyTorch, with the structure and names of milesial's, and the weights of a run of jaxseg.

    from model import load

    net = load("model.safetensors")
    classes = net(images).argmax(1)  # images [b c h w] as files have them -> logits [b k h w]

Needs torch and safetensors. `SETTINGS` says which channels an image has, in which order, and how it is normalized.
"""

import torch
import torch.nn.functional as F
from torch import nn

SETTINGS = {}


class DoubleConv(nn.Module):
    """3x3 convolution, BatchNorm, ReLU; twice."""

    def __init__(self, inputs, outputs, middle=None):
        super().__init__()
        middle, bias = middle or outputs, SETTINGS["conv_bias"]
        self.double_conv = nn.Sequential(
            nn.Conv2d(inputs, middle, 3, padding=1, bias=bias),
            nn.BatchNorm2d(middle),
            nn.ReLU(inplace=True),
            nn.Conv2d(middle, outputs, 3, padding=1, bias=bias),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        )

    def forward(self, x):
        """Features."""
        return self.double_conv(x)


class Down(nn.Module):
    """2x2 max-pooling, then a DoubleConv."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.maxpool_conv = nn.Sequential(nn.MaxPool2d(2), DoubleConv(inputs, outputs))

    def forward(self, x):
        """Features of half the size."""
        return self.maxpool_conv(x)


class Up(nn.Module):
    """Doubles the size, concatenates the skip connection, then a DoubleConv."""

    def __init__(self, below, skip, outputs):
        super().__init__()
        if SETTINGS["upsample"] == "transpose":
            self.up = nn.ConvTranspose2d(below, skip, 2, stride=2)
            self.conv = DoubleConv(2 * skip, outputs)
        else:
            self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
            self.conv = DoubleConv(skip + below, outputs, (skip + below) // 2)

    def forward(self, x, skip):
        """Features with the height and width of `skip`."""
        x = self.up(x)
        rows, columns = skip.shape[2] - x.shape[2], skip.shape[3] - x.shape[3]
        x = F.pad(x, [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2])
        return self.conv(torch.cat([skip, x], dim=1))


class OutConv(nn.Module):
    """1x1 convolution."""

    def __init__(self, inputs, classes):
        super().__init__()
        self.conv = nn.Conv2d(inputs, classes, 1)

    def forward(self, x):
        """Logits."""
        return self.conv(x)


class UNet(nn.Module):
    """U-Net: images [b c h w] as files have them -> logits [b k h w]."""

    def __init__(self):
        super().__init__()
        widths, halved = SETTINGS["widths"], 1 if SETTINGS["upsample"] == "transpose" else 2
        encoder = [*widths[:-1], widths[-1] // halved]
        decoder = [widths[0], *(width // halved for width in widths[1:-1])]
        self.levels = len(widths) - 1
        self.inc = DoubleConv(len(SETTINGS["channels"]), encoder[0])
        for i, outputs in enumerate(encoder[1:], 1):
            setattr(self, f"down{i}", Down(encoder[i - 1], outputs))
        below = encoder[-1]
        for i, (skip, outputs) in enumerate(zip(encoder[-2::-1], decoder[::-1]), 1):
            setattr(self, f"up{i}", Up(below, skip, outputs))
            below = outputs
        self.outc = OutConv(below, len(SETTINGS["classes"]))

    def normalize(self, images):
        """Scales values to 0 to 1 by the range of their type, then standardizes; float32."""
        x = images.float() / SETTINGS["full"]
        mean, std = (x.new_tensor(SETTINGS[name])[:, None, None] for name in ("mean", "std"))
        return (x - mean) / std

    def forward(self, images):
        """Logits."""
        features = [self.inc(self.normalize(images))]
        for i in range(1, self.levels + 1):
            features.append(getattr(self, f"down{i}")(features[-1]))
        x = features.pop()
        for i in range(1, self.levels + 1):
            x = getattr(self, f"up{i}")(x, features.pop())
        return self.outc(x)


def load(weights="model.safetensors"):
    """Returns the network with its weights, in evaluation."""
    from safetensors.torch import load_file

    net = UNet()
    net.load_state_dict(load_file(weights), strict=True)
    return net.eval()
