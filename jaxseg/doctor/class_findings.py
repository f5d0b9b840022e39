"""Finds the classes of all masks, and what is wrong with them."""

import dataclasses
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

from jaxseg.base.errors import UserError
from jaxseg.data.find.class_names import read_class_names
from jaxseg.data.read.masks import MOST_CLASSES, few, to_colors
from jaxseg.doctor import conventions
from jaxseg.doctor.classes import ClassMap, discover, show
from jaxseg.doctor.doubts import MOST_FOUND, Doubt
from jaxseg.doctor.facts import MaskFacts
from jaxseg.doctor.findings import Finding, Sides, count
from jaxseg.doctor.mask_findings import drawn
from jaxseg.doctor.shapes import VOID
from jaxseg.doctor.survey import Facts


def value_counts(facts: Sequence[Facts]) -> tuple[dict[int, int], bool]:
    """Counts the pixels of every mask value; returns True with them if values are colors, as in any of the masks."""
    color, counts = any(f.mask.color for f in facts), Counter()
    for f in facts:
        for value, pixels in zip(_values(f.mask, color), f.mask.pixels):
            counts[value] += pixels
    return dict(counts), color


def _values(mask: MaskFacts, color: bool) -> Sequence[int]:
    """Values of a mask; with `color`, grays are given as colors."""
    return _as_colors(mask.values) if color and not mask.color else mask.values


def _as_colors(grays: Sequence[int]) -> list[int]:
    return to_colors(np.array([grays], np.int64))[0].tolist()


def find_classes(sides: Sides) -> tuple[ClassMap | None, list[Finding]]:
    """Returns the class map of all masks, with what a data set like this usually ignores.

    None, and the error that prevents one, if the values are not classes.
    """
    facts = drawn(sides.all, sides.settings)
    if not facts:
        return None, []
    counts, color = value_counts(facts)
    if not _asked(sides) and (numbered := numbered_objects(sides, facts)):
        return None, [numbered]
    remarks = (
        [] if color else list(conventions.usually_ignored(counts, sides.layout, sides.settings.ignore_index or ()))
    )
    settings = sides.settings
    if settings.ignore_index is None and not _asked(sides) and void_is_declared(facts):
        settings = dataclasses.replace(settings, ignore_index=(VOID,))
    try:
        found = discover(
            counts,
            color,
            settings,
            flat=_flat(facts, color),
            outline=np.sum([f.mask.outline for f in facts if f.mask.outline] or [()], axis=0).tolist(),
            void=not color and conventions.void_is_known(counts, sides.layout),
        )
    except UserError as error:
        what, _, advice = str(error).partition("\n")
        if what.startswith("--"):  # a flag is at fault, not the masks
            return None, [Finding("error", what, advice=advice)]
        odd = error.odd if isinstance(error, Doubt) else None
        flags = error.flags if isinstance(error, Doubt) else ()
        return None, [Finding("error", what, _strange(sides, facts, counts, color, odd), advice, flags), *remarks]
    found, named = _with_names(found, sides)
    return (found.as_colors() if sides.looks else found), [*named, *(remarks if found.binarize is None else [])]


def void_is_declared(facts: Sequence[Facts]) -> bool:
    """True if there are masks with 255, and each of them names 255 as its nodata value, as GeoTIFF files can."""
    holding = [f.mask for f in facts if VOID in f.mask.values]
    return bool(holding) and all(mask.nodata == VOID for mask in holding)


def _with_names(labels: ClassMap, sides: Sides) -> tuple[ClassMap, list[Finding]]:
    """Names the classes by a file beside the data, unless --class-names does, and says so."""
    settings, mask = sides.settings, sides.all[0].pair.mask
    folders = [settings.data] if settings.data is not None else []
    names = read_class_names([*folders, mask.parent, mask.parent.parent]) if settings.class_names is None else None
    if names is None:
        return labels, []
    if (found := names.of(labels.values, labels.color)) is None or labels.binarize is not None:
        given = few(names.ordered or [f"{name} {show(color, True)}" for color, name in names.colors])
        held = few(show(v, labels.color) for v in labels.values)
        what = f"{sides.name(names.file)} names other classes ({given}) than the masks hold ({held}); it is not used"
        return labels, [Finding("note", what, advice="Give --class-names.")]
    what = f"class names from {sides.name(names.file)}: {few(found)}"
    return dataclasses.replace(labels, names=found), [Finding("note", what)]


def _flat(facts: Sequence[Facts], color: bool) -> dict[int, int] | None:
    """Counts the flat pixels of every value, or all pixels of masks that look drawn; None if all look drawn."""
    if not any(f.mask.flat for f in facts):
        return None
    flat = Counter()
    for mask in (f.mask for f in facts):
        for value, pixels in zip(_values(mask, color), mask.flat or mask.pixels):
            flat[value] += pixels
    return dict(flat)


