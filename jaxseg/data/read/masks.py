"""Reads masks and encodes their values as classes. A color is one value, 0xRRGGBB."""

import dataclasses
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Integer, Shaped, UInt8

from jaxseg.base.config import IGNORE_INDEX
from jaxseg.base.errors import DataError, UserError, problem
from jaxseg.data.read.images import read_pixels
from jaxseg.data.read.pixels import Pixels

MOST_CLASSES = 254  # 255 is ignored, and 254 marks unknown values
_UNKNOWN = 254
_BEYOND = 1 << 24  # one more than the largest color


@dataclasses.dataclass(frozen=True)
class ClassMap:
    """Maps mask values to classes. Raises UserError if it contradicts itself or has too many classes."""

    values: tuple[int, ...]
    """Mask value of each class, in class order; a color is 0xRRGGBB."""
    names: tuple[str, ...]
    ignored: tuple[int, ...] = ()
    """Mask values that become IGNORE_INDEX."""
    color: bool = False
    """True if `values` and `ignored` are colors."""
    binarize: int | None = None
    """Threshold: gray values from it on are class 1, lower ones class 0. `values` are then 0 and the threshold."""
    snap: bool = False
    """True if other values take the class of the nearest of `values` and `ignored`; the first wins a tie."""

    def __post_init__(self):
        known = self.values + (self.ignored if self.binarize is None else ())
        if twice := sorted({v for v in known if known.count(v) > 1}):
            named = few(show(v, self.color) for v in twice)
            raise UserError(f"Mask values {named} are given two meanings; expected one class each, or ignored.")
        if len(self.values) != len(self.names) or len(set(self.names)) < len(self.names):
            found = f"{len(self.values)} classes are named {', '.join(self.names)}"
            raise UserError(f"{found}; expected a different name for each.")
        if not 0 < len(self.values) <= MOST_CLASSES:
            raise UserError(f"{len(self.values)} classes; expected 1 to {MOST_CLASSES}.")

    def encode(self, values: Integer[np.ndarray, "h w"], color: bool) -> UInt8[np.ndarray, "h w"]:
        """Encodes mask values as classes and IGNORE_INDEX; `color` is true if the values are colors.

        A gray value v equals the color (v, v, v). Raises DataError naming the values that belong to no class.
        """
        if self.binarize is not None:
            return self._binary(to_gray(values) if color else values)
        if color or self.color:
            return self._search(values if color else to_colors(values), color=True)
        if values.dtype not in (np.uint8, np.uint16):
            return self._search(values, color=False)
        classes = cv2.LUT(values, self._table[:256]) if values.dtype == np.uint8 else self._table[values]
        if (classes == _UNKNOWN).any():
            self._refuse(values[classes == _UNKNOWN], color=False)
        return classes

    def known(self, color: bool) -> dict[int, int]:
        """Returns the class, or IGNORE_INDEX, of every known value; with `color`, grays are given as colors."""
        known = dict(zip(self.values, range(len(self.values)))) | dict.fromkeys(self.ignored, IGNORE_INDEX)
        if not color or self.color:
            return known
        return {v * 0x010101: number for v, number in known.items() if 0 <= v <= 255}

    def as_colors(self) -> "ClassMap":
        """Returns a map with colors (v, v, v) for grays v, for masks that are read as colors."""
        if self.color or self.binarize is not None:
            return self
        values, ignored = (tuple(to_colors(np.array([of], np.int64))[0].tolist()) for of in (self.values, self.ignored))
        return dataclasses.replace(self, values=values, ignored=ignored, color=True)

    def palette(self) -> UInt8[np.ndarray, "256 3"]:
        """Returns uint8 RGB by class: the mask's own colors if values are colors, else `PALETTE`."""
        palette = PALETTE.copy()
        if self.color:
            palette[: len(self.values)] = np.stack(channels_of(np.array(self.values)), -1)
        return palette

    def _binary(self, values: np.ndarray) -> np.ndarray:
        classes = (values >= self.binarize).astype(np.uint8)
        if self.ignored:
            classes[np.isin(values, self.ignored)] = IGNORE_INDEX
        return classes

    @cached_property
    def _table(self) -> np.ndarray:
        """Class of every 16-bit value, or _UNKNOWN: uint8 [65536]."""
        every = np.arange(2**16)
        if self.snap:
            return self._nearest(every, color=False)
        table = np.full(len(every), _UNKNOWN, np.uint8)
        for value, number in self.known(color=False).items():
            if 0 <= value < len(table):
                table[value] = number
        return table

    def _search(self, values: np.ndarray, color: bool) -> np.ndarray:
        known = dict(sorted(self.known(color).items()))
        keys, numbers = np.array(list(known), np.int64), np.array(list(known.values()), np.uint8)
        if not known:  # all known grays exceed 8 bits, and the values are colors
            self._refuse(values, color)
        place = np.minimum(np.searchsorted(keys, values), len(keys) - 1)
        classes, unknown = numbers[place], keys[place] != values
        if unknown.any():
            others, where = np.unique(values[unknown].astype(np.int64), return_inverse=True)
            if not self.snap or (color and (others[0] < 0 or others[-1] >= _BEYOND)):
                self._refuse(values[unknown], color)
            classes[unknown] = self._nearest(others, color)[where]
        return classes

    def _nearest(self, values: Integer[np.ndarray, " n"], color: bool) -> UInt8[np.ndarray, " n"]:
        """Returns the class of the nearest known value; colors by Euclidean distance in RGB."""
        best, nearest = np.full(len(values), np.iinfo(np.int64).max), np.zeros(len(values), np.uint8)
        for value, number in self.known(color).items():
            if color:
                distance = sum((a - b) ** 2 for a, b in zip(channels_of(values), channels_of(value)))
            else:
                distance = np.abs(values - value)
            nearer = distance < best
            best[nearer], nearest[nearer] = distance[nearer], number
        return nearest

    def _refuse(self, values: np.ndarray, color: bool) -> None:
        found, counts = np.unique(values, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        listed = few(f"{show(int(found[i]), color)} ({counts[i]} pixels)" for i in order)
        expected = few(show(v, self.color) for v in self.values + self.ignored)
        raise DataError(
            "Masks hold values that belong to no class.",
            [f"holds {listed}; expected {expected}"],
            "Name them with --labels or --ignore-index, or give --snap-colors.",
        )


ARTICLE = ClassMap((0, 255), ("background", "field"), binarize=255)
"""Class map of the article: gray // 255."""


def show(value: int, color: bool) -> str:
    """Formats a mask value: a number, or a color such as #00ff7f."""
    if not color:
        return str(value)
    return f"#{value:06x}" if 0 <= value < _BEYOND else str(value - _BEYOND if value >= _BEYOND else value)


def few(items: Iterable[object], most: int = 8) -> str:
    """Joins the first `most` items; adds the total if there are more."""
    items = [str(item) for item in items]
    return ", ".join(items[:most]) + (f", ... ({len(items)} values)" if len(items) > most else "")


def channels_of(colors):
    """Splits 0xRRGGBB, an array or a number, into red, green and blue."""
    return colors >> 16, (colors >> 8) & 255, colors & 255


def to_colors(grays: Integer[np.ndarray, "h w"]) -> Integer[np.ndarray, "h w"]:
    """Converts grays v to colors (v, v, v), int64. Values outside 0..255 become numbers outside the range of colors."""
    grays = grays.astype(np.int64)
    return np.where((grays >= 0) & (grays <= 255), grays * 0x010101, np.where(grays > 255, grays + _BEYOND, grays))


def to_gray(colors: Integer[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """Converts colors to gray, uint8, by OpenCV's fixed-point formula, which the article uses."""
    red, green, blue = (channel.astype(np.uint8) for channel in channels_of(colors))
    return cv2.cvtColor(cv2.merge([blue, green, red]), cv2.COLOR_BGR2GRAY)


def read_values(path: Path, color: bool = False) -> tuple[Integer[np.ndarray, "h w"], bool]:
    """Reads the values of a mask, and returns True with them if they are colors, 0xRRGGBB.

    - Red, green and blue that are equal everywhere count as gray. Alpha is ignored.
    - A palette gives its indices, and samples of fewer than 8 bits stay as stored. With `color` both become colors.
    - Floats must be whole numbers.

    Raises DataError.
    """
    return values_of(read_pixels(path, indices=not color), path)


def values_of(pixels: Pixels, path: Path) -> tuple[Integer[np.ndarray, "h w"], bool]:
    """Converts the pixels of a mask to what `read_values` returns; `path` names the file in a DataError."""
    array = pixels.array
    bands = array.shape[2]
    if bands > 1 and not pixels.color and _is_one_hot(array):
        expected = "one band of class numbers, such as bands.argmax(axis=-1)"
        raise problem(path, f"is one-hot: in each pixel one of {bands} bands is set; expected {expected}")
    if bands not in (1, 3, 4):
        raise problem(path, f"has {bands} bands; expected a mask of one band, or a color picture")
    if array.dtype.kind == "f" or array.dtype == np.uint64:
        array = _whole(array, path)
    if bands == 1:
        return array[..., 0], False
    order = (0, 1, 2) if pixels.color else (2, 1, 0)  # plain bands are red, green, blue
    blue, green, red = (np.ascontiguousarray(array[..., i]) for i in order)
    if np.array_equal(blue, green) and np.array_equal(green, red):
        return blue, False
    if array.dtype != np.uint8:
        raise problem(path, f"has colors of type {array.dtype}; expected 8 bits per channel")
    return (red.astype(np.int32) << 16) | (green.astype(np.int32) << 8) | blue, True


def _is_one_hot(array: Shaped[np.ndarray, "h w c"]) -> bool:
    """True if every pixel has one band set, always to the same value, and others 0; several bands are set somewhere."""
    most = array.max()
    on = array == most
    return bool(most > 0 and ((array == 0) | on).all() and (on.sum(-1) == 1).all() and on.any((0, 1)).sum() > 1)


def _whole(array: Shaped[np.ndarray, "h w c"], path: Path) -> Integer[np.ndarray, "h w c"]:
    with np.errstate(invalid="ignore"):
        whole = np.isfinite(array) & (array == np.trunc(array)) & (np.abs(array) < 2.0**53)
    if not whole.all():
        wrong = array[~whole]
        raise problem(path, f"holds {wrong[0]:g} ({wrong.size} values like it); expected whole numbers as classes")
    return array.astype(np.int64)


def _palette() -> UInt8[np.ndarray, "256 3"]:
    """Builds the colors of classes: dark for class 0, then Okabe and Ito (2008), safe for color-blind people.

    Further classes get varied hues. 255, ignored, is gray.
    """
    okabe_ito = [[34, 34, 40], [230, 159, 0], [86, 180, 233], [0, 158, 115], [240, 228, 66], [0, 114, 178]]
    okabe_ito += [[213, 94, 0], [204, 121, 167]]
    number = np.arange(len(okabe_ito), 256)
    hsv = np.stack([number * 111 % 180, 120 + number * 53 % 120, 130 + number * 71 % 126], -1).astype(np.uint8)
    colors = np.concatenate([np.array(okabe_ito, np.uint8), cv2.cvtColor(hsv[None], cv2.COLOR_HSV2RGB)[0]])
    colors[IGNORE_INDEX] = 128
    return colors


PALETTE = _palette()  # uint8 [256 3] RGB, by class
