"""Determines the classes of a data set from the values of all its masks."""

from collections.abc import Sequence
from typing import NoReturn

import numpy as np

from jaxseg.base.config import Data
from jaxseg.base.errors import DataError, UserError
from jaxseg.data.read.masks import ARTICLE, MOST_CLASSES, ClassMap, few, show, to_colors
from jaxseg.doctor import doubts
from jaxseg.doctor.doubts import Counts, shares
from jaxseg.doctor.shapes import VOID

__all__ = ["ARTICLE", "ClassMap", "discover", "show"]


# Finding the classes --------------------------------------------------------------------------------------------------


def discover(
    counts: Counts,
    color: bool,
    settings: Data,
    *,
    flat: Counts | None = None,
    outline: Sequence[int] = (),
    void: bool = False,
) -> ClassMap:
    """Returns the class map of a set of masks.

    - `counts`: pixels of each value, in all masks together.
    - `color`: true if the values are colors, 0xRRGGBB.
    - `settings`: flags that name, number or binarize the classes.
    - `flat`: pixels of each value that are like their neighbors; None if unknown.
    - `outline`: sums of `shapes.outline` over all masks; () if unknown.
    - `void`: true if 255 is known to mean pixels without a label.

    Raises UserError if the values do not look like classes, if the settings do not name them all, or if there is only
    one class. The first line of the message names the fault, the others the fix.
    """
    counts = {int(value): int(count) for value, count in counts.items() if count > 0}
    if not counts:
        raise UserError("The masks have no pixels.")
    if settings.binarize is not None:
        found = _binarized(settings)
    elif settings.labels is not None:
        found = _labelled(color, settings)
    elif settings.snap_colors:
        raise UserError("--snap-colors needs --labels: name the values or colors to snap to.")
    elif settings.classes is not None and not (settings.classes == 2 and not color and set(counts) == {0, 255}):
        found = _numbered(settings)
    else:
        found = _found(counts, color, settings, flat, void or doubts.void_is_plain(counts, outline))
    _check(found, counts, color)
    return found


def _binarized(settings: Data) -> ClassMap:
    if settings.labels is not None or settings.classes not in (None, 2) or settings.snap_colors:
        raise UserError("--binarize makes two classes of gray values; leave out --labels, --classes and --snap-colors.")
    if settings.binarize == 0:
        raise UserError("--binarize is 0; expected a gray value between the two classes, such as 128.")
    return _map((0, settings.binarize), settings, settings.ignore_index or (), binarize=settings.binarize)


def _labelled(color: bool, settings: Data) -> ClassMap:
    are_colors = {label.strip().startswith("#") for label in settings.labels}
    if len(are_colors) != 1:
        raise UserError(f"--labels {' '.join(settings.labels)}: expected values or colors, not both.")
    values = tuple(_label(label) for label in settings.labels)
    if settings.classes not in (None, len(values)):
        raise UserError(f"--classes is {settings.classes}, but --labels names {len(values)}: leave out --classes.")
    ignored = _ignored(settings, colors=are_colors == {True})
    if ignored is None:
        ignored = (255,) if not color and are_colors == {False} and 255 not in values and len(values) > 1 else ()
    return _map(values, settings, ignored, color=are_colors == {True}, snap=settings.snap_colors)


def _numbered(settings: Data) -> ClassMap:
    if not 2 <= settings.classes <= MOST_CLASSES:
        raise UserError(f"--classes is {settings.classes}; expected 2 to {MOST_CLASSES}.")
    ignored = (255,) if settings.ignore_index is None else settings.ignore_index
    return _map(tuple(v for v in range(settings.classes) if v not in ignored), settings, ignored)


