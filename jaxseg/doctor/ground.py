"""Finds validation tiles that touch or overlap training tiles on the ground, by their coordinates."""

import contextlib
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from jaxseg.data.find.ground import Ground, boxes_of, in_one_crs, neighbors
from jaxseg.doctor.findings import Finding, Sides
from jaxseg.doctor.survey import Facts

Placed = Sequence[tuple[Facts, Ground]]


def touching(sides: Sides) -> Iterator[Finding]:
    """Finds validation tiles next to training tiles, with the share of their area that overlaps."""
    training, validation = ([f for f in side if f.image.corners] for side in (sides.training, sides.validation))
    if not training or not validation:
        return
    pairs = [pair for t, v in _comparable(training, validation) for pair in _next_to(t, v)]
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


def _comparable(training: Sequence[Facts], validation: Sequence[Facts]) -> Iterator[tuple[Placed, Placed]]:
    """Yields training and validation tiles, and their footprints, that have one CRS, or were transformed to one.

    Unknown CRS are compared with themselves alone, and so are all without pyproj.
    """
    tiles = [(f, Ground(f.image.crs, f.image.corners)) for f in itertools.chain(training, validation)]
    known = [ground for _, ground in tiles if ground.crs.startswith("EPSG:")]
    with contextlib.suppress(ImportError):
        turned = iter(in_one_crs(known) if known else [])
        tiles = [(f, next(turned) if ground.crs.startswith("EPSG:") else ground) for f, ground in tiles]
    train, val = tiles[: len(training)], tiles[len(training) :]
    for crs in sorted({ground.crs for _, ground in tiles}):
        yield tuple([tile for tile in side if tile[1].crs == crs] for side in (train, val))


def _next_to(training: Placed, validation: Placed) -> Iterator[tuple[Facts, Facts, float]]:
    """Yields each validation tile that touches training, the training tile it shares most with, and the share."""
    if not training or not validation:
        return
    boxes = boxes_of([ground for _, ground in itertools.chain(training, validation)])
    train, val = boxes[: len(training)], boxes[len(training) :]
    for (f, _), box, (near, shared) in zip(validation, val, neighbors(val, train)):
        if len(near):
            most = int(np.argmax(shared))
            yield f, training[near[most]][0], float(shared[most] / (box[2:] - box[:2]).prod())
