"""Finds duplicate and near-duplicate images, and duplicates whose masks differ.

`alike.py` says which images look alike; copies that are shifted or cropped by a thirtieth of the side do not.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from jaxseg.doctor import alike
from jaxseg.doctor.facts import THUMBNAIL
from jaxseg.doctor.findings import Finding, Sides, count, is_flat
from jaxseg.doctor.survey import Facts


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
    near = [
        f"{sides.name(b.pair.image)} ~ {sides.name(a.pair.image)}{'' if upright else ' (flipped or turned)'}"
        for b, a, upright in look_alikes(sides)
    ]
    if near:
        what = f"{count(len(near), 'validation image')} almost the same as one in training"
        yield Finding("warning", what, tuple(near), leak)
    if clashing:
        what = f"{count(len(clashing), 'image')} with several masks that differ"
        yield Finding("warning", what, tuple(clashing), "Keep the right one, and remove the others.")
    if repeated:
        yield Finding("note", count(len(repeated), "repeated image"), tuple(repeated))


def look_alikes(sides: Sides) -> Iterator[tuple[Facts, Facts, bool]]:
    """Yields each validation image that looks like a training image, the first such image, and True if not turned.

    Equal images are left out.
    """
    training, validation = ([f for f in side if not is_flat(f.image)] for side in (sides.training, sides.validation))
    if not training or not validation:
        return
    found = alike.alike(_thumbnails(training), _thumbnails(validation))
    first: dict[int, tuple[int, bool]] = {}
    for t, v, upright in found:
        if training[t].image.content != validation[v].image.content and t < first.get(v, (t + 1, True))[0]:
            first[v] = t, upright
    for v, (t, upright) in sorted(first.items()):
        yield validation[v], training[t], upright


def _thumbnails(facts: Sequence[Facts]) -> np.ndarray:
    pixels = np.frombuffer(b"".join(bytes.fromhex(f.image.thumbnail) for f in facts), np.uint8)
    return pixels.reshape(len(facts), THUMBNAIL, THUMBNAIL)