def _found(counts: Counts, color: bool, settings: Data, flat: Counts | None, void: bool) -> ClassMap:
    ignored = _ignored(settings, color)
    values = tuple(sorted(set(counts) - set(ignored or ())))
    if not color:
        doubts.refuse_negative(counts, values)
    if len(values) > 1:
        kept = {value: counts[value] for value in values}
        flat = flat and {value: flat.get(value, 0) for value in values}
        doubts.refuse_resampled(kept, color, flat)
    if ignored is None and not color and VOID in counts and len(counts) >= 3:
        if not void:
            doubts.refuse_void(counts)
        ignored, values = (VOID,), tuple(v for v in values if v != VOID)
    if len(values) < 2:
        _refuse_one_class(counts, color, ignored or ())
    return _map(values, settings, ignored or (), color=color)


def _map(values: tuple[int, ...], settings: Data, ignored: Sequence[int], **kind) -> ClassMap:
    if settings.class_names is not None:
        names = tuple(settings.class_names)
        if len(names) != len(values):
            named = ", ".join(show(v, kind.get("color", False)) for v in values)
            raise UserError(f"--class-names has {len(names)} ({', '.join(names)}) for {len(values)} classes: {named}.")
    elif kind.get("color"):
        names = tuple(show(v, True) for v in values)
    elif values in ((0, 1), (0, 255)) or "binarize" in kind:
        names = ("background", "foreground")
    else:
        names = tuple(f"class {i}" for i in range(len(values)))
    return ClassMap(values, names, tuple(ignored), **kind)


def _ignored(settings: Data, colors: bool) -> tuple[int, ...] | None:
    """Returns --ignore-index; in a map of colors, 0 to 255 are grays."""
    values = settings.ignore_index
    return values if values is None or not colors else tuple(v * 0x010101 if 0 <= v <= 255 else v for v in values)


def _label(label: str) -> int:
    text = label.strip()
    try:
        if not text.startswith("#"):
            return int(text)
        if len(text) == 7:
            return int(text[1:], 16)
    except ValueError:
        pass
    raise UserError(f"--labels {label}: expected an integer, or a color such as '#00ff7f'.")


# What is wrong with them ----------------------------------------------------------------------------------------------


def _check(found: ClassMap, counts: Counts, color: bool) -> None:
    """Raises UserError unless every value has a class and at least two classes have pixels."""
    try:
        classes = found.encode(np.array([list(counts)], np.int64), color)
    except DataError:
        raise UserError(_unknown(found, counts, color)) from None
    if len(set(classes.ravel().tolist()) & set(range(len(found.values)))) < 2:
        if found.binarize is not None:
            text = f"--binarize {found.binarize} puts every pixel on one side: mask values {shares(counts, color)}."
            raise UserError(f"{text}\nGive a value between them.")
        _refuse_one_class(counts, color, found.ignored)


def _unknown(found: ClassMap, counts: Counts, color: bool) -> str:
    if found.color and not color:
        counts = dict(zip(to_colors(np.array([list(counts)]))[0].tolist(), counts.values()))
    color = color or found.color
    known = found.known(color)
    others = [v for v in counts if v not in known and not (found.snap and color and 0 <= v < 1 << 24)]
    expected = few(show(v, found.color) for v in found.values + found.ignored)
    text = f"Masks hold values that belong to no class: {shares(counts, color, others)}; expected {expected}."
    ignore = " ".join(str(v) for v in sorted(others)[:8])
    advice = "Add them to --labels, or snap each to the nearest with --labels and --snap-colors"
    return f"{text}\n{advice}" + (f", or ignore them with --ignore-index {ignore}." if not color else ".")


def _refuse_one_class(counts: Counts, color: bool, ignored: Sequence[int]) -> NoReturn:
    text = f"The masks hold one class only: {shares(counts, color)}; expected two or more."
    if held := [v for v in ignored if v in counts]:
        named = ", ".join(show(v, color) for v in held)
        advice = (
            f"{named} is ignored; if it is a class, name all of them with --labels, or give another --ignore-index."
        )
    else:
        advice = "Are these the right masks?"
    raise UserError(f"{text}\n{advice}")
