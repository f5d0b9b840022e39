"""Images, masks and class numbers as the settings ask for, read by OpenCV; and what the training files say in sum.

PNG and JPEG files are read by OpenCV, TIFF files by tifffile (OpenCV takes neither two bands nor signed integers), and
palette indices by Pillow. jaxseg's reading of unusual files is the matter of its own tests.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import tifffile
from PIL import Image

from jaxseg.base.config import Data
from parity.reference.losses import IGNORE_INDEX

Pair = tuple[Path, Path]
Sample = tuple[np.ndarray, np.ndarray]
"""Image [h w c] in its own type, and mask uint8 [h w] of classes and IGNORE_INDEX."""
RANGE = {"uint8": 255, "uint16": 65535, "int16": 32767}
"""Value of each integer type that is scaled to 1."""
TIFF = (".tif", ".tiff")
GDAL_NODATA = 42113
"""Number of the tag in which GDAL keeps the value for no data."""
IMAGENET = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
"""torchvision's mean and standard deviation of red, green and blue."""


@dataclasses.dataclass(frozen=True)
class Labels:
    """Mask values: a value for each class, and values to ignore; colors are 0xRRGGBB.

    With `binarize`, gray values from it on are class 1 and lower ones class 0; `values` are not used then.
    """

    values: tuple[int, ...]
    ignored: tuple[int, ...] = ()
    binarize: int | None = None
    color: bool = False

    @property
    def classes(self) -> int:
        """Number of classes."""
        return 2 if self.binarize is not None else len(self.values)


def labels_of(d: Data, masks: Sequence[Path]) -> Labels:
    """Labels that the settings name; without any, every value of the masks in rising order, 255 ignored."""
    if d.binarize is not None:
        return Labels((), d.ignore_index or (), d.binarize)
    if d.labels is not None:
        color = any(label.startswith("#") for label in d.labels)
        values = tuple(int(label.removeprefix("#"), 16 if color else 10) for label in d.labels)
        return Labels(values, d.ignore_index or (), color=color)
    found = set().union(*(np.unique(read_values(mask, color=False)).tolist() for mask in masks))
    ignored = (255,) if d.ignore_index is None else d.ignore_index
    return Labels(tuple(range(d.classes)) if d.classes else tuple(sorted(found - set(ignored))), ignored)


def is_color(path: Path) -> bool:
    """True for a picture of red, green and blue, not for gray or plain bands."""
    return _picture(path)[1]


def read_image(path: Path, bands: tuple[int, ...] | None) -> tuple[np.ndarray, float | None]:
    """Image [h w c], and the file's own value of pixels without data.

    Channels are blue, green, red of a picture, or the file's bands. `bands` counts from 1, red first.
    """
    image, color, nodata = _picture(path)
    if bands is None:
        opaque = color and image.shape[2] == 4 and (image[..., 3] == np.iinfo(image.dtype).max).all()
        return image[..., :3] if opaque else image, nodata
    if color and bands[:3] != (1, 2, 3):
        image = image[..., [2, 1, 0, *range(3, image.shape[2])]]
    return image[..., [band - 1 for band in bands]], nodata


def read_values(path: Path, color: bool) -> np.ndarray:
    """Values of a mask int64 [h w]: gray, palette indices, or with `color` 0xRRGGBB."""
    if path.suffix.lower() in TIFF:
        return tifffile.imread(path).astype(np.int64)
    with Image.open(path) as file:
        if file.mode == "P" and not color:
            return np.asarray(file).astype(np.int64)
    mask = _imread(path).astype(np.int64)
    if mask.ndim == 2:
        return mask * 0x010101 if color else mask
    return mask[..., 2] << 16 | mask[..., 1] << 8 | mask[..., 0] if color else mask[..., 0]


def read_mask(path: Path, labels: Labels) -> np.ndarray:
    """Mask uint8 [h w] of classes and IGNORE_INDEX. Raises ValueError for a value of no class."""
    if labels.binarize is not None:
        classes = (cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) >= labels.binarize).astype(np.uint8)
        return np.where(np.isin(read_values(path, color=False), labels.ignored), IGNORE_INDEX, classes).astype(np.uint8)
    values = read_values(path, labels.color)
    classes = np.full(values.shape, -1)
    for number, value in enumerate(labels.values):
        classes[values == value] = number
    classes[np.isin(values, labels.ignored)] = IGNORE_INDEX
    if (classes < 0).any():
        raise ValueError(f"{path}: value {values[classes < 0][0]} is of no class; expected one of {labels.values}")
    return classes.astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reads pairs by the settings `d`; a pixel is ignored where all its bands are --nodata or not finite."""

    d: Data
    labels: Labels
    mean: np.ndarray | None = None
    """Standing in for single values that are missing, in units of the type's range; 0 if not given."""

    def read(self, pair: Pair) -> Sample:
        """The sample of a pair of files."""
        image, nodata = read_image(pair[0], self.d.channels)
        mask, (missing, empty) = read_mask(pair[1], self.labels), self.missing(image, nodata)
        if missing.any():
            mean = (np.zeros(image.shape[2]) if self.mean is None else self.mean) * RANGE.get(image.dtype.name, 1)
            mean = (mean if image.dtype.kind == "f" else np.rint(mean)).astype(image.dtype)
            image, mask = np.where(missing, mean, image), np.where(empty, IGNORE_INDEX, mask).astype(np.uint8)
        return image, mask

    def missing(self, image: np.ndarray, nodata: float | None) -> tuple[np.ndarray, np.ndarray]:
        """Values to replace, bool [h w c], and pixels without data, bool [h w]. `nodata` is the file's own value.

        A single --nodata is a measurement where it is 0 or the type is unsigned, unless the whole pixel is.
        """
        none = ~np.isfinite(image)
        nodata = nodata if self.d.nodata is None else self.d.nodata
        if nodata is not None:
            none |= image == (np.float32(nodata) if image.dtype.kind == "f" else nodata)
        empty = none.all(-1)
        alone = none if image.dtype.kind in "fi" and nodata != 0 else ~np.isfinite(image)
        return alone | empty[..., None], empty


