"""Opens images larger than memory for prediction: windows of an uncompressed TIFF are read from disk on demand."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tifffile

from jaxseg.base.errors import problem
from jaxseg.data.read import tiff
from jaxseg.data.read.images import mask_beside
from jaxseg.data.read.pixels import Pixels
from jaxseg.data.read.samples import Reading, convert, read_tile

Place = tuple[slice, slice]


class Mapped:
    """Array [h w ...] that loads only the window asked for.

    - `size`: height and width in pixels.
    - `read`: function from two slices (rows, columns) to that part of the array.
    """

    def __init__(self, size: tuple[int, int], read: Callable[[Place], np.ndarray]):
        self._read = read
        corner = self[:1, :1]
        self.shape, self.dtype = (*size, *corner.shape[2:]), corner.dtype

    def __getitem__(self, where: Place) -> np.ndarray:
        return self._read(where)


def open_tile(path: Path, reading: Reading) -> tuple[np.ndarray | Mapped, np.ndarray | Mapped]:
    """Opens an image [h w c] and its data mask, bool [h w], like `read_tile`; an uncompressed TIFF stays on disk.

    Raises DataError. Faults in the pixels of a mapped file may only show when a window is read.
    """
    if (plain := _find(path)) is None:
        return read_tile(path, reading)

    def read(where: Place) -> tuple[np.ndarray, np.ndarray]:
        array, color = tiff.interpret(plain.cut(where), plain.page, indices=False)
        nodata, part = (tiff.nodata(plain.page), None) if mask is None else (None, mask[where])
        return convert(Pixels(array, nodata, color, mask=part), path, reading)

    size = plain.page.imagelength, plain.page.imagewidth
    beside = mask_beside(path, size)
    mask = plain.mask if beside is None else beside
    return Mapped(size, lambda where: read(where)[0]), Mapped(size, lambda where: read(where)[1])


@dataclasses.dataclass(frozen=True)
class _Plain:
    """TIFF whose pixels lie in the file as in memory."""

    path: Path
    page: tifffile.TiffPage
    byteorder: str
    mask: np.ndarray | None
    """GDAL's internal mask, bool [h w]: it is kept in memory."""

    def cut(self, where: Place) -> np.ndarray:
        """Reads [h w] or [h w c]. Maps the file anew, since pages read from a map count as the process's memory."""
        dtype, page = self.page.dtype, self.page
        try:
            array = np.memmap(self.path, dtype.newbyteorder(self.byteorder), "r", page.dataoffsets[0], page.shape)
            return np.array((np.moveaxis(array, 0, -1) if page.axes.startswith("S") else array)[where], dtype)
        except Exception as error:  # a library raises errors of any type for a file that changed
            raise problem(self.path, f"can no longer be read ({error})") from None


def _find(path: Path) -> _Plain | None:
    """Returns None for other or damaged files: `read_tile` reads them, or names the fault."""
    try:
        with open(path, "rb") as file:
            if file.read(4) not in tiff.MAGIC:
                return None
        with tifffile.TiffFile(path) as file:
            pages = tiff.picture_pages(file)
            page, mask = pages[0], tiff.data_mask(file, pages)
            plain = len(pages) == 1 and page.is_memmappable and page.imagedepth == 1
            plain = plain and page.dtype.kind in "uif" and page.bitspersample >= 8 and tiff.orientation_of(page) == 1
            plain = plain and page.dataoffsets[0] + page.nbytes <= path.stat().st_size
            if plain and tiff.planes_behind(file, pages) is None:
                for tag in (tiff.NODATA, tiff.PALETTE):  # read now: the file is closed later
                    page.tags.valueof(tag)
                return _Plain(path, page, file.byteorder, mask)
    except Exception:  # tifffile raises errors of any type for a damaged file
        pass
    return None
