"""Decodes TIFF files with tifffile. OpenCV or Pillow steps in where tifffile lacks imagecodecs, which is optional."""

import contextlib
import io
import logging
import math
import threading
from collections.abc import Iterator

import cv2
import numpy as np
from jaxtyping import Bool, UInt8
from PIL import TiffImagePlugin
from tifffile import COMPRESSION, PHOTOMETRIC, TiffFile, TiffPage

from jaxseg.data.read.decode import Unreadable, turn
from jaxseg.data.read.pixels import Pixels

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
NODATA, ORIENTATION, PALETTE = 42113, 274, 320  # tags
DENSE = {COMPRESSION.NONE, COMPRESSION.LZW, COMPRESSION.DEFLATE, COMPRESSION.ADOBE_DEFLATE, COMPRESSION.PACKBITS}
"""Compressions with a ratio of at most 1100."""

OTHERS = {COMPRESSION.LZW, COMPRESSION.DEFLATE, COMPRESSION.ADOBE_DEFLATE, COMPRESSION.JPEG}
"""Compressions that OpenCV and Pillow decode to equal pixels. Fax is left out: its damage goes unnoticed."""


class _Errors(logging.Handler):
    """Collects tifffile's log messages per thread: it logs damage instead of raising."""

    def __init__(self):
        super().__init__(logging.ERROR)
        self._threads = threading.local()

    def emit(self, record: logging.LogRecord) -> None:
        self._threads.messages = [*getattr(self._threads, "messages", []), record.getMessage().split(" raised ")[-1]]

    def take(self) -> list[str]:
        messages, self._threads.messages = getattr(self._threads, "messages", []), []
        return messages


_errors = _Errors()
logging.getLogger("tifffile").addHandler(_errors)
logging.getLogger("tifffile").propagate = False


def read(data: bytes, indices: bool = False) -> Pixels:
    """Decodes a TIFF to pixels [h w c]; several pages, or planes, of one band become its bands.

    `indices` as in `decode.read`. Raises Unreadable.
    """
    with _open(data) as (file, pages):
        page, planes, mask = pages[0], planes_behind(file, pages), data_mask(file, pages)
        if planes is None:
            arrays = [_pixels(page, data) for page in pages]
            planes = np.stack(arrays, -1) if len(arrays) > 1 else arrays[0]
        pixels, color = interpret(planes, page, indices)
        orientation = orientation_of(page)
        dtype = np.dtype(f"{pixels.dtype.kind}{pixels.dtype.itemsize}")  # in the machine's byte order
        pixels = np.ascontiguousarray(turn(pixels, orientation), dtype)
        mask = None if mask is None else turn(mask, orientation)
        return Pixels(pixels, None if mask is not None else nodata(page), color, orientation, mask)


def palette(data: bytes) -> UInt8[np.ndarray, "n 3"] | None:
    """Returns the palette, uint8 [n 3] RGB, or None if the picture has none. Raises Unreadable."""
    with _open(data) as (_, pages):
        return _colors(pages[0]) if pages[0].photometric == PHOTOMETRIC.PALETTE else None


@contextlib.contextmanager
def _open(data: bytes) -> Iterator[tuple[TiffFile, list[TiffPage]]]:
    """Yields the file and the checked pages of the picture. Damage that tifffile logs becomes Unreadable."""
    _errors.take()
    try:
        with TiffFile(io.BytesIO(data)) as file:
            pages = picture_pages(file)
            _check(pages, len(data))
            yield file, pages
    except (Unreadable, MemoryError):
        raise
    except Exception as error:  # the log says more
        raise Unreadable(f"is a damaged TIFF: {(_errors.take() or [str(error) or type(error).__name__])[0]}") from None
    if messages := _errors.take():
        raise Unreadable(f"is a damaged TIFF: {messages[0]}")


def picture_pages(file: TiffFile) -> list[TiffPage]:
    """Returns the pages of the picture, without overviews and masks."""
    return [page for page in file.pages if not page.is_reduced and not page.is_mask] or [file.pages[0]]


def planes_behind(file: TiffFile, pages: list[TiffPage]) -> np.ndarray | None:
    """Returns the planes of a picture as bands [h w c], if only the first has a page: ImageJ stores large stacks so.

    Returns None for other files. Raises Unreadable for a stack of more than one kind of planes.
    """
    if len(pages) > 1 or not (file.is_imagej or file.is_shaped) or len(file.series) != 1:
        return None
    series, page = file.series[0], pages[0]
    if series.size == page.size:
        return None
    if series.shape[1:] != page.shape:
        raise Unreadable(f"is a stack of shape {series.shape} ({series.axes}); expected a picture")
    return np.moveaxis(series.asarray(maxworkers=1), 0, -1)


def data_mask(file: TiffFile, pages: list[TiffPage]) -> Bool[np.ndarray, "h w"] | None:
    """Decodes GDAL's internal mask, as stored: True for pixels with data. None if there is none. Raises Unreadable."""
    masks = [page for page in file.pages[1:] if page.is_mask and not page.is_reduced]
    if not masks:
        return None
    size = pages[0].imagelength, pages[0].imagewidth
    arrays = [np.atleast_3d(page.asarray(maxworkers=1)) != 0 for page in masks]
    if any(array.shape[:2] != size for array in arrays):
        raise Unreadable("is a damaged TIFF: its mask has another size than the picture")
    return np.concatenate(arrays, -1).any(-1)


