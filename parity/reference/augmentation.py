"""Augmentation of single samples with numbers drawn elsewhere, by NumPy's and PyTorch's own operations."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from parity.reference.losses import IGNORE_INDEX

Draws = Mapping[str, Sequence[np.ndarray]]
"""By the setting's name, such as "zoom", what was drawn for one sample."""


def turned(x: np.ndarray, flip: bool, turns: int) -> np.ndarray:
    """`np.fliplr` if `flip`, then `np.rot90` by quarter `turns`, of an image or a mask [h w ...]."""
    return np.rot90(np.fliplr(x) if flip else x, turns)


def changed(image: torch.Tensor, mask: torch.Tensor, draws: Draws, blur: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Zoom, blur, contrast, brightness and noise, in this order, of float [c h w] in 0..1 and int64 [h w].

    blur: the setting, largest standard deviation, which decides the kernel's size.
    """
    if "zoom" in draws:
        image, mask = zoomed(image, mask, *draws["zoom"])
    if "blur" in draws:
        image = blurred(image, float(draws["blur"][0].item()), math.ceil(3 * blur))
    if "contrast" in draws:
        image = image.mean() + (image - image.mean()) * draws["contrast"][0].item()
    if "brightness" in draws:
        image = image + draws["brightness"][0].item()
    if "noise" in draws:
        deviation, normal = draws["noise"]
        image = image + deviation.item() * torch.from_numpy(np.array(normal)).permute(2, 0, 1)
    return image, mask


def zoomed(
    image: torch.Tensor, mask: torch.Tensor, scale: np.ndarray, place: np.ndarray
) -> tuple[torch.Tensor, torch.Tensor]:
    """Resamples about a place by `torch.nn.functional.grid_sample`; the outside is ignored and has the mean color.

    scale: above 1 enlarges.
    place: rows and columns, 0 where the upper or left borders coincide, 1 where the lower or right ones do.
    """
    _, *size = image.shape
    rows, columns = (
        (torch.arange(n, dtype=torch.float64) + 0.5 - (1 - float(scale)) * float(at) * n) / float(scale)
        for n, at in zip(size, place)
    )
    grid = torch.stack([(2 * columns / size[1] - 1).expand(*size), (2 * rows / size[0] - 1)[:, None].expand(*size)], -1)
    moved = F.grid_sample(image[None], grid[None], "bilinear", "border", align_corners=False)[0]
    (y, x), (h, w) = (rows.floor().long(), columns.floor().long()), size
    inside = ((y >= 0) & (y < h))[:, None] & ((x >= 0) & (x < w))
    nearest = mask[y.clamp(0, h - 1)][:, x.clamp(0, w - 1)]
    mean = image.mean((1, 2), keepdim=True)
    return torch.where(inside, moved, mean), torch.where(inside, nearest, IGNORE_INDEX)


def blurred(image: torch.Tensor, sigma: float, reach: int) -> torch.Tensor:
    """Convolves with a Gaussian of 2 reach + 1 taps along both axes; borders are repeated."""
    taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=image.dtype) / max(sigma, 1e-3)) ** 2)
    taps = taps / taps.sum()
    wide = F.pad(image[:, None], (reach, reach, reach, reach), mode="replicate")
    return F.conv2d(F.conv2d(wide, taps[None, None, :, None]), taps[None, None, None, :])[:, 0]
