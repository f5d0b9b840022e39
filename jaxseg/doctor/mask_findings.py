"""Finds faults of masks and of their classes."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from jaxseg.base.config import Data
from jaxseg.doctor.facts import REACH, MaskFacts
from jaxseg.doctor.findings import Finding, Sides, count
from jaxseg.doctor.survey import Facts


def is_photo(mask: MaskFacts, settings: Data) -> bool:
    """True if many values occur and no few dominate: a photo, not a drawn mask.

    False for gray with --binarize, and for numbered objects.
    """
    if settings.binarize is not None and not mask.color:
        return False
    objects = mask.whole >= 0.9 * (mask.distinct - 1)
    return mask.distinct > 64 and not objects and sum(mask.pixels[:4]) < 0.3 * sum(mask.pixels)


def drawn(facts: Sequence[Facts], settings: Data) -> list[Facts]:
    """Selects the facts whose masks are not photos."""
    return [f for f in facts if not is_photo(f.mask, settings)]


def photos(sides: Sides) -> Iterator[Finding]:
    """Finds masks that are photos, perhaps because images and masks are swapped."""
    odd = [f for f in sides.all if is_photo(f.mask, sides.settings)]
    swapped = [f for f in odd if f.image.levels <= 16]
    if len(swapped) > len(sides.all) / 2:
        what = "images and masks are swapped: masks look like photos, images like masks"
        if sides.settings.images is not None:
            folders = ("--images", str(sides.settings.masks), "--masks", str(sides.settings.images))
            yield Finding("error", what, sides.masks(swapped), f"Give {' '.join(folders)}", folders)
        else:
            yield Finding("error", what, sides.masks(swapped), "Rename the folders, or give --images and --masks.")
    elif odd:
        files = tuple(f"{sides.name(f.pair.mask)}: {f.mask.distinct:,} values" for f in odd)
        advice = "Are these the masks? Give their folder with --masks, or remove files that are not masks."
        yield Finding("error", f"{count(len(odd), 'mask')} looking like a photo", files, advice)


def lossy(sides: Sides) -> Iterator[Finding]:
    """Finds masks in JPEG, and masks that were enlarged or interpolated."""
    settings = sides.settings
    if not (settings.binarize is not None or settings.snap_colors) and (jpeg := [f for f in sides.all if f.mask.jpeg]):
        what = f"{count(len(jpeg), 'mask')} in JPEG, which changes values along every border"
        advice = "Export them as PNG, which keeps every value."
        yield Finding("warning", what, sides.masks(jpeg), advice)
    several = [f for f in sides.all if len(f.mask.values) > 1]
    if (enlarged := [f for f in several if f.mask.block > 1]) and len(enlarged) > len(several) / 2:
        blocks = Counter(f.mask.block for f in enlarged)
        what = f"{count(len(enlarged), 'mask')} with all borders on a grid of {min(blocks)} pixels: enlarged?"
        yield Finding("warning", what, sides.masks(enlarged), "Export them again if there is a finer resolution.")
    pixels, between = Counter(), Counter()
    for f in several:
        pixels.update(dict(zip(f.mask.values, f.mask.pixels)))
        between.update(dict(zip(f.mask.values, f.mask.between)))
    thin = sorted(v for v in pixels if between[v] > pixels[v] / 2)
    if settings.binarize is None and not settings.snap_colors and len(thin) > 1:
        files = sides.masks(f for f in several if set(f.mask.values) & set(thin))
        listed = ", ".join(map(str, thin[:8])) + (", ..." if len(thin) > 8 else "")
        what = f"mask values {listed} lie only as seams between lower and higher ones: looks interpolated"
        advice = "Resize masks by nearest neighbor, which makes no values in between."
        yield Finding("warning", what, files, advice)


def misplaced(sides: Sides) -> Iterator[Finding]:
    """Finds masks that are all shifted by the same few pixels, and a mask that several images share."""
    shifts = np.array([f.mask.shift for f in sides.all if f.mask.shift])
    if len(shifts) >= 8:
        middle = np.median(shifts, axis=0)
        agree = (np.abs(shifts - middle).max(1) <= 2).mean()
        if agree > 0.5 and 3 <= np.abs(middle).max() < REACH:
            ways = (("up", "down"), ("left", "right"))
            down, right = (f"{abs(n):.0f} pixels {way[int(n > 0)]}" for n, way in zip(middle, ways))
            what = f"masks look misplaced: most fit their images better when moved {down} and {right}"
            yield Finding("warning", what, advice="Look at some. Were images and masks exported with the same bounds?")
    groups = defaultdict(list)
    for f in sides.all:
        if len(f.mask.values) > 1:
            groups[f.mask.content].append(f)
    same = [group for group in groups.values() if len({f.image.content for f in group}) > 2]
    if same:
        files = tuple(name for group in same for name in sides.masks(group))
        what = f"{count(len(files), 'mask')} the same as others, of different images"
        yield Finding("warning", what, files, "Look at them: a mask that was drawn for one image fits no other.")
