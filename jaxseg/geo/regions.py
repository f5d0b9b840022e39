"""Numbers the connected regions of a class map block by block, with one block in memory.

Numbers follow the regions' first pixels, row by row, so that they do not depend on the blocks.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import rasterio
from jaxtyping import Float, Int, Integer, UInt8
from rasterio.windows import Window
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from skimage.measure import label

from jaxseg.base.config import IGNORE_INDEX
from jaxseg.geo.maps import BLOCK, FULL, open_map
from jaxseg.geo.raster import Scene

SIDE = 8 * BLOCK
"""Side of the blocks in pixels; a multiple of the file's blocks."""

Labeler = Callable[[UInt8[np.ndarray, "h w"], UInt8[np.ndarray, "h w"]], Integer[np.ndarray, "h w"]]
"""Numbers the regions of a window from 1, 0 for none, given its classes and the packed probabilities of these."""


def plain_regions(classes: UInt8[np.ndarray, "h w"], _: UInt8[np.ndarray, "h w"]) -> Integer[np.ndarray, "h w"]:
    """Numbers the regions of pixels of one class that touch along an edge; 0 where there is no data."""
    return label(classes, background=IGNORE_INDEX, connectivity=1)


@dataclasses.dataclass
class Regions:
    """Regions of a class map, numbered from 1; index 0 of the arrays is no region.

    - `path`: raster of provisional numbers, int32
    - `numbers`: number of the region, or 0, of each provisional number
    - `classes`: class of each region
    - `pixels`: size of each region in pixels
    - `probability`: mean probability of the class of each region
    """

    path: Path
    numbers: Int[np.ndarray, " m"]
    classes: UInt8[np.ndarray, " n"]
    pixels: Int[np.ndarray, " n"]
    probability: Float[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.pixels) - 1

    def read(self, place: tuple[int, int, int, int]) -> Int[np.ndarray, "h w"]:
        """Reads the numbers of a window: row, column, height and width."""
        row, column, height, width = place
        with rasterio.open(self.path) as file:
            return self.numbers[file.read(1, window=Window(column, row, width, height))]

    def blocks(self, side: int = SIDE) -> Iterator[tuple[tuple[int, int], Int[np.ndarray, "h w"]]]:
        """Yields the blocks of the map from left to right, top to bottom: (row, column) and region numbers."""
        with rasterio.open(self.path) as file:
            shape = file.shape
        for place in places(shape, side):
            yield place[:2], self.read(place)


def places(shape: tuple[int, int], side: int) -> Iterator[tuple[int, int, int, int]]:
    """Yields row, column, height and width of the blocks of a raster."""
    for row in range(0, shape[0], side):
        for column in range(0, shape[1], side):
            yield row, column, min(side, shape[0] - row), min(side, shape[1] - column)


def find_regions(
    path: Path,
    classes: Path,
    scene: Scene,
    probability: Path | None = None,
    *,
    labeler: Labeler = plain_regions,
    halo: int = 1,
    agreement: float = 0.0,
    side: int = SIDE,
) -> Regions:
    """Numbers the regions of a class map.

    - `path`: file to write for the provisional numbers, as large as the map
    - `classes`: class map, a raster of uint8; 255 has no data
    - `scene`: raster from which the map was made
    - `probability`: probability of each pixel's class, packed to uint8; 1 if None
    - `labeler`: numbers the regions of a window
    - `halo`: pixels around a block that the labeler sees too
    - `agreement`: at a seam, regions of two blocks are one if the intersection over union of their numbers in the halo
      is more than this
    - `side`: side of the blocks in pixels, a multiple of 256

    Memory: a few blocks, a halo across the map, and some numbers per region.
    """
    parts = _Parts()
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(rasterio.open(classes))
        certain = stack.enter_context(rasterio.open(probability)) if probability else None
        file = stack.enter_context(open_map(path, scene, 1, "int32", nodata=0))
        above = np.zeros((halo, source.width), np.int32)
        for row, column, height, width in places(source.shape, side):
            if column == 0:
                upper, above, left = above, np.zeros_like(above), np.zeros((height, 0), np.int32)
            top, first = min(halo, row), min(halo, column)
            window = Window(column - first, row - top, first + width + halo, top + height + halo)
            window = window.intersection(Window(0, 0, source.width, source.height))
            seen = source.read(1, window=window)
            sure = certain.read(1, window=window) if certain else np.full_like(seen, FULL)
            found = np.asarray(labeler(seen, sure), np.int32)
            inside = slice(top, top + height), slice(first, first + width)
            start = parts.add(found, inside, seen, sure, row * source.width + column, source.width)
            found = np.where(found > 0, found + start, 0).astype(np.int32)
            parts.link(found[:top, inside[1]], upper[halo - top :, column : column + width], agreement)
            parts.link(found[inside[0], :first], left, agreement)
            core = found[inside]
            above[-height:, column : column + width] = core[-halo:]
            left = core[:, -halo:]
            file.write(core, 1, window=Window(column, row, width, height))
    return parts.joined(path)


