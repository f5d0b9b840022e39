"""Finds faults of pixel values: bands without data or change, undeclared nodata, ranges that slow training down.

Also computes their normalization, and describes it.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from jaxseg.data.read.samples import FULL, Reading
from jaxseg.doctor.facts import ImageFacts, chosen
from jaxseg.doctor.findings import Finding, Sides, count, fits, is_flat, kind, usual_channels

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and deviation of red, green, blue; torchvision
MARKERS = (-9999.0, -99999.0, -32768.0, float(np.finfo(np.float32).min), float(np.finfo(np.float32).max), 1e20)
"""Values that programs write where there is no data."""


def without_data(sides: Sides) -> Iterator[Finding]:
    """Finds images without data, and values that are NaN or infinite."""
    if empty := [f for f in sides.all if not f.image.pixels]:
        what = f"{count(len(empty), 'image')} without any data"
        yield Finding("warning", what, sides.images(empty), "They only cost time: remove them.")
    if odd := [f for f in sides.all if f.image.nonfinite and f.image.pixels]:
        what = (
            f"{count(len(odd), 'image')} with NaN or infinite pixels: ignored where all bands are, else set to the mean"
        )
        files = tuple(f"{sides.name(f.pair.image)}: {f.image.nonfinite:,} pixels" for f in odd)
        yield Finding("warning", what, files, "Fine if they mean no data; else export these again.")


def empty_bands(sides: Sides) -> Iterator[Finding]:
    """Finds bands that are empty in part of the images."""
    facts, found = [f for f in sides.all if f.image.pixels], {}
    for f in facts:
        for c, band in enumerate(band_numbers(f.image, sides)):
            if not f.image.counts[c] or _is_zero(f.image, c):
                found.setdefault(band, []).append(f)
    for band, files in sorted(found.items()):
        nowhere = all(
            not f.image.counts[c] for f in facts for c, b in enumerate(band_numbers(f.image, sides)) if b == band
        )
        if len(files) < len(facts) or nowhere:
            share = f"{len(files):,} of {count(len(facts), 'image')}"
            what = f"band {band} is empty (no data, or 0 everywhere) in {share}, and there tells the network nothing"
            yield Finding("warning", what, sides.images(files), *_without(band, facts[0].image, sides))


def undeclared(sides: Sides) -> Iterator[Finding]:
    """Finds values that usually mean no data, where neither --nodata nor the files say so."""
    if sides.settings.nodata is not None:
        return
    for marker in MARKERS:
        odd, bands = [], set()
        for f in sides.all:
            numbers = band_numbers(f.image, sides)
            if here := [numbers[c] for c in range(len(numbers)) if _reaches(f.image, c, marker)]:
                odd.append(f)
                bands |= set(here)
        if odd:
            where = f"band{'s' * (len(bands) > 1)} {', '.join(map(str, sorted(bands)))} of {count(len(odd), 'image')}"
            what = f"{marker:g} in {where} looks like no data, but neither the files nor --nodata say so"
            number = f"{marker:.0f}" if abs(marker) < 1e6 else repr(marker)
            yield Finding("warning", what, sides.images(odd), f"If so, give --nodata {number}.", ("--nodata", number))


def _reaches(image: ImageFacts, c: int, marker: float) -> bool:
    """True if the smallest or largest value of a band is `marker`, in the precision of float32."""
    ends = (image.low[c], image.high[c]) if image.counts[c] else ()
    return any(abs(end - marker) <= 1e-6 * abs(marker) for end in ends)


def constant(sides: Sides) -> Iterator[Finding]:
    """Finds bands with a single value in all training images."""
    images = _alike(sides)
    if len(images) < 2 or all(is_flat(image) for image in images):
        return
    for c, band in enumerate(band_numbers(images[0], sides)):
        values = {value for image in images if image.counts[c] for value in (image.low[c], image.high[c])}
        known = band == 4 and sides.settings.channels is None and all(image.opaque for image in images)
        if len(values) == 1 and not known:
            what = f"band {band} is {values.pop():g} in all training images, and tells the network nothing"
            yield Finding("warning", what, (), *_without(band, images[0], sides))


def ranges(sides: Sides) -> Iterator[Finding]:
    """Finds values that the chosen normalization leaves far from mean 0 and deviation 1."""
    images = _alike(sides)
    if not images or len({kind(image) for image in images}) > 1:
        return
    mean, std = moments(images, len(images[0].total))
    measured = [(image.low[c], image.high[c]) for image in images for c, n in enumerate(image.counts) if n]
    low, high = min(low for low, _ in measured), max(high for _, high in measured)
    dtype, how = kind(images[0]), source(sides, len(mean))
    found = f"{images[0].dtype}, {low:g} to {high:g}"
    standard = abs(mean).max() < 0.5 and 0.5 < std.max() < 2 and low < 0
    if dtype == "float32" and standard:
        if how != "unit":
            what = f"images look normalized already ({found}, standard deviation {std.max():.2g})"
            yield Finding("warning", what, advice="Give --normalize unit, which leaves them as they are.")
        return
    if how in ("imagenet", "encoder") and len(mean) == 3:
        center, scale = (np.array(values) for values in normalization(sides, 3))
        mean, std = (mean - center) / scale, std / scale
    advice, flags = "Give --normalize dataset, which scales them to mean 0 and deviation 1.", ("--normalize", "dataset")
    if how == "dataset" or high == low:
        return
    if dtype == "float32" and std.max() > 3:
        what = f"images hold large floats ({found}), which are not scaled: training would be slow or fail"
        yield Finding("warning", what, advice=advice, flags=flags)
    elif std.max() < 0.1:
        what = f"images use little of their type's range ({found}, standard deviation {std.max():.2g} of 1)"
        yield Finding("warning", what, advice=advice, flags=flags)
    elif abs(mean).max() > 3:
        what = f"images are far from mean 0 ({found}; --normalize {how} leaves a mean of {abs(mean).max():.2g})"
        yield Finding("warning", what, advice=advice, flags=flags)


def moments(images: Iterable[ImageFacts], channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and standard deviation, float64 [channels], over the values with data of all images.

    Values are divided by `FULL`. Gray images are repeated to `channels`. The deviation of a band that never changes is
    exactly 0.
    """
    pixels, total, squares = np.zeros((3, channels))
    low, high = np.full(channels, np.inf), np.full(channels, -np.inf)
    for image in images:
        rows = (image.counts, image.total, image.squares, image.low, image.high)
        counts, sums, sums2, least, most = np.array(rows, np.float64).repeat(
            channels if len(image.total) == 1 else 1, 1
        )[:, :channels]
        pixels, total, squares = pixels + counts, total + sums, squares + sums2
        low, high = (
            np.minimum(low, np.where(counts > 0, least, low)),
            np.maximum(high, np.where(counts > 0, most, high)),
        )
    mean = total / np.maximum(1, pixels)
    std = np.sqrt(np.maximum(0, squares / np.maximum(1, pixels) - mean**2))
    return mean, np.where(low >= high, 0, std)


