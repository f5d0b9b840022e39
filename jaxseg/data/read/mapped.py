"""Images for prediction that need not fit in memory: an uncompressed TIFF stays on disk and is read where it is cut."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tifffile

from jaxseg.base.errors import problem
from jaxseg.data.read import tiff
from jaxseg.data.read.images import Pixels
from jaxseg.data.read.samples import Reading, convert, read_tile

Place = tuple[slice, slice]


class Mapped:
    """An array [h w ...] of which only what is cut is ever in memory; `read` gives that."""

    def __init__(self, size: tuple[int, int], read: Callable[[Place], np.ndarray]):
        self._read = read
        corner = self[:1, :1]
        self.shape, self.dtype = (*size, *corner.shape[2:]), corner.dtype

    def __getitem__(self, where: Place) -> np.ndarray:
        return self._read(where)


def open_tile(path: Path, reading: Reading) -> tuple[np.ndarray | Mapped, np.ndarray | Mapped]:
    """The image and where it has data, as `read_tile` gives them, but those of an uncompressed TIFF are read where they
    are cut.

    Raises DataError; what is wrong with the pixels of a mapped file may only be found when they are cut.
    """
    if (plain := _find(path)) is None:
        return read_tile(path, reading)

    def read(where: Place) -> tuple[np.ndarray, np.ndarray]:
        array, color = tiff.interpret(plain.cut(where), plain.page, indices=False)
        return convert(Pixels(array, tiff.nodata(plain.page), color), path, reading)

    size = plain.page.imagelength, plain.page.imagewidth
    return Mapped(size, lambda where: read(where)[0]), Mapped(size, lambda where: read(where)[1])


@dataclasses.dataclass(frozen=True)
class _Plain:
    """A TIFF whose pixels lie in the file as they would in memory."""

    path: Path
    page: tifffile.TiffPage
    byteorder: str

    def cut(self, where: Place) -> np.ndarray:
        """[h w] or [h w c]. The map is made anew for every cut, since what was read of one counts as our memory."""
        dtype, page = self.page.dtype, self.page
        try:
            array = np.memmap(self.path, dtype.newbyteorder(self.byteorder), "r", page.dataoffsets[0], page.shape)
            return np.array((np.moveaxis(array, 0, -1) if page.axes.startswith("S") else array)[where], dtype)
        except (OSError, ValueError) as error:
            raise problem(self.path, f"cannot be read any more ({error})") from None


def _find(path: Path) -> _Plain | None:
    """None for a file of any other kind, and for one that is damaged: `read_tile` says how."""
    try:
        with open(path, "rb") as file:
            if file.read(4) not in tiff.MAGIC:
                return None
        with tifffile.TiffFile(path) as file:
            page = file.pages[0]
            alone = not any(not (other.is_reduced or other.is_mask) for other in file.pages[1:])
            plain = alone and page.is_memmappable and page.imagedepth == 1
            plain = plain and page.dtype.kind in "uif" and page.bitspersample >= 8
            upright = page.tags.valueof(tiff.ORIENTATION, 1) == 1
            if plain and upright and page.dataoffsets[0] + page.nbytes <= path.stat().st_size:
                return _Plain(path, page, file.byteorder)
    except Exception:  # tifffile raises whatever a broken file leads to
        pass
    return None
