"""Finds validation tiles that touch or overlap training tiles on the ground, by their coordinates."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from jaxseg.data.find.ground import Ground, boxes_of, neighbors
from jaxseg.doctor.findings import Finding, Sides
from jaxseg.doctor.survey import Facts


def touching(sides: Sides) -> Iterator[Finding]:
    """Finds validation tiles next to training tiles, with the share of their area that overlaps."""
    training, validation = ([f for f in side if f.image.corners] for side in (sides.training, sides.validation))
    if not training or not validation:
        return
    pairs = [pair for t, v in _by_crs(training, validation) for pair in _next_to(t, v)]
    if not pairs:
        return
    overlaps = [share for *_, share in pairs if share > 1e-3]
    some = f"{len(pairs):,} of {len(validation):,} validation tiles touch training tiles on the ground"
    most = f", up to {max(overlaps):.0%} of the area of one" if overlaps else ""
    what = f"{some}; {len(overlaps):,} of them overlap{most}" if overlaps else some
    files = tuple(f"{sides.name(b.pair.image)} and {sides.name(a.pair.image)}" for b, a, _ in pairs)
    advice, flags = "Neighbors are alike, so scores will be better than on new ground.", ()
    if "drawn for validation" in sides.layout:
        advice += "\n--group-by auto splits by blocks on the ground, and leaves out the tiles between them."
        flags = ("--group-by", "auto")
    else:
        advice += "\nLeave out the training tiles that touch, or let --group-by auto split all tiles by blocks."
    yield Finding("warning", what, files, advice, flags)


def _by_crs(
    training: Sequence[Facts], validation: Sequence[Facts]
) -> Iterator[tuple[Sequence[Facts], Sequence[Facts]]]:
    """Yields the tiles of each CRS, training and validation."""
    for crs in sorted({f.image.crs for f in (*training, *validation)}):
        yield tuple([f for f in side if f.image.crs == crs] for side in (training, validation))


def _next_to(training: Sequence[Facts], validation: Sequence[Facts]) -> Iterator[tuple[Facts, Facts, float]]:
    """Yields each validation tile that touches training, the training tile it shares most with, and the share."""
    if not training or not validation:
        return
    boxes = boxes_of([Ground(f.image.crs, f.image.corners) for f in itertools.chain(training, validation)])
    train, val = boxes[: len(training)], boxes[len(training) :]
    for f, box, (near, shared) in zip(validation, val, neighbors(val, train)):
        if len(near):
            most = int(np.argmax(shared))
            yield f, training[near[most]], float(shared[most] / (box[2:] - box[:2]).prod())
