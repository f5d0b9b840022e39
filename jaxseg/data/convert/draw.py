"""Draws polygons and run lengths as masks. A pixel belongs to a shape if its center does."""

import dataclasses
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8


@dataclasses.dataclass(frozen=True)
class Shape:
    """An object of an image.

    - `name`: its class
    - `polygons`: [n 2] each, x and y in pixels from the left upper corner of the image. One that lies inside another
      is a hole of it; others are further parts.
    - `mask`: its pixels, bool [h w]; None if polygons say them
    """

    name: str
    polygons: tuple[np.ndarray, ...] = ()
    mask: np.ndarray | None = None

    @property
    def area(self) -> float:
        """Area in pixels, holes included."""
        return float(self.mask.sum()) if self.mask is not None else sum(map(polygon_area, self.polygons))


def draw(
    shapes: Sequence[Shape], numbers: dict[str, int], height: int, width: int
) -> UInt8[np.ndarray, "height width"]:
    """Draws shapes over 0, the background; later shapes cover earlier ones. `numbers` has the value of each class."""
    mask = np.zeros((height, width), np.uint8)
    for shape in shapes:
        inside = shape.mask if shape.mask is not None else fill(shape.polygons, height, width)
        mask[inside] = numbers[shape.name]
    return mask


def fill(polygons: Sequence[Float[np.ndarray, "n 2"]], height: int, width: int) -> Bool[np.ndarray, "height width"]:
    """Returns True for pixels whose center lies in the polygons; one that lies inside another is a hole of it."""
    result = np.zeros((height, width), bool)
    drawn: list[np.ndarray] = []
    for polygon in sorted(polygons, key=polygon_area, reverse=True):
        depth = sum(within(polygon, other) for other in drawn)
        (top, left), here = fill_one(polygon, height, width)
        part = result[top : top + here.shape[0], left : left + here.shape[1]]
        part[here] = depth % 2 == 0
        drawn.append(polygon)
    return result


def fill_one(polygon: np.ndarray, height: int, width: int) -> tuple[tuple[int, int], np.ndarray]:
    """Fills a polygon by the even-odd rule; returns row and column of its bounding box, and its pixels, bool."""
    low = np.clip(np.floor(polygon.min(0)).astype(int), 0, (width, height))
    high = np.clip(np.ceil(polygon.max(0)).astype(int), low, (width, height))
    (x, y), (columns, rows) = (polygon - low).T, high - low
    next_x, next_y = np.roll(x, -1), np.roll(y, -1)
    first, last = (np.clip(np.ceil(of(y, next_y) - 0.5).astype(int), 0, rows) for of in (np.minimum, np.maximum))
    number = last - first  # rows whose centers an edge crosses
    edge = np.repeat(np.arange(len(x)), number)
    row = np.arange(number.sum()) - np.repeat(np.cumsum(number) - number, number) + first[edge]
    slope = (next_x - x)[edge] / (next_y - y)[edge]
    column = np.ceil(x[edge] + (row + 0.5 - y[edge]) * slope - 0.5).astype(int)
    crossings = np.zeros((rows, columns + 1), np.int32)
    np.add.at(crossings, (row, np.clip(column, 0, columns)), 1)
    return (int(low[1]), int(low[0])), np.cumsum(crossings, 1)[:, :columns] % 2 == 1


def within(inner: np.ndarray, outer: np.ndarray) -> bool:
    """True if every corner of a polygon lies in another one or on its border."""
    contour = np.asarray(outer, np.float32)
    return all(cv2.pointPolygonTest(contour, (float(x), float(y)), False) >= 0 for x, y in inner)


def polygon_area(polygon: np.ndarray) -> float:
    """Area of a polygon in pixels, by Gauss's formula."""
    x, y = polygon.T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def from_runs(runs: Sequence[int], height: int, width: int) -> Bool[np.ndarray, "height width"]:
    """Expands COCO's run lengths: pixels outside and inside in turn, column by column. Raises ValueError."""
    if sum(runs) != height * width or min(runs, default=0) < 0:
        raise ValueError(f"run lengths for {sum(runs)} pixels; expected {height} x {width}")
    inside = np.arange(len(runs)) % 2 == 1
    return np.repeat(inside, runs).reshape(width, height).T


def unpack_runs(text: str) -> list[int]:
    """Unpacks COCO's compressed run lengths: 5 bits a character, from the third run on differences to the last but one.

    Raises ValueError.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise ValueError(f"{character!r} is no character of run lengths")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:  # the last character of a number; its highest bit is the sign
            value -= (1 << shift) if bits & 16 else 0
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs
