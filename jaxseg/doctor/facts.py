"""Measures decoded images and masks; the facts are two dataclasses of plain numbers."""

import dataclasses
import hashlib
import math

import cv2
import numpy as np

from jaxseg.base.config import Data
from jaxseg.data.read.pixels import Pixels, find_missing
from jaxseg.data.read.samples import FULL, is_opaque
from jaxseg.doctor import shapes

THUMBNAIL = 16  # pixels a side
MOST_COLORS = 32  # colors of a drawn mask; with more, flat areas are searched
MOST_VALUES = 1024  # mask values counted separately; rarer ones are merged
REACH = 8  # largest shift of a mask that is tried, in pixels


@dataclasses.dataclass(frozen=True)
class ImageFacts:
    """Facts of an image. Tuples have one value per channel of the network's input, over pixels with data."""

    height: int
    width: int
    channels: int  # in the file
    dtype: str
    color: bool
    nodata: float | None
    orientation: int  # EXIF or TIFF orientation, 1 to 8
    pixels: int  # pixels with data
    nonfinite: int  # pixels with a value that is NaN or infinite
    counts: tuple[int, ...]  # values with data
    low: tuple[float, ...]  # smallest value, in the file's units
    high: tuple[float, ...]  # largest value, in the file's units
    total: tuple[float, ...]  # sum of values divided by `FULL`
    squares: tuple[float, ...]  # sum of their squares
    opaque: bool  # four channels, and the last has the dtype's largest value everywhere
    levels: int  # distinct values of the first channel, in a sample of about 2**16 pixels
    content: str  # hash of the pixels
    thumbnail: str  # hex of uint8 [THUMBNAIL THUMBNAIL], gray, stretched to 0..255
    crs: str = ""  # `Ground.crs`
    corners: tuple[float, ...] = ()  # `Ground.corners`; () without coordinates


@dataclasses.dataclass(frozen=True)
class MaskFacts:
    """Facts of a mask. Tuples, except `shift`, have one item per value, the most frequent first."""

    height: int
    width: int
    color: bool
    jpeg: bool
    orientation: int  # EXIF or TIFF orientation, 1 to 8
    distinct: int  # number of values, before rare ones were merged
    values: tuple[int, ...]
    pixels: tuple[int, ...]
    with_data: tuple[int, ...]  # pixels where the image has data
    palette: tuple[int, ...]  # colors of the values, 0xRRGGBB, if they are palette indices; else ()
    between: tuple[int, ...]  # pixels between a lower and a higher neighbor; 0 unless gray with 3 to 64 values
    flat: tuple[int, ...]  # pixels like their neighbors; () for class numbers, two values or few colors
    whole: int  # values above 0 whose pixels form one piece; 0 with fewer than 3 values
    outline: tuple[int, ...]  # `shapes.outline`; () unless gray with 255 and two values or more besides
    block: int  # borders lie only on multiples of this many pixels
    shift: tuple[int, ...]  # rows and columns from its borders to the image's edges; () with too few borders
    content: str  # hash of the values
    nodata: float | None = None  # GDAL's nodata value that the file names


