"""Finds faults of images, and of files in general; `mask_findings.py` is about masks.

Each rule looks for one kind of fault. It yields few findings, each with all files concerned.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from jaxseg.base.config import Data
from jaxseg.data.read.samples import FULL
from jaxseg.doctor.facts import ImageFacts
from jaxseg.doctor.survey import Facts


@dataclasses.dataclass(frozen=True)
class Finding:
    """Fault or remark: what was found, in which files, and what to do."""

    level: Literal["error", "warning", "note"]
    what: str
    files: tuple[str, ...] = ()
    advice: str = ""
    flags: tuple[str, ...] = ()
    """Flags that fix it when added to the command line; empty if flags are not enough."""


@dataclasses.dataclass(frozen=True)
class Sides:
    """Facts of the training and validation sets."""

    training: tuple[Facts, ...]
    validation: tuple[Facts, ...]
    settings: Data
    looks: bool = False
    """True if masks were read by their colors, not by palette indices and bits as stored."""
    layout: str = ""
    """Line that names the layout of the folders."""

    @property
    def all(self) -> tuple[Facts, ...]:
        """Facts of training, then of validation."""
        return self.training + self.validation

    def name(self, path: Path) -> str:
        """Returns a file's path relative to --data, or the whole path if it lies elsewhere."""
        root = self.settings.data
        return (path.relative_to(root) if root is not None and path.is_relative_to(root) else path).as_posix()

    def images(self, facts: Iterable[Facts]) -> tuple[str, ...]:
        """Returns the names of the images."""
        return tuple(self.name(f.pair.image) for f in facts)

    def masks(self, facts: Iterable[Facts]) -> tuple[str, ...]:
        """Returns the names of the masks."""
        return tuple(self.name(f.pair.mask) for f in facts)


def count(number: int, noun: str, plural: str = "") -> str:
    """Formats a number and a noun: '1 mask', '2 masks'."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def kind(image: ImageFacts) -> str:
    """Returns the dtype in which the image is read: its own, or float32 for types not in `FULL`."""
    return image.dtype if image.dtype in FULL else "float32"


def fits(image: ImageFacts, channels: int) -> bool:
    """True if an image can have `channels` without loss. For 3, gray is repeated and an opaque alpha dropped."""
    promoted = channels == 3 and (image.channels == 1 or (image.channels == 4 and image.opaque))
    return image.channels == channels or promoted


def usual_channels(images: Iterable[ImageFacts]) -> int:
    """Returns the number of channels that fits most images."""
    images = list(images)
    found = Counter(image.channels for image in images)
    return max(found, key=lambda channels: (sum(fits(image, channels) for image in images), found[channels]))


def unreadable(sides: Sides) -> Iterator[Finding]:
    """Finds files that do not decode."""
    files = []
    for f in sides.all:
        files += [f"{sides.name(f.pair.image)}: {f.image_error}"] if f.image_error else []
        files += [f"{sides.name(f.pair.mask)}: {f.mask_error}"] if f.mask_error else []
    if not files:
        return
    if sides.settings.on_bad_file == "skip":
        left = sum(1 for f in sides.all if f.image_error or f.mask_error)
        yield Finding("warning", f"{count(left, 'pair')} left out: files cannot be read", tuple(files))
    else:
        advice = "Restore them, or remove them and their partners; --on-bad-file skip leaves these pairs out."
        what = f"{count(len(files), 'file')} cannot be read"
        yield Finding("error", what, tuple(files), advice, ("--on-bad-file", "skip"))


def other_sizes(sides: Sides) -> Iterator[Finding]:
    """Finds masks whose size differs from their image's."""
    odd = [f for f in sides.all if (f.image.height, f.image.width) != (f.mask.height, f.mask.width)]
    if not odd:
        return
    files = tuple(
        f"{sides.name(f.pair.mask)}: {f.mask.width}x{f.mask.height}, its image {f.image.width}x{f.image.height}"
        for f in odd
    )
    turned = all((f.image.height, f.image.width) == (f.mask.width, f.mask.height) for f in odd)
    advice = (
        TURN
        if turned and all(f.image.orientation > 1 for f in odd)
        else "Rotate them by 90 degrees: their images were rotated, perhaps by a camera's orientation tag."
        if turned
        else "Export them at their images' size. Resize masks by nearest neighbor, not by interpolation."
    )
    yield Finding("error", f"{count(len(odd), 'mask')} of another size than the image", files, advice)


TURN = (
    "If the masks were drawn on the pixels as stored, remove the tag: exiftool -Orientation= FILES.\n"
    "If they were drawn on the upright pictures, rotate the pixels for good: mogrify -auto-orient FILES."
)
"""Ways out where an image is turned upright by its orientation tag, and its mask is not."""


def orientations(sides: Sides) -> Iterator[Finding]:
    """Finds pairs of one size whose orientation tags differ, so that either file may be the wrong way round."""
    odd = [f for f in sides.all if f.image.orientation != f.mask.orientation and _is_ambiguous(f)]
    if not odd:
        return
    files = tuple(
        f"{sides.name(f.pair.image)}: orientation {f.image.orientation}, its mask "
        + (f"{f.mask.orientation}" if f.mask.orientation > 1 else "has none")
        for f in odd
    )
    what = f"{count(len(odd), 'image')} with another EXIF orientation than the mask: which way up is the mask?"
    yield Finding("error", what, files, TURN)