def normalization(sides: Sides, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and deviation of `source`, in the order of the array's channels; both empty for `unit`."""
    settings, images, how = sides.settings, [f.image for f in sides.all], source(sides, channels)
    if how in ("imagenet", "encoder"):
        color = any(image.color for image in images)  # some images may be gray
        own = how == "encoder" and settings.encoder_mean
        given = (settings.encoder_mean, settings.encoder_std) if own else IMAGENET
        return tuple(_imagenet(rgb, settings.channels, color) for rgb in given)
    if how == "dataset":
        mean, std = moments([f.image for f in sides.training], channels)
        return tuple(mean.tolist()), tuple(np.where(std > 0, std, 1.0).tolist())
    return (), ()


def source(sides: Sides, channels: int) -> str:
    """Returns the source of mean and deviation: unit (none), dataset, imagenet or encoder.

    Statistics of an encoder's weights are those of photos. Other data than three channels of 8 bits have their own.
    """
    how = sides.settings.normalize or "unit"
    photos = channels == 3 and all(kind(f.image) == "uint8" for f in sides.all if f.image)
    return "dataset" if how == "encoder" and not photos else how


def _imagenet(rgb: tuple[float, ...], asked: tuple[int, ...] | None, color: bool) -> tuple[float, ...]:
    """Orders values of red, green and blue as the array's channels; other bands count as red, green, blue in turn."""
    if asked is not None and set(asked) != {1, 2, 3}:
        return rgb
    stored = rgb[::-1] if color else rgb
    return tuple(stored[i] for i in chosen(3, color, asked))


def describe_input(reading: Reading, sides: Sides) -> list[str]:
    """Describes how images become the network's input: channels, dtype, normalization, and turns by orientation."""
    scale = "x" if FULL[reading.dtype] == 1 else f"x / {FULL[reading.dtype]}"
    shown = [" ".join(f"{value:.3g}" for value in values[:12]) for values in (reading.mean, reading.std)]
    how = f"{scale}, then mean {shown[0]}, deviation {shown[1]}" if reading.mean else scale
    lines = [f"{reading.channels} channels of {reading.dtype}, normalized by {reading.normalize}: {how}"]
    images, masks = (sum(n.orientation > 1 for n in facts) for facts in zip(*((f.image, f.mask) for f in sides.all)))
    if images or masks:
        turned = " and ".join([count(images, "image")] * bool(images) + [count(masks, "mask")] * bool(masks))
        lines.append(f"{turned} turned upright by the EXIF orientation")
    return lines


def band_numbers(image: ImageFacts, sides: Sides) -> list[int]:
    """Returns the number, from 1 in the file's order, of each band that the facts have."""
    places = chosen(image.channels, image.color, sides.settings.channels) or range(image.channels)
    return [(3, 2, 1, 4)[place] if image.color else place + 1 for place in places]


def _is_zero(image: ImageFacts, c: int) -> bool:
    """True if a band is 0 everywhere, and others are not."""
    return image.low[c] == image.high[c] == 0 and any(image.high) and not (image.color and c == 3)


def _without(band: int, image: ImageFacts, sides: Sides) -> tuple[str, tuple[str, ...]]:
    """Returns advice and flags to leave a band out; both empty if no other is left."""
    asked = sides.settings.channels or range(1, image.channels + 1)
    rest = tuple(str(number) for number in asked if number != band)
    return (f"--channels {' '.join(rest)} leaves it out.", ("--channels", *rest)) if rest else ("", ())


def _alike(sides: Sides) -> list[ImageFacts]:
    """Returns the training images with data and the usual number of channels; none if some lack bands."""
    asked = sides.settings.channels
    channels = len(asked) if asked else usual_channels(f.image for f in sides.all)
    images = [f.image for f in sides.training if f.image.pixels and (asked or fits(f.image, channels))]
    if any(len(image.total) < channels for image in images):
        return []
    return images
