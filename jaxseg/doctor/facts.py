"""What is measured of an image and of a mask, once they are decoded: two dataclasses of plain numbers."""

import dataclasses
import hashlib
import math

import cv2
import numpy as np

from jaxseg.base.config import Data
from jaxseg.data.read.images import Pixels
from jaxseg.data.read.samples import FULL, is_opaque

THUMBNAIL = 16  # pixels a side
MOST_VALUES = 1024  # of a mask are kept each for itself
REACH = 8  # pixels by which a mask is tried to be off


@dataclasses.dataclass(frozen=True)
class ImageFacts:
    """An image. Tuples have a value a channel of those that the network gets, over the pixels with data."""

    height: int
    width: int
    channels: int  # of the file
    dtype: str
    color: bool
    nodata: float | None
    pixels: int  # with data
    nonfinite: int  # pixels
    low: tuple[float, ...]  # in the file's units, as `high`
    high: tuple[float, ...]
    total: tuple[float, ...]  # sum of unit-scaled values
    squares: tuple[float, ...]  # sum of their squares
    opaque: bool  # has a fourth channel, which is the type's largest value everywhere
    levels: int  # values of the first channel, in a sample of some 2**16 pixels
    content: str  # hash of the pixels
    look: int  # 64 bits, which pictures that look alike share but for a few
    thumbnail: str  # hex of uint8 [THUMBNAIL THUMBNAIL], gray, from darkest 0 to lightest 255


@dataclasses.dataclass(frozen=True)
class MaskFacts:
    """A mask. `values`, `pixels` and the others of their length go together, the most frequent value first."""

    height: int
    width: int
    color: bool
    jpeg: bool
    distinct: int  # values, before rare ones were put together
    values: tuple[int, ...]
    pixels: tuple[int, ...]
    with_data: tuple[int, ...]  # pixels where the image has data
    palette: tuple[int, ...]  # colors of the values, 0xRRGGBB, if they are the numbers of a palette; else ()
    between: tuple[int, ...]  # pixels whose neighbors on opposite sides are less and more than they, if gray
    block: int  # borders lie only on multiples of this many pixels
    shift: tuple[int, ...]  # rows and columns from its borders to the image's edges; () if it has too few to tell
    content: str