@dataclasses.dataclass(frozen=True)
class Survey:
    """What the training files say: sizes, pixels by class, pixels of the images with a class, moments by channel."""

    sizes: list[tuple[int, int]]
    pixels: np.ndarray
    around: np.ndarray
    mean: np.ndarray
    std: np.ndarray


def survey(pairs: Sequence[Pair], reader: Reader) -> Survey:
    """Reads all pairs once. The moments are of values with data, divided by the type's range."""
    classes, sizes, counts, values = reader.labels.classes, [], [], []
    for pair in pairs:
        (image, nodata), (_, mask) = read_image(pair[0], reader.d.channels), reader.read(pair)
        missing, _ = reader.missing(image, nodata)
        scaled = image.astype(np.float64) / RANGE.get(image.dtype.name, 1)
        kept = [scaled[..., c][~missing[..., c]] for c in range(image.shape[2])]
        values.append([(len(x), x.mean() if len(x) else 0.0, x.var() if len(x) else 0.0) for x in kept])
        sizes.append(mask.shape)
        counts.append(np.bincount(mask.ravel(), minlength=256)[:classes])
    n, mean, var = np.moveaxis(np.array(values), -1, 0)
    whole = (n * mean).sum(0) / n.sum(0)
    std = np.sqrt((n * (var + (mean - whole) ** 2)).sum(0) / n.sum(0))
    counts = np.array(counts)
    around = ((counts > 0) * counts.sum(1, keepdims=True)).sum(0)
    return Survey(sizes, counts.sum(0), around, whole, np.where(std > 0, std, 1.0))


def standardization(d: Data, color: bool, found: Survey, pictures: bool = True) -> tuple[np.ndarray, np.ndarray] | None:
    """Mean and standard deviation by channel of --normalize; None for "unit".

    pictures: False if some images are not of 8 bits; these have no use for the statistics of an encoder's weights.
    """
    if d.normalize == "dataset" or (d.normalize == "encoder" and not (pictures and len(found.mean) == 3)):
        return found.mean, found.std
    if d.normalize in ("imagenet", "encoder"):
        first = "bgr" if color and d.channels in (None, (1, 2, 3)) else "rgb"
        order = ["rgb".index(letter) for letter in first]
        if d.channels is not None and set(d.channels) == {1, 2, 3} and d.channels != (1, 2, 3):
            order = [band - 1 for band in d.channels]
        own = d.normalize == "encoder" and d.encoder_mean
        return tuple((np.array([d.encoder_mean, d.encoder_std]) if own else IMAGENET)[:, order])
    return None


def has_8_bits(image: Path) -> bool:
    """True if the values of an image are bytes."""
    return _picture(image)[0].dtype == np.uint8


def _picture(path: Path) -> tuple[np.ndarray, bool, float | None]:
    """Image [h w c] of a file, blue first if it is a color picture; whether it is one; its value for no data.

    A TIFF file is a color picture if its tag says RGB.
    """
    if path.suffix.lower() not in TIFF:
        image = _imread(path)
        return (image[..., None], False, None) if image.ndim == 2 else (image, True, None)
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        image, color = page.asarray(), page.photometric == tifffile.PHOTOMETRIC.RGB
        text = page.tags.valueof(GDAL_NODATA)
    if image.ndim == 3 and page.planarconfig == tifffile.PLANARCONFIG.SEPARATE:
        image = image.transpose(1, 2, 0)
    image = image[..., None] if image.ndim == 2 else image
    image = image[..., [2, 1, 0, *range(3, image.shape[2])]] if color else image
    return image, color, None if text is None else float(text)


def _imread(path: Path) -> np.ndarray:
    """Picture by OpenCV as stored, but turned upright by EXIF. Raises FileNotFoundError if it cannot be read."""
    flags = cv2.IMREAD_UNCHANGED
    if path.suffix.lower() in (".jpg", ".jpeg"):
        flags = cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH
    image = cv2.imread(str(path), flags) if path.is_file() else None
    if image is None:
        raise FileNotFoundError(f"{path}: OpenCV cannot read it; expected an image file")
    return image
