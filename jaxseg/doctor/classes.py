"""Determines the classes of a data set from the values of all its masks."""

from collections.abc import Mapping, Sequence
from typing import NoReturn

import numpy as np

from jaxseg.base.config import Data
from jaxseg.base.errors import DataError, UserError
from jaxseg.data.read.masks import ARTICLE, MOST_CLASSES, ClassMap, channels_of, few, show, to_colors

__all__ = ["ARTICLE", "ClassMap", "discover", "show"]

MOST_FOUND = 32  # more distinct values are refused as classes unless flags name them
NEAR = 4  # JPEG or a filter seldom moves a value farther

Counts = Mapping[int, int]
"""Number of pixels by mask value."""


# Finding the classes --------------------------------------------------------------------------------------------------


def discover(counts: Counts, color: bool, settings: Data) -> ClassMap:
    """Returns the class map of a set of masks.

    - `counts`: pixels of each value, in all masks together.
    - `color`: true if the values are colors, 0xRRGGBB.
    - `settings`: flags that name, number or binarize the classes.

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
        found = _found(counts, color, settings)
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
    return _map(tuple(range(settings.classes)), settings, ignored)


def _found(counts: Counts, color: bool, settings: Data) -> ClassMap:
    ignored = _ignored(settings, color)
    if ignored is None:
        ignored = (255,) if not color and 255 in counts and len(counts) >= 3 else ()
    values = tuple(sorted(set(counts) - set(ignored)))
    _refuse_doubtful(counts, values, color)
    if len(values) < 2:
        _refuse_one_class(counts, color, ignored)
    return _map(values, settings, ignored, color=color)


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
            text = f"--binarize {found.binarize} puts every pixel on one side: mask values {_shares(counts, color)}."
            raise UserError(f"{text}\nGive a value between them.")
        _refuse_one_class(counts, color, found.ignored)


def _unknown(found: ClassMap, counts: Counts, color: bool) -> str:
    if found.color and not color:
        counts = dict(zip(to_colors(np.array([list(counts)]))[0].tolist(), counts.values()))
    color = color or found.color
    known = found.known(color)
    others = [v for v in counts if v not in known and not (found.snap and color and 0 <= v < 1 << 24)]
    expected = few(show(v, found.color) for v in found.values + found.ignored)
    text = f"Masks hold values that belong to no class: {_shares(counts, color, others)}; expected {expected}."
    ignore = " ".join(str(v) for v in sorted(others)[:8])
    advice = "Add them to --labels, or snap each to the nearest with --labels and --snap-colors"
    return f"{text}\n{advice}" + (f", or ignore them with --ignore-index {ignore}." if not color else ".")


def _refuse_one_class(counts: Counts, color: bool, ignored: Sequence[int]) -> NoReturn:
    text = f"The masks hold one class only: {_shares(counts, color)}; expected two or more."
    if held := [v for v in ignored if v in counts]:
        named = ", ".join(show(v, color) for v in held)
        advice = (
            f"{named} is ignored; if it is a class, name all of them with --labels, or give another --ignore-index."
        )
    else:
        advice = "Are these the right masks?"
    raise UserError(f"{text}\n{advice}")


def _refuse_doubtful(counts: Counts, values: Sequence[int], color: bool) -> None:
    """Raises UserError for values that come from resampling or JPEG instead of annotation."""
    if not color and (negative := [v for v in values if v < 0]):
        ignore = " ".join(map(str, negative[:8]))
        raise UserError(
            f"Masks hold negative values: {_shares(counts, color, negative)}.\n"
            f"If they mean no data, give --ignore-index {ignore}; if they are classes, name all of them with --labels."
        )
    if len(counts) <= MOST_FOUND and not _looks_resampled(counts, color):
        return
    peaks = [0, 255] if _has_seams(counts, color) else sorted(_peaks(counts, color))
    near = sum(n for v, n in counts.items() if min(_distance(v, p, color) for p in peaks) <= NEAR)
    named, kind = ", ".join(show(p, color) for p in peaks), "colors" if color else "values"
    text = f"{len(counts)} distinct {kind}: looks resampled or JPEG; "
    text += f"{_percent(near, counts)} of pixels within {NEAR} of {{{named}}}"
    labels = " ".join(f"'{show(p, color)}'" if color else str(p) for p in peaks)
    advice = [f"--labels {labels} --snap-colors, to snap every pixel to the nearest of these"]
    if not color and len(peaks) == 2:
        advice.insert(0, f"--binarize {(sum(peaks) + 1) // 2}, for two classes")
    if not color and len(values) <= MOST_CLASSES and values[-1] < min(MOST_CLASSES, 2 * len(values)):
        advice.append(f"--classes {values[-1] + 1}, if they are classes")
    elif len(values) <= MOST_FOUND:
        labels = " ".join(f"'{show(v, color)}'" if color else str(v) for v in values)
        advice.append(f"--labels {labels}, if they are classes")
    raise UserError("\n".join([text, "Give one of", *(f"  {line}" for line in advice)]))


def _looks_resampled(counts: Counts, color: bool) -> bool:
    """True if few values look resampled: they have seams, or half are rare satellites of common values.

    Values below 64, with 255, count as class numbers.
    """
    if not color and all(0 <= v < 64 or v == 255 for v in counts):
        return False
    return _has_seams(counts, color) or _satellites(counts, color) >= len(counts) / 2


def _has_seams(counts: Counts, color: bool) -> bool:
    """True if values between 0 and 255 look like smoothed borders.

    0 and 255 must then have nine tenths of all pixels. Half is enough if at least four others are spaced unevenly,
    unlike chosen codes.
    """
    if color or not {0, 255} < set(counts):
        return False
    uneven = len(counts) >= 6 and len(set(np.diff(sorted(counts)))) > 1
    return counts[0] + counts[255] >= (0.5 if uneven else 0.9) * sum(counts.values())


def _satellites(counts: Counts, color: bool) -> int:
    """Counts values a tenth as common, or less, as the commonest value within reach by steps of at most NEAR."""
    rest, number = set(counts), 0
    while rest:
        peak = max(rest, key=lambda v: counts[v])
        group, edge = set(), {peak}
        while edge:
            group |= edge
            edge = {v for v in rest - group if any(_distance(v, w, color) <= NEAR for w in edge)}
        number += sum(10 * counts[v] <= counts[peak] for v in group)
        rest -= group
    return number


def _peaks(counts: Counts, color: bool) -> list[int]:
    """Returns the commonest values, none near another: two, or up to 8 with at least 1 % of the pixels each."""
    rest, peaks, least = dict(counts), [], sum(counts.values()) / 100
    while rest and len(peaks) < 8:
        peak = max(rest, key=lambda v: (rest[v], -v))
        if len(peaks) >= 2 and rest[peak] < least:
            break
        peaks.append(peak)
        rest = {v: count for v, count in rest.items() if _distance(v, peak, color) > NEAR}
    return peaks


def _distance(a: int, b: int, color: bool) -> int:
    """Returns the largest difference in a channel."""
    return max(abs(x - y) for x, y in zip(channels_of(a), channels_of(b))) if color else abs(a - b)


def _shares(counts: Counts, color: bool, values: Sequence[int] | None = None) -> str:
    """Lists values with their share of all pixels, the commonest first."""
    ordered = sorted(counts if values is None else values, key=lambda v: -counts[v])
    return few(f"{show(v, color)} ({_percent(counts[v], counts)})" for v in ordered)


def _percent(part: int, counts: Counts) -> str:
    percent = 100 * part / sum(counts.values())
    return f"{percent:.3g} %" if percent >= 0.01 else "under 0.01 %"