def image_facts(pixels: Pixels, settings: Data) -> tuple[ImageFacts, np.ndarray]:
    """Measures an image; returns its facts and its data mask, bool [h w], as in `samples.read_tile`."""
    array, nodata = pixels.array, pixels.nodata if settings.nodata is None else settings.nodata
    dtype = array.dtype
    if str(dtype) not in FULL:
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
    height, width, channels = array.shape
    asked = chosen(channels, pixels.color, settings.channels) if settings.channels else []
    bands = asked or list(range(channels))
    used = array[..., asked] if asked else array
    alpha = bands.index(3) if pixels.alpha is not None and 3 in bands else None
    has_data, missing = find_missing(used, nodata, alpha, pixels.mask)
    nonfinite = 0 if used.dtype.kind != "f" or missing is None else int((~np.isfinite(used)).any(-1).sum())
    if missing is None and has_data is None:
        measured = [used[..., c].ravel() for c in range(used.shape[2])]
        shown = used[..., :3]
    else:
        there = np.broadcast_to((has_data if has_data is not None else np.True_)[..., None], used.shape)
        there = there if missing is None else there & ~missing
        measured = [used[..., c][there[..., c]] for c in range(used.shape[2])]
        shown = np.where(there[..., :3], used[..., :3], 0)
    has_data = np.ones((height, width), bool) if has_data is None else has_data
    low, high, total, squares = zip(*map(_sums, measured))
    thumbnail = thumbnail_of(np.ascontiguousarray(shown))
    side = max(1, math.isqrt(height * width) // 256)
    return ImageFacts(
        height,
        width,
        channels,
        dtype=str(dtype),
        color=pixels.color,
        nodata=nodata,
        orientation=pixels.orientation,
        pixels=int(has_data.sum()),
        nonfinite=nonfinite,
        counts=tuple(len(values) for values in measured),
        low=low,
        high=high,
        total=total,
        squares=squares,
        opaque=is_opaque(pixels.array),
        levels=len(np.unique(used[::side, ::side, 0])),
        content=_hash(array),
        thumbnail=thumbnail,
    ), has_data


def chosen(channels: int, color: bool, asked: tuple[int, ...] | None) -> list[int]:
    """Returns the array indices of the bands that --channels asks for, as `samples.read_tile` selects them.

    - `channels`: number of channels in the array.
    - `color`: true for a color picture, whose array is blue, green, red and perhaps alpha.
    - `asked`: bands from 1 in the file's order (1 is red in a color picture); None for all. Missing ones are skipped.

    Bands 1 2 3 of a color picture come as blue, green, red. A gray picture counts as having them.
    """
    if asked is None:
        return list(range(channels))
    if channels == 1 and set(asked) <= {1, 2, 3}:
        return [0] * len(asked)
    if color and asked[:3] == (1, 2, 3):
        asked = (3, 2, 1, *asked[3:])
    order = [2, 1, 0, 3] if color else range(channels)
    return [order[band - 1] for band in asked if 1 <= band <= channels]


def mask_facts(
    values: np.ndarray,
    color: bool,
    jpeg: bool,
    image: np.ndarray | None,
    has_data: np.ndarray | None,
    palette: np.ndarray | None = None,
    orientation: int = 1,
) -> MaskFacts:
    """Measures a mask.

    - `values`: integer [h w]; with `color`, colors 0xRRGGBB.
    - `jpeg`: true if the file is a JPEG.
    - `image`, `has_data`: the image [h w c] and its data mask, bool [h w]; None if its size differs.
    - `palette`: colors of palette indices, uint8 [n 3] RGB, or None.
    - `orientation`: EXIF or TIFF orientation, 1 to 8.
    """
    content, block = _hash(values), _block(values)
    counts = _count(values)
    distinct = len(counts)
    if distinct > MOST_VALUES:  # a photo, or a JPEG: rare values are rounded, colors to 32 levels per channel
        rare = ~np.isin(values, list(counts)[:MOST_VALUES])
        values = np.where(rare, values.astype(np.int64) & (0xF8F8F8 if color else ~63), values)
        counts = _count(values)
    between = _count(values[_between(values)]) if not color and 3 <= distinct <= 64 else {}
    with_data = counts if has_data is None or has_data.all() else _count(values[has_data])
    several = len(counts) >= 3
    levels = distinct > MOST_COLORS if color else several and not all(0 <= v < 64 or v == shapes.VOID for v in counts)
    flat = _count(values[shapes.flat_pixels(values, color)]) if levels else {}
    return MaskFacts(
        *values.shape,
        color=color,
        jpeg=jpeg,
        orientation=orientation,
        distinct=distinct,
        values=tuple(counts),
        pixels=tuple(counts.values()),
        with_data=tuple(with_data.get(value, 0) for value in counts),
        palette=() if palette is None else tuple(_hex(palette, value) for value in counts),
        between=tuple(between.get(value, 0) for value in counts),
        flat=tuple(flat.get(value, 0) for value in counts) if levels else (),
        whole=shapes.whole_pieces(values) if several else 0,
        outline=shapes.outline(values) if several and not color and shapes.VOID in counts else (),
        block=block,
        shift=() if image is None else _shift(image, values),
        content=content,
    )


def _hex(palette: np.ndarray, number: int) -> int:
    return int.from_bytes(palette[number].tobytes(), "big") if number < len(palette) else -1


def _count(values: np.ndarray) -> dict[int, int]:
    """Counts the pixels of every value, the most frequent first. Counts runs of equal values: masks have long ones."""
    if not values.size:
        return {}
    flat = values.ravel()
    starts = np.concatenate([[0], 1 + np.flatnonzero(flat[1:] != flat[:-1])])
    found, which = np.unique(flat[starts], return_inverse=True)
    pixels = np.bincount(which, np.diff(starts, append=flat.size)).astype(np.int64)
    order = np.argsort(-pixels, kind="stable")
    return dict(zip(found[order].tolist(), pixels[order].tolist()))


def _between(values: np.ndarray) -> np.ndarray:
    """True for pixels between a lower and a higher neighbor, a trace of interpolation: bool [h w]."""
    result = np.zeros(values.shape, bool)
    for across, found in ((values, result), (values.T, result.T)):
        before, here, after = across[:, :-2], across[:, 1:-1], across[:, 2:]
        found[:, 1:-1] |= ((before < here) & (here < after)) | ((before > here) & (here > after))
    return result


def _block(values: np.ndarray, least: int = 16) -> int:
    """Returns the largest step whose multiples hold all borders, in pixels; 1 with fewer than `least` borders."""
    rows = 1 + np.flatnonzero((values[1:] != values[:-1]).any(1))
    columns = 1 + np.flatnonzero((values[:, 1:] != values[:, :-1]).any(0))
    return int(np.gcd.reduce(np.concatenate([rows, columns]))) if len(rows) + len(columns) >= least else 1


def _shift(image: np.ndarray, values: np.ndarray, side: int = 160, least: int = 64) -> tuple[int, ...]:
    """Returns the shift, at most `REACH` pixels, that fits the mask's borders to the image's edges best.

    Only the middle `side` pixels are compared. () with fewer than `least` pixels of border.
    """
    if min(values.shape) < 6 * REACH:
        return ()
    middle = tuple(slice(max(0, (n - side) // 2), max(0, (n - side) // 2) + side) for n in values.shape)
    values, gray = values[middle], _finite(image[middle][..., :3]).mean(-1)
    edges = np.hypot(cv2.Sobel(gray, cv2.CV_64F, 1, 0), cv2.Sobel(gray, cv2.CV_64F, 0, 1))
    edges = np.minimum(edges, np.quantile(edges, 0.95))
    borders = np.zeros(values.shape, np.float32)
    borders[:, 1:] = values[:, 1:] != values[:, :-1]
    borders[1:][values[1:] != values[:-1]] = 1
    inner = borders[REACH:-REACH, REACH:-REACH]
    if inner.sum() < least or not edges.any():
        return ()
    edges /= edges.max()
    scores = cv2.matchTemplate(edges.astype(np.float32), inner, cv2.TM_CCORR)  # [2 REACH + 1, 2 REACH + 1]
    row, column = np.unravel_index(scores.argmax(), scores.shape)
    return int(row) - REACH, int(column) - REACH


def _sums(values: np.ndarray, part: int = 2**22) -> tuple[float, float, float, float]:
    """Returns the minimum, maximum, sum and sum of squares of [n] values; the sums are of values divided by `FULL`.

    Works in chunks of `part` values to save memory.
    """
    if not values.size:
        return 0.0, 0.0, 0.0, 0.0
    low, high, total, squares = zip(*(_sums_of_part(values[i : i + part]) for i in range(0, values.size, part)))
    return min(low), max(high), sum(total), sum(squares)


def _sums_of_part(values: np.ndarray) -> tuple[float, float, float, float]:
    pixels, dtype = np.ones(1), values.dtype
    if dtype.kind != "f":  # few distinct values: a histogram is faster
        least = np.iinfo(dtype).min
        pixels = np.bincount(values.astype(np.intp) - least)
        values = np.flatnonzero(pixels)
        pixels, values = pixels[values], values + least
    scaled = values.astype(np.float64) / FULL[str(dtype)]
    return float(values.min()), float(values.max()), float((pixels * scaled).sum()), float((pixels * scaled**2).sum())


def thumbnail_of(image: np.ndarray) -> str:
    """Returns the thumbnail of [h w c]."""
    small = cv2.resize(image, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
    small = _finite(small).reshape(THUMBNAIL, THUMBNAIL, -1).mean(-1)
    small -= small.min()
    return np.rint(small * (255 / (small.max() or 1.0))).astype(np.uint8).tobytes().hex()


def _finite(array: np.ndarray) -> np.ndarray:
    """Converts to float64, with 0 for NaN and infinity."""
    return np.nan_to_num(array.astype(np.float64), posinf=0, neginf=0)


def _hash(array: np.ndarray) -> str:
    digest = hashlib.blake2b(np.ascontiguousarray(array).data, digest_size=16)
    digest.update(f"{array.dtype} {array.shape}".encode())
    return digest.hexdigest()
