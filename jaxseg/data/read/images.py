"""Reads pixels from image files of any supported format, in the file's own dtype."""

import contextlib
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Shaped, UInt8

from jaxseg.base.errors import problem
from jaxseg.data.read import decode, tiff
from jaxseg.data.read.decode import Unreadable


@dataclass(frozen=True)
class Pixels:
    """Pixels of an image file."""

    array: Shaped[np.ndarray, "h w c"]
    """[h w c] in the file's own dtype."""
    nodata: float | None
    """GDAL's nodata value, in the file's units; None if the file names none."""
    color: bool
    """True for blue, green, red and perhaps alpha; False for bands in the file's order."""


def read_pixels(path: Path, *, indices: bool = False) -> Pixels:
    """Reads pixels [h w c], with EXIF's orientation applied and palette indices replaced by their colors.

    With `indices`, palette indices stay, and samples of fewer than 8 bits stay as stored: one bit is 0 or 1, not 0 or
    255. Raises DataError naming the file for any fault, also if only part of the picture is there.
    """
    data = _read(path)
    with _naming(path):
        if data.startswith(tiff.MAGIC):
            array, color, nodata = tiff.read(data, indices)
        else:
            array, nodata = decode.read(data, indices), None
            color = array.shape[2] >= 3
    return Pixels(array, nodata, color)


def read_palette(path: Path) -> UInt8[np.ndarray, "n 3"] | None:
    """Reads a picture's palette, uint8 [n 3] RGB; None if it has none. Raises DataError."""
    data = _read(path)
    with _naming(path):
        return tiff.palette(data) if data.startswith(tiff.MAGIC) else decode.palette(data)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except Unreadable as error:
        raise problem(path, str(error)) from None
    except MemoryError:
        raise problem(path, "does not fit in memory: cut it into tiles, or free memory") from None


def _read(path: Path) -> bytes:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe would block, a device would never end
            what = "is a folder" if path.is_dir() else "is a pipe, device or socket"
            raise problem(path, f"{what}; expected an image file")
        with open(path, "rb", buffering=0) as file:
            data = file.readall()
    except OSError as error:
        raise problem(path, f"cannot be opened ({error.strerror or error})") from None
    except MemoryError:
        raise problem(path, "does not fit in memory: cut it into tiles, or free memory") from None
    if not data:
        raise problem(path, "is empty (0 bytes)")
    return data