def image_facts(pixels: Pixels, settings: Data) -> tuple[ImageFacts, np.ndarray]:
    """Facts of an image, and where it has data, bool [h w]: as `tiles.read_tile` has it, in every band that is used."""
    array, nodata = pixels.array, pixels.nodata if settings.nodata is None else settings.nodata
    dtype = array.dtype
    if str(dtype) not in FULL:
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
    height, width, channels = array.shape
    opaque = is_opaque(pixels.array)
    bands = chosen(channels, pixels.color, settings.channels)
    used = array[..., bands] if settings.channels and bands else array
    tested = used[..., [i for i, band in enumerate(bands) if band != 3]] if opaque else used  # an alpha is no value
    finite = np.isfinite(tested).all(-1) if used.dtype.kind == "f" else np.ones((height, width), bool)
    with np.errstate(over="ignore"):
        value = np.float32(nodata) if nodata is not None and used.dtype.kind == "f" else nodata
    has_data = finite if value is None else finite & (tested != value).all(-1)
    whole = bool(has_data.all())
    planes = (used[..., c] for c in range(used.shape[-1]))
    low, high, total, squares = zip(*(_sums(plane.ravel() if whole else plane[has_data]) for plane in planes))
    shown = used[..., :3] if whole else np.where(has_data[..., None], used[..., :3], 0)
    look, thumbnail = _looks(np.ascontiguousarray(shown))
    side = max(1, math.isqrt(height * width) // 256)
    return ImageFacts(
        height,
        width,
        channels,
        dtype=str(dtype),
        color=pixels.color,
        nodata=nodata,
        pixels=int(has_data.sum()),
        nonfinite=int((~finite).sum()),
        low=low,
        high=high,
        total=total,
        squares=squares,
        opaque=opaque,
        levels=len(np.unique(used[::side, ::side, 0])),
        content=_hash(array),
        look=look,
        thumbnail=thumbnail,
    ), has_data


def chosen(channels: int, color: bool, asked: tuple[int, ...] | None) -> list[int]:
    """Indices into an array of so many channels of those that --channels asks for and that are there; all if None.

    As `tiles.read_tile` has it: bands count from 1 in the file's order, where red is the first of a color picture; but
    1 2 3 of one come as blue, green, red, and a gray picture has them too.
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
) -> MaskFacts:
    """Facts of a mask, int [h w]; if its image is of that size, with it [h w c] and where it has data (bool [h w]).

    `palette`: colors of the values, RGB [n 3].
    """
    content, block = _hash(values), _block(values)
    counts = _count(values)
    distinct = len(counts)
    if distinct > MOST_VALUES:  # a photo, or a JPEG: rare values are rounded, colors to 32 a channel
        rare = ~np.isin(values, list(counts)[:MOST_VALUES])
        values = np.where(rare, values.astype(np.int64) & (0xF8F8F8 if color else ~63), values)
        counts = _count(values)
    between = _count(values[_between(values)]) if not color and 3 <= distinct <= 64 else {}
    with_data = counts if has_data is None or has_data.all() else _count(values[has_data])
    return MaskFacts(
        *values.shape,
        color=color,
        jpeg=jpeg,
        distinct=distinct,
        values=tuple(counts),
        pixels=tuple(counts.values()),
        with_data=tuple(with_data.get(value, 0) for value in counts),
        palette=() if palette is None else tuple(_hex(palette, value) for value in counts),
        between=tuple(between.get(value, 0) for value in counts),
        block=block,
        shift=() if image is None else _shift(image, values),
        content=content,
    )


def _hex(palette: np.ndarray, number: int) -> int:
    return int.from_bytes(palette[number].tobytes(), "big") if number < len(palette) else -1


def _count(values: np.ndarray) -> dict[int, int]:
    """Pixels of every value, the most frequent first. Runs of equal values are counted at once: masks have long ones.

    `values`: integers of any shape.
    """
    if not values.size:
        return {}
    flat = values.ravel()
    starts = np.concatenate([[0], 1 + np.flatnonzero(flat[1:] != flat[:-1])])
    found, which = np.unique(flat[starts], return_inverse=True)
    pixels = np.bincount(which, np.diff(starts, append=flat.size)).astype(np.int64)
    order = np.argsort(-pixels, kind="stable")
    return dict(zip(found[order].tolist(), pixels[order].tolist()))


def _between(values: np.ndarray) -> np.ndarray:
    """bool [h w]: pixels with a smaller value on one side and a larger one on the other, as interpolation leaves."""
    result = np.zeros(values.shape, bool)
    for across, found in ((values, result), (values.T, result.T)):
        before, here, after = across[:, :-2], across[:, 1:-1], across[:, 2:]
        found[:, 1:-1] |= ((before < here) & (here < after)) | ((before > here) & (here > after))
    return result


def _block(values: np.ndarray, least: int = 16) -> int:
    """The greatest step on whose multiples all borders lie; 1 when there are too few borders to tell."""
    rows = 1 + np.flatnonzero((values[1:] != values[:-1]).any(1))
    columns = 1 + np.flatnonzero((values[:, 1:] != values[:, :-1]).any(0))
    return int(np.gcd.reduce(np.concatenate([rows, columns]))) if len(rows) + len(columns) >= least else 1


def _shift(image: np.ndarray, values: np.ndarray, side: int = 160, least: int = 64) -> tuple[int, ...]:
    """Where the borders of the mask fit the edges of the image best, at most `REACH` pixels off, in their middle."""
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
    """Smallest and largest of [n] values; sum and sum of squares of them, unit-scaled. By parts, to save memory."""
    if not values.size:
        return 0.0, 0.0, 0.0, 0.0
    low, high, total, squares = zip(*(_sums_of_part(values[i : i + part]) for i in range(0, values.size, part)))
    return min(low), max(high), sum(total), sum(squares)


def _sums_of_part(values: np.ndarray) -> tuple[float, float, float, float]:
    pixels, dtype = np.ones(1), values.dtype
    if dtype.kind != "f":  # few values: sums over them are quicker
        least = np.iinfo(dtype).min
        pixels = np.bincount(values.astype(np.intp) - least)
        values = np.flatnonzero(pixels)
        pixels, values = pixels[values], values + least
    scaled = values.astype(np.float64) / FULL[str(dtype)]
    return float(values.min()), float(values.max()), float((pixels * scaled).sum()), float((pixels * scaled**2).sum())


def _looks(image: np.ndarray) -> tuple[int, str]:
    """dHash of 8 x 8 bits (is each ninth of a row lighter than the one before?) and a thumbnail, of [h w c]."""

    def gray(width: int, height: int) -> np.ndarray:
        small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        return _finite(small).reshape(height, width, -1).mean(-1)

    steps = np.diff(gray(9, 8), axis=1) > 0
    small = gray(THUMBNAIL, THUMBNAIL)
    small -= small.min()
    thumbnail = np.rint(small * (255 / (small.max() or 1.0))).astype(np.uint8)
    return int.from_bytes(np.packbits(steps).tobytes(), "big"), thumbnail.tobytes().hex()


def _finite(array: np.ndarray) -> np.ndarray:
    """As float64, with 0 for what is no number."""
    return np.nan_to_num(array.astype(np.float64), posinf=0, neginf=0)


def _hash(array: np.ndarray) -> str:
    digest = hashlib.blake2b(np.ascontiguousarray(array).data, digest_size=16)
    digest.update(f"{array.dtype} {array.shape}".encode())
    return digest.hexdigest()
