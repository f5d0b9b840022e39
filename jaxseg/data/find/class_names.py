"""Reads class names from a file beside the data: classes.txt, class_dict.csv or CVAT's labelmap.txt."""

import csv
import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

FILES = ("classes.txt", "class_dict.csv", "labelmap.txt")
BACKGROUND = frozenset({"background", "_background_", "bg", "void", "unlabeled", "unlabelled", "other", "none"})


@dataclasses.dataclass(frozen=True)
class ClassNames:
    """Names of a file: in class order, or by color."""

    file: Path
    ordered: tuple[str, ...] = ()
    colors: tuple[tuple[int, str], ...] = ()
    """(0xRRGGBB, name)"""

    def of(self, values: Sequence[int], color: bool) -> tuple[str, ...] | None:
        """Names of mask values, in their order; None unless each of them has a name of its own.

        - `values`: mask values of the classes.
        - `color`: true if they are colors, 0xRRGGBB. A gray value v is the color (v, v, v).

        Names without colors fit values of the same number, or one more if the first is 0: background. A list that
        begins with a background names the values 0, 1, ..., even if some are missing.
        """
        if self.colors:
            known = dict(self.colors)
            names = [known.get(v if color else v * 0x010101 if 0 <= v <= 255 else -1) for v in values]
        elif len(self.ordered) == len(values):
            names = list(self.ordered)
        elif len(self.ordered) == len(values) - 1 and values[0] == 0 and self.ordered[0].lower() not in BACKGROUND:
            names = ["background", *self.ordered]
        elif (
            not color and 0 <= min(values) <= max(values) < len(self.ordered) and self.ordered[0].lower() in BACKGROUND
        ):
            names = [self.ordered[value] for value in values]
        else:
            return None
        return tuple(names) if all(names) and len(set(names)) == len(names) else None


def read_class_names(folders: Iterable[Path]) -> ClassNames | None:
    """Reads the first file of FILES in `folders`; None if there is none, or it holds no names."""
    for path in (folder / name for folder in dict.fromkeys(folders) for name in FILES):
        try:
            lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError):
            continue
        if path.name == "classes.txt":
            found = ClassNames(path, tuple(lines))
        else:
            found = ClassNames(path, colors=tuple(_dictionary(lines) if path.suffix == ".csv" else _labelmap(lines)))
        if found.ordered or found.colors:
            return found
    return None


def _dictionary(lines: Sequence[str]) -> Iterable[tuple[int, str]]:
    """Colors and names of "name,r,g,b" below a heading."""
    for row in csv.reader(lines):
        yield from _colored(row[0], row[1:4]) if len(row) >= 4 else ()


def _labelmap(lines: Sequence[str]) -> Iterable[tuple[int, str]]:
    """Colors and names of CVAT's "name:r,g,b:parts:actions"."""
    for line in lines:
        name, _, rest = line.partition(":")
        yield from () if line.startswith("#") else _colored(name, rest.partition(":")[0].split(","))


def _colored(name: str, channels: Sequence[str]) -> Iterable[tuple[int, str]]:
    numbers = [channel.strip() for channel in channels]
    if len(numbers) == 3 and all(n.isdigit() and int(n) < 256 for n in numbers):
        red, green, blue = map(int, numbers)
        yield (red << 16) | (green << 8) | blue, name.strip()
