"""Reads image and mask files as NumPy arrays: one pair becomes one sample.

A `Reading` describes how: bands, dtype, and the classes of mask values. It is determined once, when the data are
examined, saved with every checkpoint, and used again for prediction. The article's reading is uint8 BGR, as OpenCV
reads it; in masks gray 255 is class 1 and all else class 0.
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from jaxtyping import Bool, Shaped, UInt8

from jaxseg.base.config import IGNORE_INDEX
from jaxseg.base.errors import DataError, UserError, problem
from jaxseg.data.find.listing import Pair
from jaxseg.data.read.images import Pixels, read_pixels
from jaxseg.data.read.masks import ARTICLE, ClassMap, read_values
from jaxseg.data.read.pixels import find_missing

__all__ = [
    "ARTICLE_READING",
    "Pair",
    "Reading",
    "convert",
    "read_gray",
    "read_image",
    "read_mask",
    "read_sample",
    "read_tile",
]

FULL = {"uint8": 255, "uint16": 65535, "int16": 32767, "float32": 1}
"""Value of each image dtype that is scaled to 1."""


@dataclasses.dataclass(frozen=True)
class Reading:
    """Describes how files become samples."""

    labels: ClassMap = ARTICLE
    channels: int = 3
    """Number of channels of the image array, the network's input."""
    bands: tuple[int, ...] | None = None
    """Bands to use, counted from 1 in the file's order (1 is red in a color picture); None for all."""
    dtype: str = "uint8"
    """Image dtype: uint8, uint16, int16 or float32. Files of any other type become float32."""
    nodata: float | None = None
    """Value of pixels without data, in the file's units; None for the GeoTIFF's own."""
    normalize: str = "unit"
    """Source of `mean` and `std`: unit (none), dataset, imagenet or encoder."""
    mean: tuple[float, ...] = ()
    """Mean of each channel, in the array's order, of values divided by `FULL`."""
    std: tuple[float, ...] = ()
    """Standard deviation of each channel, likewise."""
    order: Literal["bgr", "bands"] | None = None
    """First three channels: blue, green, red of color pictures, or bands of the file. None if not known, as for runs of
    earlier versions."""

    def to_dict(self) -> dict[str, Any]:
        """Converts to a dictionary that JSON can write."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Reading":
        """Inverts `to_dict`, also after JSON. Raises UserError for missing or unknown keys."""
        try:
            labels = ClassMap(**_tuples(values["labels"]))
            return cls(**(_tuples(values) | {"labels": labels}))
        except (KeyError, TypeError) as error:
            what = f"The saved reading is not understood ({error})"
            raise UserError(f"{what}: was it saved by another version of jaxseg?") from None


ARTICLE_READING = Reading()


def read_image(path: Path, reading: Reading = ARTICLE_READING) -> Shaped[np.ndarray, "h w c"]:
    """Reads an image [h w c] of `reading.dtype`; color as blue, green, red. Raises DataError."""
    return read_tile(path, reading)[0]


def read_tile(
    path: Path, reading: Reading = ARTICLE_READING
) -> tuple[Shaped[np.ndarray, "h w c"], Bool[np.ndarray, "h w"]]:
    """Reads an image [h w c] of `reading.dtype`, and its data mask, bool [h w], true where the image has data.

    - A pixel has no data if all channels used are NaN, infinite or `nodata`, or GDAL's mask says so. An alpha is never
      compared. Channels without data become the mean of `reading`, or 0 if that has none.
    - Single values that are NaN or infinite become the mean likewise, and `nodata` unless it may be a measurement:
      0, or a value of an unsigned type.
    - If three channels are wanted, gray is repeated and an alpha that is opaque everywhere is dropped.

    Raises DataError if the file is unreadable, or its channels or dtype differ from `reading`.
    """
    return convert(read_pixels(path), path, reading)


def convert(
    pixels: Pixels, path: Path, reading: Reading
) -> tuple[Shaped[np.ndarray, "h w c"], Bool[np.ndarray, "h w"]]:
    """Converts the pixels of a file, or of a window, to the image and data mask of `read_tile`.

    `path` names the file in a DataError.
    """
    array = _typed(_channels(_ordered(pixels, path, reading), path, reading), path, reading)
    nodata = reading.nodata if reading.nodata is not None else pixels.nodata
    bands = reading.bands or range(1, array.shape[2] + 1)
    alpha = bands.index(4) if pixels.alpha is not None and 4 in bands else None
    return _fill(array, *find_missing(array, nodata, alpha, pixels.mask), reading)


def read_gray(path: Path) -> UInt8[np.ndarray, "h w"]:
    """Reads a mask as gray, uint8 [h w], by OpenCV's fixed-point formula: (v, v, v) becomes v. Alpha is ignored.

    Raises DataError if it is unreadable, or not 8-bit gray or color.
    """
    pixels = read_pixels(path)
    if pixels.array.dtype != np.uint8 or pixels.array.shape[2] not in (1, 3, 4):
        raise problem(path, f"is {_kind(pixels.array)}; expected 8 bits, gray or color, or give --labels")
    if not pixels.color:
        return np.ascontiguousarray(pixels.array[..., 0])
    return cv2.cvtColor(np.ascontiguousarray(pixels.array[..., :3]), cv2.COLOR_BGR2GRAY)


def read_mask(path: Path, reading: Reading = ARTICLE_READING) -> UInt8[np.ndarray, "h w"]:
    """Reads a mask as classes and IGNORE_INDEX, uint8 [h w]. Raises DataError naming values that belong to no class."""
    if reading.labels == ARTICLE:
        return read_gray(path) // 255
    values, color = read_values(path, color=reading.labels.color or reading.labels.binarize is not None)
    try:
        return reading.labels.encode(values, color)
    except DataError as error:
        raise DataError(error.headline, [f"{path}: {what}" for what in error.problems], error.advice) from None


def read_sample(pair: Pair, reading: Reading = ARTICLE_READING) -> dict[str, np.ndarray]:
    """Reads a sample: {"image": [h w c] of `reading.dtype`, "mask": uint8 [h w] of classes and IGNORE_INDEX}.

    Pixels without data in the image are ignored in the mask. Raises DataError, also if the two sizes differ.
    """
    image, has_data = read_tile(pair.image, reading)
    mask = read_mask(pair.mask, reading)
    if image.shape[:2] != mask.shape:
        raise problem(pair.mask, f"is {_size(mask)}, but its image {pair.image.name} is {_size(image)}")
    if has_data.strides != (0, 0) and not has_data.all():  # strides 0: one True for all pixels, on which `all` is slow
        mask[~has_data] = IGNORE_INDEX
    return {"image": image, "mask": mask}


def _ordered(pixels: Pixels, path: Path, reading: Reading) -> Pixels:
    """Brings a color picture into the order of bands, where a network reads bands. Raises DataError for the reverse."""
    array = pixels.array
    if reading.order == "bands" and pixels.color:
        opaque = reading.bands is None and reading.channels == 3 and is_opaque(array)
        return dataclasses.replace(
            pixels, array=array[..., [2, 1, 0, 3][: 3 if opaque else array.shape[2]]], color=False
        )
    plain = not pixels.color and array.shape[2] > 1
    if reading.order == "bgr" and plain and (reading.bands or (1, 2, 3))[:3] == (1, 2, 3):
        advice = "Save it as an RGB picture; a TIFF says so in its tag PhotometricInterpretation."
        raise problem(path, "holds plain bands; expected a color picture, as in training", advice)
    return pixels


def _channels(pixels: Pixels, path: Path, reading: Reading) -> np.ndarray:
    array, wanted = pixels.array, reading.channels
    if reading.bands is not None:
        return _bands(pixels, path, reading.bands)
    found = array.shape[2]
    if found == 1 and wanted == 3 and not pixels.color:
        return np.repeat(array, 3, axis=2)
    if wanted == 3 and pixels.color and is_opaque(array):
        return np.ascontiguousarray(array[..., :3])
    if found != wanted:
        held = "blue, green, red and an alpha that is not opaque" if pixels.color and found == 4 else f"{found} bands"
        advice = "Name the bands to use with --channels, such as --channels 1 2 3, or take the file out."
        raise problem(path, f"has {held}; expected {wanted} channels", advice)
    return array


def _bands(pixels: Pixels, path: Path, bands: tuple[int, ...]) -> np.ndarray:
    """Returns the bands asked for, in that order; bands 1 2 3 of a color picture come as blue, green, red."""
    array, found = pixels.array, pixels.array.shape[2]
    if pixels.color:
        array = array[..., [2, 1, 0, 3][:found]]
        bands = (3, 2, 1, *bands[3:]) if bands[:3] == (1, 2, 3) else bands
    elif found == 1 and set(bands) <= {1, 2, 3}:
        array, found = np.repeat(array, 3, axis=2), 3  # gray among color pictures
    if missing := [band for band in bands if not 1 <= band <= found]:
        raise problem(path, f"has {found} bands; --channels asks for {', '.join(map(str, missing))}")
    return np.ascontiguousarray(array[..., [band - 1 for band in bands]])


def _typed(array: np.ndarray, path: Path, reading: Reading) -> np.ndarray:
    if array.dtype == reading.dtype:
        return array
    dtype = str(array.dtype) if str(array.dtype) in FULL else "float32"
    if dtype != reading.dtype:
        advice = "Their ranges differ: convert all files to one type."
        raise problem(path, f"holds {array.dtype}; expected {reading.dtype}", advice)
    with np.errstate(over="ignore"):  # overflow gives infinity, which counts as no data
        return array.astype(dtype, copy=False)


def _fill(
    array: np.ndarray, has_data: np.ndarray | None, replaced: np.ndarray | None, reading: Reading
) -> tuple[np.ndarray, np.ndarray]:
    if has_data is None and replaced is None:
        return array, _everywhere(array)
    mean = np.array(reading.mean or [0.0] * array.shape[2]) * FULL[reading.dtype]
    mean = (mean if array.dtype.kind == "f" else np.rint(mean)).astype(array.dtype)
    array = array.copy()
    if replaced is not None:
        np.copyto(array, mean, where=replaced)
    if has_data is not None:
        array[~has_data] = mean
    return array, _everywhere(array) if has_data is None else has_data


def _everywhere(array: np.ndarray) -> np.ndarray:
    """Returns one True for all pixels: it takes no memory."""
    return np.ndarray(array.shape[:2], bool, b"\1", strides=(0, 0))


def is_opaque(array: Shaped[np.ndarray, "h w c"]) -> bool:
    """True if there are four channels and the last has the dtype's largest value everywhere (1 for floats)."""
    if array.shape[2] != 4:
        return False
    return bool((array[..., 3] == (1 if array.dtype.kind == "f" else np.iinfo(array.dtype).max)).all())


def _kind(array: np.ndarray) -> str:
    return f"{array.shape[2]} bands of {array.dtype}"


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]}x{array.shape[0]}"


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
