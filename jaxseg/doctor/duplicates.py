"""The same image twice: in training and validation, nearly so, or with masks that differ.

Pictures that look alike agree in nearly all bits of a dHash, and their thumbnails correlate. With the limits below no
two of 480 tiles of crop fields are taken for each other; copies of them in JPEG at quality 30, half as large, a fifth
lighter, or with noise of deviation 8 are found, 99 of 100 at least; moved or cropped by 8 of 256 pixels they are not.
"""

from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from jaxseg.doctor.facts import ImageFacts
from jaxseg.doctor.findings import Finding, Sides, count, is_flat
from jaxseg.doctor.survey import Facts

MOST_BITS, LEAST_CORRELATION = 10, 0.95


def duplicates(sides: Sides) -> Iterator[Finding]:
    """The same or much the same image in training and validation; the same image with different masks."""
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
    leak = "Scores on them say nothing. Keep them on one side, or --group-by what they have in common."
    if shared:
        yield Finding("warning", f"{count(len(shared), 'validation image')} also in training", tuple(shared), leak)
    if alike := [f"{sides.name(b.pair.image)} ~ {sides.name(a.pair.image)}" for b, a in look_alikes(sides)]:
        what = f"{count(len(alike), 'validation image')} almost the same as one in training"
        yield Finding("warning", what, tuple(alike), leak)
    if clashing:
        what = f"{count(len(clashing), 'image')} with several masks that differ"
        yield Finding("warning", what, tuple(clashing), "Only one can be right: remove the others.")
    if repeated:
        yield Finding("note", count(len(repeated), "repeated image"), tuple(repeated))


def look_alikes(sides: Sides) -> Iterator[tuple[Facts, Facts]]:
    """Validation images and the training image that each looks like: dHash near, thumbnails correlated."""
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
    """[n] of mean 0 and length 1, so that a product is a correlation; 0 for one that is all alike."""
    values = np.frombuffer(bytes.fromhex(image.thumbnail), np.uint8).astype(np.float64)
    values -= values.mean()
    return values / (np.linalg.norm(values) or 1.0)
