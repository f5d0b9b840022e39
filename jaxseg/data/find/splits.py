"""Splits pairs into training and validation: random by seed, by image or by group, or read from lists."""

import dataclasses
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath

import numpy as np

from jaxseg.base.errors import DataError
from jaxseg.data.find.listing import EXTENSIONS, Pair, nfc
from jaxseg.data.find.names import IMAGE_NAMES, star


@dataclasses.dataclass(frozen=True)
class Split:
    """Training pairs and validation pairs, each sorted by name."""

    training: tuple[Pair, ...]
    validation: tuple[Pair, ...]
    layout: str
    """One line that names the recognized layout."""
    notes: tuple[str, ...] = ()
    """Warnings, one line each."""

    @property
    def training_names(self) -> list[str]:
        """Names of the training images; relative paths if names are not unique."""
        return _names(self.training)

    @property
    def validation_names(self) -> list[str]:
        """Names of the validation images; relative paths if names are not unique."""
        return _names(self.validation)


def by_percent(count: int, percent: float, seed: int, all_train: bool) -> set[int]:
    """Indices of the validation pairs: `percent` of `count`, at least one, drawn without replacement.

    A single pair trains with `all_train`. Raises DataError if none would be left for training.
    """
    if all_train and count == 1:
        return set()
    aside = max(1, round(count * percent / 100))
    if aside >= count:
        raise DataError(
            f"{count} image{'s are' if count > 1 else ' is'} too few to set {percent:g} percent aside for validation.",
            [],
            "Add images; or name folders with --images --masks --val-images --val-masks; or give --overfit 1.",
        )
    return set(np.random.default_rng(seed).permutation(count)[:aside].tolist())


def by_group(keys: Sequence[str], percent: float, seed: int) -> set[int]:
    """Indices of the validation pairs: whole groups (equal `keys`), as near to `percent` of the pairs as possible.

    `seed` decides among equally near choices. Raises DataError if there is only one group.
    """
    sizes = Counter(keys)
    if len(sizes) < 2:
        raise DataError(
            f"--group-by puts all {len(keys)} images into one group, {next(iter(sizes))!r}; expected two or more.",
            [],
            "Its first (...) must capture what differs between groups.",
        )
    order = [sorted(sizes)[i] for i in np.random.default_rng(seed).permutation(len(sizes))]
    chosen = {order[i] for i in _nearest([sizes[key] for key in order], max(1, round(len(keys) * percent / 100)))}
    return {index for index, key in enumerate(keys) if key in chosen}


def from_lists(lists: Sequence[Path], images: Sequence[Path], image_suffix: str | None = None) -> list[set[Path]]:
    """Images that each of `lists` names.

    A line holds the stem or name of an image, with or without folders; known suffixes may be omitted. `#` begins a
    comment. Raises DataError listing, with file and line, every entry that matches no image, matches several, or
    repeats an image of the same or another list.
    """
    find = _finder(images, IMAGE_NAMES if image_suffix is None else ("*", nfc("*" + image_suffix)))
    chosen: list[set[Path]] = []
    first: dict[Path, str] = {}
    problems = []
    for file in lists:
        chosen.append(set())
        try:
            lines = _lines(file)
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            problems.append(f"{file}: cannot be read ({why})")
            continue
        problems += [] if lines else [f"{file}: names no images"]
        for number, line in lines:
            where, found = f"{file}:{number}", find(line)
            if not found:
                problems.append(f"{where}: {line!r} matches no image")
            elif len(found) > 1:
                problems.append(f"{where}: {line!r} matches both {found[0]} and {found[1]}")
            elif found[0] in first:
                problems.append(f"{where}: {line!r} is already named at {first[found[0]]}")
            else:
                first[found[0]] = where
                chosen[-1].add(found[0])
    if problems:
        headline = f"{len(problems)} problems in {' and '.join(map(str, lists))}; {len(images)} images were found."
        raise DataError(headline, problems, "Expected one image stem per line, such as: " + images[0].stem)
    return chosen


def _lines(file: Path) -> list[tuple[int, str]]:
    """(number, text) of the non-empty lines of a list, without comments."""
    text = file.read_text(encoding="utf-8-sig")
    lines = ((number, re.sub(r"(^|\s)#.*", "", line).strip()) for number, line in enumerate(text.splitlines(), 1))
    return [(number, line) for number, line in lines if line]


def _finder(images: Sequence[Path], image_names: Sequence[str]) -> Callable[[str], list[Path]]:
    """Builds a function from a list line to the images that it matches."""
    by_name: dict[str, list[Path]] = {}
    by_stem: dict[str, list[Path]] = {}
    for image in images:
        by_name.setdefault(nfc(image.name), []).append(image)
        for stem in {star(name, nfc(image.stem)) for name in image_names} - {None}:
            by_stem.setdefault(stem, []).append(image)

    def find(line: str) -> list[Path]:
        *folders, name = _parts(line) or [""]
        stem = PurePath(name).stem if PurePath(name).suffix.lower() in EXTENSIONS else name
        found = by_name.get(name) or by_stem.get(stem, [])
        found = [image for image in found if not folders or _parts(str(image.parent))[-len(folders) :] == folders]
        return [image for image in found if nfc(image.stem) == stem] or found

    return find


def _parts(path: str) -> list[str]:
    """Parts of a path with slashes of any system."""
    return [part for part in re.split(r"[/\\]", nfc(path)) if part not in ("", ".")]


def _nearest(sizes: Sequence[int], target: int) -> list[int]:
    """Indices of some, not all, `sizes` whose sum is nearest to `target`: a subset sum by dynamic programming.

    Among equal sums, earlier indices are preferred.
    """
    total = sum(sizes)
    reached_by = np.full(total + 1, -1)  # sum -> index that first reached it
    reached = np.zeros(total + 1, bool)
    reached[0] = True
    for index, size in enumerate(sizes):
        new = np.flatnonzero(reached[:-size] & ~reached[size:]) + size
        reached[new], reached_by[new] = True, index
    sums = np.flatnonzero(reached)[1:-1]
    rest = int(sums[np.abs(sums - target).argmin()])
    indices = []
    while rest:
        indices.append(int(reached_by[rest]))
        rest -= sizes[indices[-1]]
    return indices


def _names(pairs: Sequence[Pair]) -> list[str]:
    names = [pair.image.name for pair in pairs]
    if len(set(names)) == len(names):
        return names
    common = os.path.commonpath([pair.image.parent for pair in pairs])
    return [pair.image.relative_to(common).as_posix() for pair in pairs]
