"""Tiles of an image: where they lie, how they are blended, and cutting them out."""

from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Num

Place = tuple[int, int]
"""Row and column of a tile, counted in tiles."""


@runtime_checkable
class Raster(Protocol):
    """An image [h w c]: an array, or an object with shape and dtype whose slices are arrays, such as a mapped file."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def __getitem__(self, where: tuple[slice, slice]) -> Num[np.ndarray, "h w c"]:
        """Returns the slice of rows and columns as an array."""


class Axis(NamedTuple):
    """Tiles along one side of an image: starts, length, and weights. The weights at a pixel add up to 1."""

    starts: list[int]
    side: int
    weights: Float[np.ndarray, "tiles side"]


def axis(starts: list[int], side: int) -> Axis:
    """Returns tiles with Gaussian weights of standard deviation side / 8, which make nnU-Net's importance map.

    - `starts`: first pixel of each tile
    - `side`: length of a tile
    """
    gaussian = np.exp(-0.5 * ((np.arange(side) - (side - 1) / 2) / (side / 8)) ** 2)
    total = np.zeros(starts[-1] + side)
    for start in starts:
        total[start : start + side] += gaussian
    return Axis(starts, side, np.array([gaussian / total[s : s + side] for s in starts], np.float32))


def round_up(n: int, least: int) -> int:
    """Returns the smallest of least * (1, 2, 3, 4, 6, 8, 12, 16, 24, ...) that is at least `n`."""
    times = -(-n // least)
    power = 1 << (times - 1).bit_length()
    return least * (power * 3 // 4 if times <= power * 3 // 4 else power)


def cut(image: Raster, axes: tuple[Axis, Axis], at: Place) -> Num[np.ndarray, "h w c"]:
    """Cuts a tile out of an image, padded by reflection where the image ends.

    - `image`: image [h w c]
    - `axes`: tiles along its height and width
    - `at`: the tile
    """
    rows, columns = axes
    y, x = rows.starts[at[0]], columns.starts[at[1]]
    part = image[y : y + rows.side, x : x + columns.side]
    missing = [(0, rows.side - part.shape[0]), (0, columns.side - part.shape[1]), (0, 0)]
    return np.pad(part, missing, mode="reflect")
