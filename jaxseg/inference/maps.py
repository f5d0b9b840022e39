"""Writes predictions atomically: class maps, overlays on the image, probabilities."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import Float, Shaped, UInt8
from PIL import Image

from jaxseg.base import files
from jaxseg.base.config import IGNORE_INDEX
from jaxseg.base.errors import UserError
from jaxseg.doctor.classes import ClassMap
from jaxseg.inference.tiles import Raster
from jaxseg.runs.pictures import to_rgb

OVERLAY_SIDE = 4096  # most pixels a side of an overlay


@contextmanager
def draft(path: Path) -> Iterator[Path]:
    """Yields a path as `files.draft` does, and makes the folder. Raises UserError when the file cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.draft(path) as beside:
            yield beside
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from None


def write_indexed(path: Path, classes: UInt8[np.ndarray, "h w"], palette: UInt8[np.ndarray, "256 3"]) -> None:
    """Writes an indexed PNG. Raises UserError when it cannot be written.

    - `classes`: class numbers, the PNG's values
    - `palette`: RGB color of each value
    """
    picture = _picture(classes, "P")
    picture.putpalette(palette.tobytes())
    _save(path, picture)


def write_values(path: Path, classes: UInt8[np.ndarray, "h w"], table: np.ndarray) -> None:
    """Writes a PNG of the mask values or colors of the training data. Raises UserError when it cannot be written.

    - `classes`: class numbers
    - `table`: value or color of each class, from `value_table`
    """
    values = np.empty(classes.shape + table.shape[1:], table.dtype)
    for rows in _blocks(len(classes)):
        values[rows] = table[classes[rows]]
    _save(path, _picture(values, {1: "L", 2: "I;16"}[values.itemsize] if values.ndim == 2 else "RGB"))


def value_table(labels: ClassMap) -> Shaped[np.ndarray, "256 ..."]:
    """Returns the mask value of each class: uint8 or uint16 [256], or uint8 RGB [256 3] if masks have colors.

    Pixels without data get the first ignored value. If there is none, they get the highest of 0 to 255 that is no
    class, or with colors #808080. Raises UserError for values outside 0 to 65535, which no PNG can hold.
    """
    wrong = [f"{name} {value}" for value, name in zip(labels.values, labels.names) if not 0 <= value <= 0xFFFF]
    if wrong and not labels.color:
        raise UserError(f"--values: a PNG holds 0 to 65535, but in the masks these classes are: {', '.join(wrong)}")
    free = (value for value in (0x808080 if labels.color else 255, *range(255, -1, -1)) if value not in labels.values)
    ignored = labels.ignored[0] if labels.ignored else next(free)
    values = np.zeros(256, np.int64)
    values[: len(labels.values)] = labels.values
    values[IGNORE_INDEX] = ignored
    if labels.color:
        return np.stack([values >> 16, values >> 8 & 0xFF, values & 0xFF], -1).astype(np.uint8)
    return values.astype(np.uint8 if values.max() < 256 else np.uint16)


def write_overlay(
    path: Path,
    image: Raster,
    classes: UInt8[np.ndarray, "h w"],
    palette: UInt8[np.ndarray, "256 3"],
    names: Sequence[str],
) -> None:
    """Writes a PNG of the image with half-transparent classes. Raises UserError when it cannot be written.

    - `image`: image [h w c], as `pictures.to_rgb` takes it
    - `classes`: class numbers, of all pixels or of those that `kept` leaves; `IGNORE_INDEX` has no data, stays clear
    - `palette`: RGB color of each class
    - `names`: names of the classes; one called background stays clear

    Above 4096 pixels a side, rows and columns are left out.
    """
    thin = kept(image.shape)
    if classes.shape == image.shape[:2]:
        classes = classes[thin, thin]
    shown = to_rgb(image[thin, thin], classes != IGNORE_INDEX)
    clear = np.zeros(256, bool)
    clear[[IGNORE_INDEX, *(i for i, name in enumerate(names) if name == "background")]] = True
    for rows in _blocks(len(classes)):
        mixed = shown[rows] // 2 + (palette // 2)[classes[rows]]
        shown[rows] = np.where(clear[classes[rows]][..., None], shown[rows], mixed)
    _save(path, _picture(shown, "RGB"))


def kept(shape: tuple[int, ...]) -> slice:
    """Returns the rows, and columns, that an overlay of an image of this shape keeps."""
    return slice(None, None, -(-max(shape[:2]) // OVERLAY_SIDE))


@contextmanager
def probability_file(
    path: Path, shape: tuple[int, int, int]
) -> Iterator[Callable[[Float[np.ndarray, "rows w k"]], None]]:
    """Yields a function that appends rows, from top to bottom, to a .npy file: float16 of shape (h, w, k)."""
    with draft(path) as beside, open(beside, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f2", "fortran_order": False, "shape": shape})

        def append(rows: Float[np.ndarray, "rows w k"]) -> None:
            file.write(rows.astype("<f2").data)

        yield append
        file.close()  # Windows cannot rename an open file


def _blocks(height: int, rows: int = 256) -> Iterator[slice]:
    """Slices of `rows` rows. NumPy copies an index array as int64, eight times the memory of a class map."""
    return (slice(top, top + rows) for top in range(0, height, rows))


def _picture(pixels: np.ndarray, mode: str) -> Image.Image:
    """An image that shares the array's memory."""
    height, width = pixels.shape[:2]
    return Image.frombuffer(mode, (width, height), np.ascontiguousarray(pixels), "raw", mode, 0, 1)


def _save(path: Path, picture: Image.Image) -> None:
    with draft(path) as beside:
        picture.save(beside, format="PNG")
