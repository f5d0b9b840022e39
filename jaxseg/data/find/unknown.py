"""Says what a folder of no known layout holds, and how it may be used."""

import shlex
from collections.abc import Callable, Iterator
from itertools import islice, permutations
from pathlib import Path

from jaxseg.base.errors import DataError
from jaxseg.data.find import annotations
from jaxseg.data.find.listing import contents, entries, subfolders
from jaxseg.data.find.pairs import ENOUGH, share_paired

DEPTH = 3  # levels of folders that are looked into
MOST_FOLDERS = 60
SOUND_LIKE_MASKS = ("mask", "label", "truth", "gt", "annot", "seg", "manual", "target")


def unknown(root: Path, is_test: bool, looked_for: str, fits: Callable[[Path], bool]) -> DataError:
    """Returns the error for a folder of no known layout, with what it holds and the flags that may be meant.

    - `is_test`: true if it holds test images with masks
    - `looked_for`: known layouts
    - `fits`: true if a folder has a known layout
    """
    folders = list(islice(below(root), MOST_FOLDERS))
    found = [f"{folder}: {what}" for folder in sorted(folders) if (what := contents(folder)) != "no files"]
    advice = [f"Did you mean --data {shlex.quote(str(folder))} ?" for folder in folders[1:] if fits(folder)]
    advice += [] if advice else [f"Did you mean {flags} ?" for flags in proposals(folders)]
    advice += annotations.found_in(folders, root)
    if is_test:
        advice.append("It holds test images with masks: python -m jaxseg.evaluate RUN FOLDER --split test")
    headline = f"--data {root}: no known layout fits. Found:"
    return DataError(headline, found or [f"{root}: empty"], "\n".join([*advice[:8], looked_for]))


def below(root: Path) -> Iterator[Path]:
    """Yields `root` and the folders up to DEPTH levels below it, the nearest first."""
    level = [root]
    for _ in range(DEPTH + 1):
        yield from level
        level = [sub for folder in level for sub in subfolders(folder)]


def proposals(folders: list[Path]) -> Iterator[str]:
    """Yields `--images A --masks B` for folders with pictures of equal names."""
    pictures = {folder: size for folder in folders if (size := mean_size(folder)) is not None}
    for images, masks in permutations(pictures, 2):
        named = [any(word in folder.name.casefold() for word in SOUND_LIKE_MASKS) for folder in (images, masks)]
        smaller = pictures[masks] <= pictures[images] and (images < masks or pictures[masks] < pictures[images])
        is_masks = named[1] if named[0] != named[1] else smaller
        if is_masks and share_paired(images, masks) >= ENOUGH:
            yield f"--images {shlex.quote(str(images))} --masks {shlex.quote(str(masks))}"


def mean_size(folder: Path) -> float | None:
    """Mean size in bytes of the first ten pictures directly in a folder; None if there are none. Masks are small."""
    sizes = [entry.path.stat().st_size for entry in islice(entries(folder, deep=False), 10) if entry.path.exists()]
    return sum(sizes) / len(sizes) if sizes else None