def _check(pages: list[TiffPage], size: int) -> None:
    page = pages[0]
    if any(other.shape != page.shape or other.dtype != page.dtype for other in pages):
        raise Unreadable(f"holds {len(pages)} pictures of several sizes or types; expected one")
    if len(pages) > 1 and page.samplesperpixel > 1:
        raise Unreadable(f"holds {len(pages)} pictures of {page.samplesperpixel} bands; expected one")
    if page.imagedepth > 1:
        raise Unreadable(f"is a volume of {page.imagedepth} slices; expected a picture")
    if page.dtype is None or page.dtype.kind not in "buif":
        raise Unreadable(f"holds {page.dtype or 'values of an unknown type'}; expected integers or floats")
    if page.imagewidth < 1 or page.imagelength < 1:
        raise Unreadable(f"has no pixels: it is {page.imagewidth}x{page.imagelength}")
    # GDAL omits empty tiles: they have no bytes, and tifffile fills them with nodata.
    empty = any(not count for page in pages for count in page.databytecounts)
    most = 1100 * size + (2**30 if empty else 2**16)
    if page.compression in DENSE and sum(page.nbytes for page in pages) > most:
        raise Unreadable(f"claims {page.imagewidth}x{page.imagelength} pixels, which {size} bytes cannot hold")
    for page in pages:
        end = max((at + count for at, count in zip(page.dataoffsets, page.databytecounts) if count), default=0)
        if end > size:
            raise Unreadable(f"is cut off after {size} bytes: its pixels go on to byte {end}")
        chunks = math.prod(page.chunked)
        if min(len(page.dataoffsets), len(page.databytecounts)) < chunks and not page.is_contiguous:
            raise Unreadable(f"is a damaged TIFF: it has {len(page.dataoffsets)} of {chunks} strips or tiles")


def _pixels(page: TiffPage, data: bytes) -> np.ndarray:
    """Decodes a page to [h w] or [h w c], as stored."""
    try:
        pixels = page.asarray(maxworkers=1)  # in this thread: `_Errors` keeps messages per thread
    except (ValueError, ImportError) as error:
        if not isinstance(error, ImportError) and "imagecodecs" not in str(error):
            raise
        return _without_imagecodecs(page, data)
    return np.moveaxis(pixels, 0, -1) if page.axes.startswith("S") else pixels


def _without_imagecodecs(page: TiffPage, data: bytes) -> np.ndarray:
    """Decodes the first page to [h w] or [h w c] by OpenCV or Pillow, where they give equal pixels."""
    pixels, plain = None, page.planarconfig == 1 and page.tags.valueof(ORIENTATION, 1) == 1
    plain = plain and page.index == 0 and page.compression in OTHERS
    if plain and page.photometric == PHOTOMETRIC.PALETTE:
        pixels = np.array(TiffImagePlugin.TiffImageFile(io.BytesIO(data)))
    elif plain and page.samplesperpixel in (1, 3, 4) and page.bitspersample >= 8:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if pixels is not None and pixels.ndim == 3:
            pixels = pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]
    if pixels is None or pixels.dtype != page.dtype or pixels.size != page.size:
        raise Unreadable(
            f"is compressed with {page.compression.name}, which needs another package: pip install imagecodecs"
        )
    return pixels


def interpret(pixels: np.ndarray, page: TiffPage, indices: bool) -> tuple[np.ndarray, bool]:
    """Interprets samples by the page's tags; returns [h w c], and True for a color picture.

    - `pixels`: [h w] or [h w c] as stored.
    - `page`: photometric interpretation, bits per sample and palette.
    - `indices`: as in `decode.read`.

    Raises Unreadable for a color space other than gray, palette, RGB and YCbCr.
    """
    meaning, bits = page.photometric, page.bitspersample
    pixels = np.atleast_3d(pixels.view(np.uint8) if pixels.dtype == bool else pixels)
    if meaning == PHOTOMETRIC.MINISWHITE and pixels.dtype.kind == "u":
        pixels = 2**bits - 1 - pixels
    if meaning == PHOTOMETRIC.PALETTE and not indices:
        return _colors(page)[pixels[..., 0], ::-1], True
    if bits < 8 and meaning != PHOTOMETRIC.PALETTE and not indices:
        pixels = pixels * np.uint8(255 // (2**bits - 1))
    if meaning in (PHOTOMETRIC.RGB, PHOTOMETRIC.YCBCR) and _is_color(page):
        return pixels[..., [2, 1, 0, 3][: page.samplesperpixel]], True
    if meaning not in (PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.MINISWHITE, PHOTOMETRIC.PALETTE, PHOTOMETRIC.RGB):
        raise Unreadable(f"has colors of kind {getattr(meaning, 'name', meaning)}; convert it to RGB")
    return pixels, False


def _colors(page: TiffPage) -> np.ndarray:
    """Returns the palette, uint8 [n 3] RGB. The tag has 16 bits per channel, but some programs fill only 8."""
    colors = np.asarray(page.colormap).T
    return (colors >> 8 if colors.max() > 255 else colors).astype(np.uint8)


def _is_color(page: TiffPage) -> bool:
    """Three samples, or four where the last is an alpha and not, say, infrared."""
    return page.samplesperpixel == 3 or (page.samplesperpixel == 4 and 0 not in page.extrasamples)


def orientation_of(page: TiffPage) -> int:
    """Returns the orientation, 1 to 8."""
    return page.tags.valueof(ORIENTATION, 1)


def nodata(page: TiffPage) -> float | None:
    """Returns GDAL's nodata value, a tag of text; None if it is missing, NaN or not a number."""
    try:
        value = float(str(page.tags.valueof(NODATA, "nan")).strip("\0 "))
    except ValueError:
        return None
    return None if np.isnan(value) else value
