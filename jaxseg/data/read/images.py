"""Picture files of any kind -> their pixels, in the file's own type."""

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
    """What a picture file holds."""

    array: Shaped[np.ndarray, "h w c"]
    """[h w c] in the file's own dtype."""
    nodata: float | None
    """GeoTIFF's value of pixels without data, if it names one."""
    color: bool
    """A color picture: the array is blue, green, red and perhaps alpha. If not, bands in the file's order."""


def read_pixels(path: Path, *, indices: bool = False) -> Pixels:
    """A picture's pixels. EXIF's orientation is applied; a palette's colors are put in.

    With `indices` a palette's numbers come instead of its colors, and samples of fewer than 8 bits as they are stored:
    0 and 1 of a bit, not 0 and 255. Raises DataError, whatever is wrong, also when only a part of the picture is there.
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
    """The colors, RGB, that the numbers of a picture with a palette stand for; None without one. Raises DataError."""
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
        raise problem(path, "needs more memory than there is") from None


def _read(path: Path) -> bytes:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for, a device never end
            raise problem(path, "is a folder" if path.is_dir() else "is no file but a pipe, device or socket")
        with open(path, "rb", buffering=0) as file:
            data = file.readall()
    except OSError as error:
        raise problem(path, f"cannot be opened ({error.strerror or error})") from None
    except MemoryError:
        raise problem(path, "needs more memory than there is") from None
    if not data:
        raise problem(path, "is empty (0 bytes)")
    return data
