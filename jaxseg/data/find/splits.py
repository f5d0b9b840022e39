"""Which pairs train and which validate: drawn from a seed, by single images or by whole groups, or read from lists."""

import dataclasses
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath

import numpy as np

from jaxseg.base.errors import DataError
from jaxseg.data.find.listing import EXTENSIONS, Pair, nfc
from jaxseg.data.find.pairs import IMAGE_NAMES, star


@dataclasses.dataclass(frozen=True)
class Split:
    """Pairs to train on and pairs to validate on, each sorted by name."""

    training: tuple[Pair, ...]
    validation: tuple[Pair, ...]
    layout: str
    """What was recognized, in a line."""
    notes: tuple[str, ...] = ()
    """Warnings, a line each."""

    @property
    def training_names(self) -> list[str]:
        """Names of the training images; paths below a common folder where names alone are not unique."""
        return _names(self.training)

    @property
    def validation_names(self) -> list[str]:
        """Names of the validation images, likewise."""
        return _names(self.validation)


def by_percent(count: int, percent: float, seed: int) -> set[int]:
    """Which of `count` pairs validate: `percent` of them, at least one, drawn without replacement.

    Raises DataError when none would be left to train on.
    """
    aside = max(1, round(count * percent / 100))
    if aside >= count:
        raise DataError(
            f"{count} image{'s are' if count > 1 else ' is'} too few to set {percent:g} percent aside for validation.",
            [],
            "Add images, or give --images, --masks, --val-images and --val-masks.",
        )
    return set(np.random.default_rng(seed).permutation(count)[:aside].tolist())


def by_group(keys: Sequence[str], percent: float, seed: int) -> set[int]:
    """Which pairs validate: whole groups (pairs of one key), in all as near to `percent` of the pairs as they can be.

    Among the choices that are as near, the seed decides. Raises DataError when there is one group only.
    """
    sizes = Counter(keys)
    if len(sizes) < 2:
        raise DataError(
            f"--group-by puts all {len(keys)} images into one group, {next(iter(sizes))!r}; two are the least.",
            [],
            "Its first (...) must be what differs between groups.",
        )
    order = [sorted(sizes)[i] for i in np.random.default_rng(seed).permutation(len(sizes))]
    chosen = {order[i] for i in _nearest([sizes[key] for key in order], max(1, round(len(keys) * percent / 100)))}
    return {index for index, key in enumerate(keys) if key in chosen}


def from_lists(lists: Sequence[Path], images: Sequence[Path], image_suffix: str | None = None) -> list[set[Path]]:
    """The images that each of `lists` names, one a line: stem or name, with or without the folders it lies in.

    Known ends of images' stems may be left out. `#` begins a comment. Raises DataError listing, with file and line,
    all that is no image, could be several, or is named twice in one or two lists.
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
            why = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
            problems.append(f"{file}: cannot be read ({why})")
            continue
        problems += [] if lines else [f"{file}: names no images"]
        for number, line in lines:
            where, found = f"{file}:{number}", find(line)
            if not found:
                problems.append(f"{where}: {line!r} is no image that is there")
            elif len(found) > 1:
                problems.append(f"{where}: {line!r} could be {found[0]} or {found[1]}")
            elif found[0] in first:
                problems.append(f"{where}: {line!r} was named before, at {first[found[0]]}")
            else:
                first[found[0]] = where
                chosen[-1].add(found[0])
    if problems:
        headline = f"{len(problems)} problems in {' and '.join(map(str, lists))}; {len(images)} images are there."
        raise DataError(headline, problems, "Expected the stem of an image a line, such as: " + images[0].stem)
    return chosen


def _lines(file: Path) -> list[tuple[int, str]]:
    """(number, text) of the lines of a list that are not empty, without comments."""
    text = file.read_text(encoding="utf-8-sig")
    lines = ((number, re.sub(r"(^|\s)#.*", "", line).strip()) for number, line in enumerate(text.splitlines(), 1))
    return [(number, line) for number, line in lines if line]


def _finder(images: Sequence[Path], image_names: Sequence[str]) -> Callable[[str], list[Path]]:
    """line of a list -> the images that it may mean."""
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
    """Parts of a path of any system."""
    return [part for part in re.split(r"[/\\]", nfc(path)) if part not in ("", ".")]


def _nearest(sizes: Sequence[int], target: int) -> list[int]:
    """Indices of some but not all of `sizes` whose sum is as near to `target` as such sums can be.

    Of equal sums the one with the earlier indices.
    """
    total = sum(sizes)
    reached_by = np.full(total + 1, -1)  # sum -> the index that first reached it
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
