"""Reads pixels from image files of any supported format, in the file's own dtype."""

import contextlib
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8

from jaxseg.base import files
from jaxseg.base.errors import problem
from jaxseg.data.read import decode, numpy_file, tiff
from jaxseg.data.read.decode import Unreadable
from jaxseg.data.read.pixels import Pixels

__all__ = ["Pixels", "mask_beside", "read_palette", "read_pixels", "stamp"]

LFS = b"version https://git-lfs.github.com/spec/"
"""First bytes of a pointer that Git LFS leaves in a file's place."""


def read_pixels(path: Path, *, indices: bool = False) -> Pixels:
    """Reads pixels [h w c], with EXIF's orientation applied and palette indices replaced by their colors.

    With `indices`, palette indices stay, and samples of fewer than 8 bits stay as stored: one bit is 0 or 1, not 0 or
    255. Raises DataError naming the file for any fault, also if only part of the picture is there.
    """
    data = _read(path)
    with _naming(path):
        pixels = _reader(data).read(data, indices)
    mask = mask_beside(path, pixels.array.shape[:2])
    return pixels if mask is None else replace(pixels, nodata=None, mask=mask)


def read_palette(path: Path) -> UInt8[np.ndarray, "n 3"] | None:
    """Reads a picture's palette, uint8 [n 3] RGB; None if it has none. Raises DataError."""
    data = _read(path)
    with _naming(path):
        return _reader(data).palette(data)


def mask_beside(path: Path, size: tuple[int, int]) -> Bool[np.ndarray, "h w"] | None:
    """Reads GDAL's mask of an image from a file beside it, such as image.tif.msk: True for pixels with data.

    `size` is the image's height and width. Returns None if there is no such file. Raises DataError.
    """
    if (beside := _beside(path)) is None:
        return None
    mask = (read_pixels(beside, indices=True).array != 0).any(-1)
    if mask.shape != size:
        (h, w), (height, width) = mask.shape, size
        raise problem(beside, f"is {w}x{h}, but its image {path.name} is {width}x{height}")
    return mask


def stamp(path: Path) -> list[int]:
    """Returns numbers that change with what `read_pixels` reads: `files.stamp` of the file and of GDAL's mask beside.

    Raises OSError.
    """
    beside = _beside(path)
    return files.stamp(path) + (files.stamp(beside) if beside is not None else [])


def _beside(path: Path) -> Path | None:
    beside = path.with_name(path.name + ".msk")
    try:
        return beside if stat.S_ISREG(beside.stat().st_mode) else None
    except OSError:  # usual: no such file; or the name is too long
        return None


def _reader(data: bytes):
    """Returns the module that reads a file of this content. Raises Unreadable for a pointer of Git LFS."""
    if data.startswith(LFS):
        raise Unreadable("is a pointer of Git LFS, not the file itself: run git lfs pull")
    return next((module for module in (tiff, numpy_file) if data.startswith(module.MAGIC)), decode)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turns every error of a reader, whatever its type, into a DataError with the file's name."""
    try:
        yield
    except Unreadable as error:
        raise problem(path, str(error)) from None
    except MemoryError:
        raise problem(path, "does not fit in memory: cut it into tiles, or free memory") from None
    except Exception as error:  # libraries raise errors of any type for a damaged file
        raise problem(path, f"is damaged: {error or type(error).__name__}") from None


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