def numbered_objects(sides: Sides, facts: Sequence[Facts]) -> Finding | None:
    """Returns an error if masks number or color their objects, so that these are no classes; else None.

    Nearly every number is a single piece then. Masks count from 1, each to another number; or many numbers or colors
    occur in one mask only.
    """
    held = [{v for v in f.mask.values if v > 0} for f in facts]
    if any(min(f.mask.values) < 0 for f in facts):
        return None
    color = any(f.mask.color for f in facts)
    objects = sum(map(len, held))
    most, distinct = max(map(max, filter(None, held)), default=0), len(set().union(*held))
    lengths = {len(values) for values in held}
    counted = sum(values == set(range(1, len(values) + 1)) for values in held) >= 0.9 * len(held)
    counted = counted and not color and len(lengths) >= 3 and distinct >= 4
    own = len(held) >= 3 and distinct > MOST_FOUND and distinct >= 0.9 * objects
    pieces = [f.mask.whole for f in facts if len(f.mask.values) > 2]
    among = sum(len(values) for f, values in zip(facts, held) if len(f.mask.values) > 2)
    if not (counted or own) or sum(pieces) < 0.9 * among:
        return None
    numbers = f"{distinct:,} colors" if color else f"numbers up to {most}"
    what = f"masks number their objects (instances): {objects:,} objects by {numbers}, each a single piece"
    advice = "Give --binarize 1, if all objects are of one class."
    if most < MOST_CLASSES and not color:
        advice = f"Give one of\n  {advice[5:-1]}\n  --classes {most + 1}, if the numbers are classes after all"
    files = tuple(f"{sides.name(f.pair.mask)}: {count(len(v), 'object')}" for f, v in zip(facts, held) if v)
    return Finding("error", what, files, advice, ("--binarize", "1"))


def _asked(sides: Sides) -> bool:
    settings = sides.settings
    return settings.labels is not None or settings.classes is not None or settings.binarize is not None


def _strange(
    sides: Sides, facts: Sequence[Facts], counts: Mapping[int, int], color: bool, odd: Collection[int] | None = None
) -> tuple[str, ...]:
    """Lists files with values of no class: those in `odd`, or else, without flags, all but the two commonest."""
    settings = sides.settings
    if odd is not None:
        known = set(counts) - set(odd)
    elif settings.labels is not None or settings.classes is not None:
        known = set(range(settings.classes or 0)) | set(settings.ignore_index or (255,))
        known |= {int(label.lstrip("#"), 16 if label.startswith("#") else 10) for label in settings.labels or ()}
    else:
        known = set(sorted(counts, key=lambda v: -counts[v])[:2])
    known |= set(_as_colors(sorted(known))) if color else set()
    files = []
    for f in facts:
        others = {v: n for v, n in zip(_values(f.mask, color), f.mask.pixels) if v not in known}
        if others:
            listed = ", ".join(show(v, color) for v in sorted(others)[:6]) + (", ..." if len(others) > 6 else "")
            files.append((len(others), f"{sides.name(f.pair.mask)}: {listed} ({sum(others.values()):,} pixels)"))
    return tuple(text for _, text in sorted(files, key=lambda row: -row[0]))


def balance(names: Sequence[str], training: Sequence[int], validation: Sequence[int]) -> Iterator[Finding]:
    """Finds absent and rare classes.

    - `names`: names of the classes.
    - `training`, `validation`: pixels of each class.
    """
    for side, pixels in (("training", training), ("validation", validation)):
        if not sum(pixels):
            what = f"no pixel of {side} has a class: all are ignored or without data"
            yield Finding("error", what, advice="Are --ignore-index and --nodata right?")
        elif side == "training" and sum(n > 0 for n in pixels) == 1:
            only = names[int(np.argmax(pixels))]
            what = f"the training masks hold one class only, {only}"
            yield Finding("error", what, advice="Are these the right masks?")
    if not sum(training) or not sum(validation):
        return
    split = "Change the split: give another --seed or --validation, or lists."
    kinds = {
        (False, False): ("classes that do not occur", "Leave them out of --classes or --labels."),
        (False, True): ("classes in validation but not in training, which cannot be learned", split),
        (True, False): ("classes in training but not in validation, which are not measured", split),
    }
    for sides, (what, advice) in kinds.items():
        of = [(n, a + b) for n, a, b in zip(names, training, validation) if (a > 0, b > 0) == sides]
        if listed := few(f"{name} ({pixels:,} pixels)" if pixels else name for name, pixels in of):
            yield Finding("warning", f"{what}: {listed}", advice=advice)
    total = sum(training)
    if rare := [f"{name} {n / total:.2%}" for name, n in zip(names, training) if 0 < n < 0.01 * total]:
        what = f"rare in training: {', '.join(rare)} of pixels; a network may never predict them"
        yield Finding(
            "warning", what, advice="Give --class-weights auto or --loss dice_ce.", flags=("--class-weights", "auto")
        )


def binarized(labels: ClassMap, sides: Sides) -> Iterator[Finding]:
    """Finds mask pixels that --binarize changes."""
    counts, color = value_counts(sides.all)
    if labels.binarize is None or color:
        return
    below, above = ({v: n for v, n in counts.items() if (v >= labels.binarize) == side} for side in (False, True))
    kept = [max(side, key=side.get) for side in (below, above) if side]
    others = 1 - sum(counts[v] for v in kept) / sum(counts.values())
    if others > 0:
        ends = " or ".join(map(str, kept))
        what = f"{others:.2%} of mask pixels are not {ends}; --binarize {labels.binarize} decides their class"
        yield Finding("warning" if others > 0.05 else "note", what)
