"""Refuses mask values that do not look like classes, and proposes the flags that say what was meant."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from jaxseg.base.errors import UserError
from jaxseg.data.read.masks import MOST_CLASSES, channels_of, few, show
from jaxseg.doctor.shapes import NEAR, VOID

MOST_FOUND = 32  # more distinct values are refused as classes unless flags name them
RARE = 0.02  # share of the pixels up to which 255 is ignored without further reason

Counts = Mapping[int, int]
"""Number of pixels by mask value."""

Option = tuple[tuple[str, ...], str]
"""Flags, and what they mean."""


class Doubt(UserError):
    """Mask values that may mean several things.

    - `text`: what was found
    - `options`: flags that settle it, the likeliest first
    - `clear`: True if the first option is meant almost certainly
    - `odd`: the values in doubt; None if that is all but the two commonest
    """

    def __init__(self, text: str, options: Sequence[Option], clear: bool = True, odd: Iterable[int] | None = None):
        lines = [f"{_words(flags)}, {why}" for flags, why in options]
        advice = (
            f"Give {lines[0]}." if len(lines) == 1 else "\n".join(["Give one of", *(f"  {line}" for line in lines)])
        )
        super().__init__(f"{text}\n{advice}")
        self.flags = options[0][0] if clear else ()
        self.odd = None if odd is None else frozenset(odd)


def refuse_negative(counts: Counts, values: Sequence[int]) -> None:
    """Raises Doubt for negative values, which mean no data or are classes."""
    if negative := [v for v in values if v < 0]:
        ignore = ("--ignore-index", *map(str, negative[:8]))
        options = [(ignore, "if they mean no data"), (labels_flag(values, False), "if they are classes")]
        text = f"Masks hold negative values: {shares(counts, False, negative)}."
        raise Doubt(text, options if len(values) <= MOST_FOUND else options[:1], odd=negative)


def refuse_resampled(counts: Counts, color: bool, flat: Counts | None = None) -> None:
    """Raises Doubt for values that come from resampling or JPEG instead of annotation.

    - `counts`: pixels of each value that would be a class.
    - `color`: true if the values are colors, 0xRRGGBB.
    - `flat`: pixels of each value that are like their neighbors; None if unknown.
    """
    if len(counts) <= MOST_FOUND and not _looks_resampled(counts, color, flat):
        return
    values, levels = sorted(counts), _levels(counts, color, flat)
    near = sum(n for v, n in counts.items() if min(_distance(v, p, color) for p in levels) <= NEAR)
    named, kind = ", ".join(show(p, color) for p in levels), "colors" if color else "values"
    text = f"{len(counts)} distinct {kind}: looks resampled or JPEG; "
    text += f"{percent(near, counts)} of pixels within {NEAR} of {{{named}}}"
    rest = sum(counts.values()) - near
    left = f" ({percent(rest, counts)} of pixels are farther than {NEAR} from all of them)" if rest else ""
    snap = (*labels_flag(levels, color), "--snap-colors")
    options = [(snap, f"to snap every pixel to the nearest of these{left}")]
    if not color and len(levels) == 2:
        options.insert(0, (("--binarize", str((sum(levels) + 1) // 2)), "for two classes"))
    if not color and len(values) <= MOST_CLASSES and 0 <= values[-1] < min(MOST_CLASSES, 2 * len(values)):
        options.append((("--classes", str(values[-1] + 1)), "if they are classes"))
    elif len(values) <= MOST_FOUND:
        options.append((labels_flag(values, color), "if they are classes"))
    raise Doubt(text, options)


def void_is_plain(counts: Counts, outline: Sequence[int]) -> bool:
    """True if 255 may be ignored without asking: it is rare, or outlines the other values as in Pascal VOC.

    A rare 255 that ends a row of even steps, such as 0 85 170 255, is a class all the same.

    - `outline`: sums of `shapes.outline` over all masks; () if unknown.
    """
    if VOID not in counts or len(counts) < 3:
        return False
    if outline:
        inner, with_void, others = outline
        if inner < counts[VOID] / 4 and others < with_void / 10:
            return True
    steps = np.diff(sorted(counts))
    return counts[VOID] <= RARE * sum(counts.values()) and bool(np.ptp(steps) > 1)


def refuse_void(counts: Counts) -> None:
    """Raises Doubt for a 255 that may be a class or mean that pixels have no label."""
    values = sorted(counts)
    options = [
        (labels_flag(values, False), f"if {VOID} is a class"),
        (("--ignore-index", str(VOID)), "if it means that pixels have no label"),
    ]
    if values == [0, 1, VOID]:
        options.append((("--binarize", "1"), f"if 1 and {VOID} are one class"))
    text = f"Mask value {VOID} holds {percent(counts[VOID], counts)} of pixels: a class, or to be ignored?"
    raise Doubt(text, options, clear=False, odd=[VOID])


def labels_flag(values: Iterable[int], color: bool) -> tuple[str, ...]:
    """`--labels` with all values."""
    return ("--labels", *(show(v, color) for v in values))


def shares(counts: Counts, color: bool, values: Sequence[int] | None = None) -> str:
    """Lists values with their share of all pixels, the commonest first."""
    ordered = sorted(counts if values is None else values, key=lambda v: -counts[v])
    return few(f"{show(v, color)} ({percent(counts[v], counts)})" for v in ordered)


def percent(part: int, counts: Counts) -> str:
    """Formats a share of all pixels: '12.3 %'."""
    share = 100 * part / sum(counts.values())
    return f"{share:.3g} %" if share >= 0.01 else "under 0.01 %"


def _words(flags: Sequence[str]) -> str:
    return " ".join(f"'{word}'" if word.startswith("#") else word for word in flags)


def _looks_resampled(counts: Counts, color: bool, flat: Counts | None) -> bool:
    """True if few values look resampled: they have seams, or half are rare satellites of common values.

    Values below 64, with 255, count as class numbers.
    """
    if not color and all(0 <= v < 64 or v == VOID for v in counts):
        return False
    return _has_seams(counts, color, flat) or _satellites(counts, color) >= len(counts) / 2


def _has_seams(counts: Counts, color: bool, flat: Counts | None) -> bool:
    """True if values between 0 and 255 look like smoothed borders.

    0 and 255 must then have nine tenths of all pixels. Half is enough if at least four others are spaced unevenly,
    unlike chosen codes. A value between them with flat areas of its own is a class.
    """
    if color or not {0, 255} < set(counts):
        return False
    if flat and any(NEAR < p < 255 - NEAR for p in _flat_levels(flat, color)):
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


def _levels(counts: Counts, color: bool, flat: Counts | None) -> list[int]:
    """Likely classes, sorted: the values with flat areas, or else the commonest. Other values are taken for blends."""
    if len(levels := _flat_levels(flat, color) if flat else []) >= 2:
        return sorted(levels)
    return [0, 255] if _has_seams(counts, color, flat) else sorted(_peaks(counts, color))


def _flat_levels(flat: Counts, color: bool, least: float = 0.001) -> list[int]:
    """Values with a share `least` or more of all flat pixels within NEAR of them, none within NEAR of another.

    A value within 3 NEAR of a level that is ten times as common is its trace.
    """
    values, pixels = np.array(list(flat), np.int64), np.array(list(flat.values()), np.float64)
    planes = np.stack(channels_of(values) if color else (values,), -1)
    levels: list[tuple[int, float]] = []
    rest, total = pixels.copy(), pixels.sum()
    while rest.any():
        i = int(rest.argmax())
        distance = np.abs(planes - planes[i]).max(-1)
        mass = rest[distance <= NEAR].sum()
        if rest[i] < least * total / 10 or len(levels) >= MOST_FOUND:
            break
        rest[distance <= NEAR] = 0
        trace = any(_distance(int(values[i]), p, color) <= 3 * NEAR and 10 * mass < of for p, of in levels)
        if mass >= least * total and not trace:
            levels.append((int(values[i]), mass))
    return [value for value, _ in levels]


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
