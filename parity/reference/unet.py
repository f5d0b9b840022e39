"""The U-Net with the structure and names of milesial/Pytorch-UNet, whose checkpoints therefore load."""

import torch
import torch.nn.functional as F
from torch import nn


class DoubleConv(nn.Module):
    """3x3 convolution that keeps the size, BatchNorm, ReLU; all of it twice."""

    def __init__(self, inputs: int, outputs: int, middle: int | None = None, bias: bool = True):
        super().__init__()
        layers = []
        for before, after in ((inputs, middle or outputs), (middle or outputs, outputs)):
            # ReLU not in place: a forward hook may keep what BatchNorm returned.
            layers += [nn.Conv2d(before, after, 3, padding=1, bias=bias), nn.BatchNorm2d(after), nn.ReLU()]
        self.double_conv = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features float [b c h w], with h and w of `x`."""
        return self.double_conv(x)


class Down(nn.Module):
    """2x2 max-pool, which drops the last row or column of an odd size, then DoubleConv."""

    def __init__(self, inputs: int, outputs: int, bias: bool):
        super().__init__()
        self.maxpool_conv = nn.Sequential(nn.MaxPool2d(2), DoubleConv(inputs, outputs, bias=bias))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features of half the height and width."""
        return self.maxpool_conv(x)


class Up(nn.Module):
    """Doubles the size, pads with zeros to that of the skip, concatenates (skip first), then convolves.

    An odd row or column of padding goes below or to the right.
    """

    def __init__(self, up: nn.Module, conv: DoubleConv):
        super().__init__()
        self.up, self.conv = up, conv

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        """Features with the height and width of `skip`."""
        x = self.up(x)
        rows, columns = skip.shape[2] - x.shape[2], skip.shape[3] - x.shape[3]
        x = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        return self.conv(torch.cat([skip, x], dim=1))


class OutConv(nn.Module):
    """1x1 convolution to the classes."""

    def __init__(self, inputs: int, classes: int):
        super().__init__()
        self.conv = nn.Conv2d(inputs, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits float [b k h w]."""
        return self.conv(x)


class UNet(nn.Module):
    """Maps images float [b c h w] to logits [b k h w]; h and w are at least 2 ** (len(widths) - 1).

    in_channels, classes: c and k.
    widths: channels at each level, from full resolution down; two levels or more.
    upsample: "transpose" is ConvTranspose2d(widths[i+1], widths[i], 2, stride=2). "bilinear" is milesial's other
        network, align_corners=True with halved widths: widths[-1] // 2 channels at the bottom, and widths[i] // 2
        from each decoder block except the last.
    conv_bias: True if the 3x3 convolutions have biases, which the next BatchNorm cancels (milesial: False).

    Raises ValueError for fewer than two widths or another `upsample`.
    """

    def __init__(
        self,
        in_channels: int = 3,
        classes: int = 2,
        widths: tuple[int, ...] = (16, 32, 64, 128, 256),
        upsample: str = "transpose",
        conv_bias: bool = True,
    ):
        super().__init__()
        if len(widths) < 2 or upsample not in ("transpose", "bilinear"):
            raise ValueError(
                f"widths {widths}, upsample {upsample!r}; expected two or more widths, and 'transpose' or 'bilinear'"
            )
        self.levels = len(widths) - 1
        encoder = [*widths[:-1], widths[-1] if upsample == "transpose" else widths[-1] // 2]
        self.inc = DoubleConv(in_channels, encoder[0], bias=conv_bias)
        for i in range(self.levels):
            self.add_module(f"down{i + 1}", Down(encoder[i], encoder[i + 1], conv_bias))
        below = encoder[-1]
        for number, skip in enumerate(reversed(widths[:-1]), start=1):
            if upsample == "transpose":
                up, outputs = nn.ConvTranspose2d(below, skip, 2, stride=2), skip
                conv = DoubleConv(2 * skip, skip, bias=conv_bias)
            else:
                up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
                outputs = skip if number == self.levels else skip // 2
                conv = DoubleConv(skip + below, outputs, (skip + below) // 2, bias=conv_bias)
            self.add_module(f"up{number}", Up(up, conv))
            below = outputs
        self.outc = OutConv(below, classes)

    def forward(self, x: torch.Tensor, kept: torch.Tensor | None = None) -> torch.Tensor:
        """Logits float [b k h w] of images float [b c h w].

        kept: factors [b c' h' w'] of the deepest features: 1 / (1 - p) where dropout keeps one, 0 elsewhere.
        """
        skips = [self.inc(x)]
        for i in range(self.levels):
            skips.append(getattr(self, f"down{i + 1}")(skips[-1]))
        x = skips.pop()
        x = x if kept is None else x * kept
        for i in range(self.levels):
            x = getattr(self, f"up{i + 1}")(x, skips.pop())
        return self.outc(x)
