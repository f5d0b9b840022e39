"""Knows what well-known data sets ignore, by their layout or by the number of their classes."""

import dataclasses
from collections.abc import Iterator, Sequence

from jaxseg.doctor.doubts import MOST_FOUND, Counts
from jaxseg.doctor.findings import Finding
from jaxseg.doctor.shapes import VOID


@dataclasses.dataclass(frozen=True)
class Convention:
    """A data set whose masks hold class numbers.

    - `layout`: name of its layout; "" if it has none of its own
    - `classes`: its masks hold the numbers 0 to `classes` - 1
    - `ignored`: the numbers that its benchmark ignores
    - `meaning`: what they mean
    """

    name: str
    layout: str
    classes: int
    ignored: tuple[int, ...]
    meaning: str


CONVENTIONS = (
    Convention("CamVid", "CamVid's", 12, (11,), "void"),
    Convention("Cityscapes", "Cityscapes'", 19, (VOID,), "void"),
    Convention("Cityscapes (label IDs)", "", 34, (0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30), "not evaluated"),
    Convention("Pascal VOC", "Pascal VOC's", 21, (VOID,), "outlines and difficult objects"),
    Convention("ADE20K", "", 151, (0,), "none of the 150 classes"),
    Convention("ADE20K", "", 150, (VOID,), "none of the 150 classes"),
)


def known(counts: Counts, layout: str) -> list[Convention]:
    """Data sets whose layout this is, or whose class numbers the gray values `counts` are, up to the last one."""
    last = max((v for v in counts if v != VOID), default=-1)
    if min(counts, default=-1) < 0:
        return []
    return [c for c in CONVENTIONS if _has_layout(c, layout) or last + 1 == c.classes]


def void_is_known(counts: Counts, layout: str) -> bool:
    """True if 255 means pixels without a label in a data set like this."""
    return any(VOID in convention.ignored for convention in known(counts, layout))


def usually_ignored(counts: Counts, layout: str, ignored: Sequence[int]) -> Iterator[Finding]:
    """Yields what a data set like this usually ignores, if the masks hold it and it is not among `ignored`.

    It is a warning if the layout is the data set's, and a note if only the number of classes is. A note says too that
    255 is ignored because of it.
    """
    for convention in known(counts, layout):
        if VOID in counts and VOID in convention.ignored and VOID not in ignored:
            share = counts[VOID] / sum(counts.values())
            what = (
                f"mask value {VOID} is ignored, as in {convention.name} ({convention.meaning}; {share:.2%} of pixels)"
            )
            yield Finding("note", what, advice="If it is a class, name all with --labels.")
        held = [v for v in convention.ignored if v in counts and v not in ignored and v != VOID]
        if not held or max(v for v in counts if v != VOID) >= convention.classes:
            continue
        share = sum(counts[v] for v in held) / sum(counts.values())
        what = f"{convention.name} usually ignores mask value {', '.join(map(str, held))}"
        what += f" ({convention.meaning}; {share:.2%} of pixels)"
        flags = ("--ignore-index", *map(str, convention.ignored))
        if convention.classes > MOST_FOUND:
            flags = ("--classes", str(convention.classes), *flags)
        advice = f"If these are {convention.name}'s classes, give {' '.join(flags)}."
        yield Finding("warning" if _has_layout(convention, layout) else "note", what, advice=advice)


def _has_layout(convention: Convention, layout: str) -> bool:
    return bool(convention.layout) and layout.startswith(convention.layout)
