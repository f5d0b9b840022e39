"""Examines a data set before training: describes it, and names each fault with its fix."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np

from jaxseg.base.config import IGNORE_INDEX, Data
from jaxseg.base.errors import DataError
from jaxseg.data.find.folders import Split
from jaxseg.data.read.samples import Reading
from jaxseg.doctor import class_findings, duplicates, findings, ground, mask_findings, values
from jaxseg.doctor.classes import ClassMap
from jaxseg.doctor.facts import MaskFacts, chosen
from jaxseg.doctor.findings import Finding, Sides, count, usual_channels
from jaxseg.doctor.survey import Facts, survey

RULES = [
    findings.other_sizes,
    findings.orientations,
    findings.channels,
    findings.orders,
    findings.types,
    values.without_data,
    values.undeclared,
    values.empty_bands,
    findings.blank,
    values.constant,
    values.ranges,
    findings.sizes,
    duplicates.duplicates,
    ground.touching,
    mask_findings.photos,
    mask_findings.lossy,
    mask_findings.misplaced,
]


@dataclasses.dataclass(frozen=True)
class Part:
    """Training or validation set."""

    pairs: int
    sizes: tuple[tuple[int, int], ...]
    """Height and width of each pair in pixels, in order."""
    class_pixels: tuple[int, ...]
    """Pixels of each class."""
    image_pixels: tuple[int, ...]
    """For each class, the labeled pixels of the images in which it occurs."""
    ignored_pixels: int
    decoded_bytes: int
    """Memory needed for its decoded samples."""


@dataclasses.dataclass(frozen=True)
class Examination:
    """Description of a data set, with its findings."""

    split: Split
    """Split without skipped pairs."""
    reading: Reading | None
    """How to read the files; None if errors leave it undecided."""
    training: Part
    validation: Part
    findings: tuple[Finding, ...]
    """Errors first, then warnings and notes."""
    labels: ClassMap | None
    facts: Sides

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Findings to fix before training."""
        return tuple(finding for finding in self.findings if finding.level == "error")

    def raise_errors(self) -> None:
        """Raises DataError with all errors, if there are any."""
        if not self.errors:
            return
        problems = [line for finding in self.errors for line in _lines(finding)]
        headline = f"{count(len(self.errors), 'error')} in the data:"
        advice = "Training was not started. Run `python -m jaxseg.check` for details."
        raise DataError(headline, problems, advice, most=len(problems))


def _lines(finding: Finding, most: int = 5) -> Iterator[str]:
    yield finding.what
    yield from (f"  {file}" for file in finding.files[:most])
    if len(finding.files) > most:
        yield f"  ... and {len(finding.files) - most} more"
    for number, line in enumerate(finding.advice.splitlines()):
        yield ("     " if number else "  -> ") + line.strip()


def examine(split: Split, settings: Data, workers: int, tell: Callable[[int, int], None] | None = None) -> Examination:
    """Examines all files of a split together; facts of unchanged files come from the cache.

    - `split`: pairs for training and validation.
    - `settings`: how to read them.
    - `workers`: number of reader threads; 0 reads in the calling thread.
    - `tell`: progress callback, as for `survey`.
    """
    sides = _survey(split, settings, workers, tell)
    notes = [note.partition(". ") for note in split.notes]  # what, and what to do about it
    found = [Finding("warning", what, advice=advice) for what, _, advice in notes]
    found += findings.unreadable(sides)
    split, sides = _without_unreadable(split, sides)
    for name, facts in (("training", sides.training), ("validation", sides.validation)):
        if not facts:
            found.append(Finding("error", f"no {name} pair has two readable files"))
    labels, reading = None, None
    if sides.all:
        found += [finding for rule in RULES for finding in rule(sides)]
        sound = not any(finding.level == "error" for finding in found)
        labels, wrong = class_findings.find_classes(sides)
        found += wrong
        if labels is not None and sound:
            reading = _reading(labels, sides)
    parts = [_part(facts, labels, reading or Reading(), settings) for facts in (sides.training, sides.validation)]
    if labels is not None:
        found += class_findings.balance(labels.names, *(part.class_pixels for part in parts))
        found += class_findings.binarized(labels, sides)
    order = ("error", "warning", "note")
    found.sort(key=lambda finding: order.index(finding.level))
    return Examination(split, reading, *parts, tuple(found), labels, sides)