def _is_ambiguous(f: Facts) -> bool:
    """True if image and mask have one size, turned and as stored."""
    upright = f.image.height, f.image.width
    stored = [(n.height, n.width)[:: -1 if n.orientation > 4 else 1] for n in (f.image, f.mask)]
    return (f.mask.height, f.mask.width) == upright and stored[0] == stored[1]


def channels(sides: Sides) -> Iterator[Finding]:
    """Finds images that differ in channels, or have too few for --channels or --normalize imagenet."""
    images, bands = [f.image for f in sides.all], sides.settings.channels
    least = min(image.channels for image in images)
    if bands is not None:
        odd = [f for f in sides.all if f.image.channels < max(bands)]
        if odd:
            what = f"--channels asks for band {max(bands)}, which is missing in {count(len(odd), 'image')}"
            files = tuple(f"{sides.name(f.pair.image)}: {count(f.image.channels, 'channel')}" for f in odd)
            yield Finding("error", what, files, f"Use bands from 1 to {least}, which all images have.")
        wanted = len(bands)
    else:
        wanted = usual_channels(images)
        odd = [f for f in sides.all if not fits(f.image, wanted)]
        if odd:
            what = f"{len(odd):,} of {len(images):,} images not of {count(wanted, 'channel')} as the others"
            files = tuple(f"{sides.name(f.pair.image)}: {count(f.image.channels, 'channel')}" for f in odd)
            common = tuple(str(band) for band in range(1, least + 1))
            advice = f"Give --channels {' '.join(common)}, which all images have; or remove the others."
            yield Finding("error", what, files, advice, ("--channels", *common))
    if sides.settings.normalize == "imagenet" and wanted != 3:
        advice = "Give --normalize dataset, which computes mean and deviation from these images."
        what = f"--normalize imagenet expects 3 channels; the images have {wanted}"
        yield Finding("error", what, advice=advice, flags=("--normalize", "dataset"))


def orders(sides: Sides) -> Iterator[Finding]:
    """Finds plain bands, read in the file's order, among color pictures, read as blue, green, red."""
    bands = sides.settings.channels
    several = [f for f in sides.all if f.image.channels > 1]
    plain = [f for f in several if not f.image.color]
    if not plain or len(plain) == len(several) or (bands is not None and bands[:3] != (1, 2, 3)):
        return
    rest = tuple(str(band) for band in (bands or ())[3:])
    what = f"{count(len(plain), 'image')} with plain bands among color pictures: their first band would be read as blue"
    advice = f"--channels {' '.join(('3', '2', '1', *rest))} reads all of them as blue, green, red."
    yield Finding("error", what, sides.images(plain), advice, ("--channels", "3", "2", "1", *rest))


def types(sides: Sides) -> Iterator[Finding]:
    """Finds images whose dtypes, and so their scales, differ."""
    kinds = Counter(kind(f.image) for f in sides.all)
    if len(kinds) == 1:
        return
    usual = kinds.most_common(1)[0][0]
    odd = [f for f in sides.all if kind(f.image) != usual]
    what = f"{len(odd):,} of {len(sides.all):,} images not {usual} as the others: their ranges differ"
    files = tuple(f"{sides.name(f.pair.image)}: {f.image.dtype}" for f in odd)
    yield Finding("error", what, files, f"Convert them to {usual}, or remove them.")


def blank(sides: Sides) -> Iterator[Finding]:
    """Finds images of a single color, and a useless alpha channel."""
    facts = [f for f in sides.all if f.image.pixels]
    if flat := [f for f in facts if is_flat(f.image)]:
        black = sum(1 for f in flat if not any(f.image.high))
        some = f" of a single color, {black} of them black" if black else " of a single color"
        what = count(len(flat), "image") + (" all black" if black == len(flat) else some)
        yield Finding("warning", what, sides.images(flat), "Look at them. If black means no data, give --nodata 0.")
    if sides.settings.channels is None and facts and all(f.image.channels == 4 and f.image.opaque for f in facts):
        what = "the fourth channel of all images is opaque alpha, which holds no information"
        yield Finding("warning", what, advice="Give --channels 1 2 3.", flags=("--channels", "1", "2", "3"))


def is_flat(image: ImageFacts) -> bool:
    """True if all pixels with data have the same color."""
    return image.low == image.high


def sizes(sides: Sides) -> Iterator[Finding]:
    """Finds images of several sizes, and a --crop that does not fit."""
    found = Counter((f.image.height, f.image.width) for f in sides.training)
    crop, largest = sides.settings.crop, max((max(size) for size in found), default=0)
    if crop is not None and crop > largest:
        what = f"--crop {crop} is larger than every training image; the largest side is {largest} pixels"
        yield Finding("error", what, advice=f"Give --crop {min(min(size) for size in found)}, which fits all of them.")
    elif crop is not None and (small := [f for f in sides.training if min(f.image.height, f.image.width) < crop]):
        what = f"{count(len(small), 'training image')} smaller than --crop {crop}: padded with ignored pixels"
        yield Finding("note", what, sides.images(small))
    if crop is None and len(found) > 1:
        what = f"training images have {len(found)} sizes: random crops are used"
        yield Finding("note", what, advice="Give --crop SIDE to choose their size in pixels.")
