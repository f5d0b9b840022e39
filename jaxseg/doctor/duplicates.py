"""Finds duplicate and near-duplicate images, and duplicates whose masks differ.

Images look alike if nearly all bits of their dHash agree and their thumbnails correlate. Measured on 480 tiles of crop
fields with the limits below:

- No two different tiles match.
- At least 99 of 100 copies match: JPEG at quality 30, half the size, a fifth lighter, or noise of deviation 8.
- Copies shifted or cropped by 8 of 256 pixels do not match.
"""

from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from jaxseg.doctor.facts import ImageFacts
from jaxseg.doctor.findings import Finding, Sides, count, is_flat
from jaxseg.doctor.survey import Facts

MOST_BITS, LEAST_CORRELATION = 10, 0.95


def duplicates(sides: Sides) -> Iterator[Finding]:
    """Finds images that are equal or alike in training and validation, and equal images with different masks."""
    by_content = defaultdict(list)
    for f in sides.all:
        if not is_flat(f.image):
            by_content[f.image.content].append(f)
    training = {id(f) for f in sides.training}
    shared, repeated, clashing = [], [], []
    for group in by_content.values():
        before, after = [f for f in group if id(f) in training], [f for f in group if id(f) not in training]
        if before and after:
            shared += [f"{sides.name(f.pair.image)} = {sides.name(before[0].pair.image)}" for f in after]
        if len({f.mask.content for f in group}) > 1:
            clashing.append(" and ".join(sides.masks(group)))
        else:
            repeated += sides.images(before[1:]) + sides.images(after[1:])
    leak = "They inflate the scores. Keep them on one side, or give --group-by for what their names have in common."
    if shared:
        yield Finding("warning", f"{count(len(shared), 'validation image')} also in training", tuple(shared), leak)
    if alike := [f"{sides.name(b.pair.image)} ~ {sides.name(a.pair.image)}" for b, a in look_alikes(sides)]:
        what = f"{count(len(alike), 'validation image')} almost the same as one in training"
        yield Finding("warning", what, tuple(alike), leak)
    if clashing:
        what = f"{count(len(clashing), 'image')} with several masks that differ"
        yield Finding("warning", what, tuple(clashing), "Keep the right one, and remove the others.")
    if repeated:
        yield Finding("note", count(len(repeated), "repeated image"), tuple(repeated))


def look_alikes(sides: Sides) -> Iterator[tuple[Facts, Facts]]:
    """Yields each validation image that looks like a training image, with the first such image."""
    training, validation = ([f for f in side if not is_flat(f.image)] for side in (sides.training, sides.validation))
    if not training:
        return
    looks = np.array([f.image.look for f in training], np.uint64)
    for f in validation:
        for i in np.flatnonzero(np.bitwise_count(looks ^ np.uint64(f.image.look)) <= MOST_BITS):
            other = training[i]
            if other.image.content == f.image.content:
                continue
            if _thumbnail(f.image) @ _thumbnail(other.image) > LEAST_CORRELATION:
                yield f, other
                break


def _thumbnail(image: ImageFacts) -> np.ndarray:
    """Returns the thumbnail [n] with mean 0 and length 1: dot products are correlations. A flat one is all 0."""
    values = np.frombuffer(bytes.fromhex(image.thumbnail), np.uint8).astype(np.float64)
    values -= values.mean()
    return values / (np.linalg.norm(values) or 1.0)