class _Parts:
    """Regions of single blocks, and which of them are one."""

    def __init__(self):
        self.count = 0
        self._columns: list[tuple[np.ndarray, ...]] = []
        self._pairs: list[np.ndarray] = []

    def add(self, found, inside, classes, sure, corner: int, width: int) -> int:
        """Adds the regions of a block, and returns the number before its first.

        - `found`: numbers from 1 in the block and its halo
        - `inside`: the block in it
        - `classes`, `sure`: classes and packed probabilities in the block and its halo
        - `corner`: index of the block's first pixel in the map
        - `width`: width of the map
        """
        most, core = int(found.max(initial=0)), found[inside]
        flat, n = core.ravel(), most + 1
        kinds, first = np.zeros(n, np.uint8), np.full(n, np.iinfo(np.int64).max)
        kinds[flat] = classes[inside].ravel()
        order = (corner + np.arange(core.shape[0])[:, None] * width + np.arange(core.shape[1])).ravel()
        first[flat[::-1]] = order[::-1]  # NumPy keeps the last of several values
        sums = np.bincount(flat, sure[inside].ravel(), n)
        self._columns.append(tuple(values[1:] for values in (kinds, np.bincount(flat, minlength=n), sums, first)))
        self.count += most
        return self.count - most

    def link(self, here: np.ndarray, there: np.ndarray, agreement: float) -> None:
        """Notes which numbers of a strip are regions that two blocks share, from both blocks' numbers."""
        both = np.stack([here.ravel(), there.ravel()], -1)
        pairs, shared = np.unique(both[(both > 0).all(-1)], axis=0, return_counts=True)
        if agreement and len(pairs):
            a, b = (np.unique(side[side > 0], return_counts=True) for side in (here, there))
            union = a[1][np.searchsorted(a[0], pairs[:, 0])] + b[1][np.searchsorted(b[0], pairs[:, 1])] - shared
            pairs = pairs[shared > agreement * union]
        self._pairs.append(pairs)

    def joined(self, path: Path) -> Regions:
        """Returns the regions, numbered by their first pixels."""
        kinds, pixels, sums, first = (
            np.concatenate([np.zeros(1, values[0].dtype), *values]) for values in zip(*self._columns)
        )
        _, group = components(np.concatenate([np.zeros((0, 2), np.int64), *self._pairs]), self.count + 1)
        count = group.max() + 1
        earliest = np.full(count, np.iinfo(np.int64).max)
        np.minimum.at(earliest, group, first)
        size = np.bincount(group, pixels, count)
        earliest[group[0]] = -1  # no region comes first
        order = np.argsort(np.where(size > 0, earliest, np.where(earliest < 0, -1, np.iinfo(np.int64).max)))
        number = np.empty(count, np.int64)
        number[order] = np.arange(count)
        real = int((size > 0).sum()) + 1
        number[number >= real] = 0
        numbers = number[group]
        classes = np.zeros(real, np.uint8)
        classes[numbers[pixels > 0]] = kinds[pixels > 0]
        total = np.bincount(numbers, sums, real)
        size = np.bincount(numbers, pixels, real).astype(np.int64)
        return Regions(path, numbers, classes, size, total / FULL / np.maximum(size, 1))


def components(pairs: np.ndarray, count: int) -> tuple[int, np.ndarray]:
    """Returns the number of connected components of a graph, and the component of each of `count` nodes."""
    graph = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), (count, count))
    return connected_components(graph, directed=False)