def _survey(split: Split, settings: Data, workers: int, tell: Callable[[int, int], None] | None) -> Sides:
    """Surveys masks by palette indices and bits as stored, or by their colors if masks disagree on what these mean."""
    pairs, edge = split.training + split.validation, len(split.training)
    looks = settings.binarize is not None or any(label.strip().startswith("#") for label in settings.labels or ())
    facts = survey(pairs, settings, workers, looks, tell)
    if not looks and _disagree([f.mask for f in facts if f.mask], settings):
        shown = survey(pairs, settings, workers, True, tell)
        looks = [f.mask and f.mask.values for f in shown] != [f.mask and f.mask.values for f in facts]
        facts = shown if looks else facts
    return Sides(tuple(facts[:edge]), tuple(facts[edge:]), settings, looks, split.layout)


def _disagree(masks: Sequence[MaskFacts], settings: Data) -> bool:
    """True if a stored number may mean different things in two masks.

    - Some masks are colored, and some are not.
    - Files of 1 bit (0 and 1) are mixed with others (0 and 255), without --labels.
    - Palettes give a number several colors, without --labels and --classes.
    """
    if len({mask.color for mask in masks}) == 2:
        return True
    values = [set(mask.values) for mask in masks]
    if settings.labels is None and set().union(*values) == {0, 1, 255} and not any({1, 255} <= v for v in values):
        return True
    colors = {pair for mask in masks for pair in zip(mask.values, mask.palette)}
    return settings.labels is None and settings.classes is None and len(colors) > len({number for number, _ in colors})


def _without_unreadable(split: Split, sides: Sides) -> tuple[Split, Sides]:
    training, validation = (tuple(f for f in side if f.image and f.mask) for side in (sides.training, sides.validation))
    left = {"training": tuple(f.pair for f in training), "validation": tuple(f.pair for f in validation)}
    return dataclasses.replace(split, **left), dataclasses.replace(sides, training=training, validation=validation)


def _reading(labels: ClassMap, sides: Sides) -> Reading:
    settings, images = sides.settings, [f.image for f in sides.all]
    channels = len(settings.channels) if settings.channels else usual_channels(images)
    mean, std = values.normalization(sides, channels)
    return Reading(
        labels=labels,
        channels=channels,
        bands=settings.channels,
        dtype=findings.kind(images[0]),
        nodata=settings.nodata,
        normalize=values.source(sides, channels),
        mean=mean,
        std=std,
        order=channel_order([image.color for image in images], settings.channels),
    )


def channel_order(colored: Sequence[bool], asked: tuple[int, ...] | None) -> Literal["bgr", "bands"]:
    """Returns the order of the network's channels.

    - `colored`: for each image, True if it is a color picture
    - `asked`: value of --channels

    "bgr" if any image is a color picture whose first three channels stay blue, green, red; else "bands".
    """
    blue_green_red = asked is None or chosen(4, True, asked)[:3] == [0, 1, 2]
    return "bgr" if any(colored) and blue_green_red else "bands"


def _part(facts: Sequence[Facts], labels: ClassMap | None, reading: Reading, settings: Data) -> Part:
    pixels, around = np.zeros(256, np.int64), np.zeros(256, np.int64)
    for f in mask_findings.drawn(facts, settings) if labels is not None else ():
        classes = labels.encode(np.array([f.mask.values], np.int64), f.mask.color)[0]
        here = np.bincount(classes, f.mask.with_data, minlength=256).astype(np.int64)
        pixels += here
        around[here > 0] += here[:IGNORE_INDEX].sum()
    sizes = tuple((f.image.height, f.image.width) for f in facts)
    all_pixels = sum(height * width for height, width in sizes)
    classes = len(labels.values) if labels is not None else 0
    return Part(
        pairs=len(facts),
        sizes=sizes,
        class_pixels=tuple(pixels[:classes].tolist()),
        image_pixels=tuple(around[:classes].tolist()),
        ignored_pixels=max(0, all_pixels - int(pixels[:IGNORE_INDEX].sum())) if labels is not None else 0,
        decoded_bytes=all_pixels * (reading.channels * np.dtype(reading.dtype).itemsize + 1),
    )
