"""Lists the image files of a folder and its subfolders."""

import dataclasses
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NoReturn

from jaxseg.base.errors import DataError, problem
from jaxseg.base.files import is_utf8

EXTENSIONS = frozenset(
    {".png", ".jpg", ".jpeg", ".jp2", ".bmp", ".tif", ".tiff", ".webp", ".pbm", ".pgm", ".ppm", ".gif", ".npy"}
)


LEFT_ALONE = frozenset({"test", "testing", "imagests"})  # test folders, which are skipped
TEST_MASKS = frozenset({"ltest", "testannot", "test_labels", "test_masks", "labelsts"})  # folders of test masks


@dataclasses.dataclass(frozen=True, order=True)
class Pair:
    """Paths of one sample's image and mask."""

    image: Path
    mask: Path


@dataclasses.dataclass(frozen=True)
class Entry:
    """Image file, its folder relative to the listed one, and its stem.

    Folder and stem are in Unicode form NFC, since macOS stores accents apart from their letters.
    """

    path: Path
    folder: str
    stem: str


def list_both(images: Path, masks: Path) -> tuple[list[Entry], list[Entry], list[str]]:
    """Lists image files, mask files, and notes on skipped subfolders. Files are sorted by relative path.

    Subfolders are searched if the two folders share a subfolder name. Raises DataError for a missing folder, a folder
    without images, broken symbolic links, and names that are not UTF-8.
    """
    roots = list(dict.fromkeys((images, masks)))
    why = {root: "not a folder" if root.exists() else "no such folder" for root in roots if not root.is_dir()}
    if why:
        raise DataError("Cannot read the tiles.", [f"{root}: {reason}" for root, reason in why.items()])
    deep = bool(_names(images) & _names(masks))
    if broken := [link for root in roots for here in tree(root, deep) for link in _broken_links(here)]:
        problems = [f"{link}: is a broken link" for link in broken]
        fetch = "Fetch the files (git annex get, dvc pull) or fix the links."
        raise DataError("Cannot read the tiles.", problems, fetch)
    notes = left_alone(images)
    for root, other in zip(roots, reversed(roots)) if not deep else ():
        for sub in subfolders(root):
            if sub.name.casefold() not in LEFT_ALONE and (count := sum(1 for _ in entries(sub))):
                notes.append(f"{sub}: its {count} images are skipped because {other} has no folder of that name")
    found = {root: sorted(entries(root, deep), key=_path_below) for root in roots}
    if odd := [entry.path for root in roots for entry in found[root] if not is_utf8(entry.path.relative_to(root))]:
        advice = "Rename them; convmv -f latin1 -t utf8 -r --notest FOLDER does it for names in Latin-1."
        raise DataError("Cannot read the tiles.", [f"{path}: its name is not UTF-8" for path in odd], advice)
    if not found[images]:
        held, known = contents(images), f"Known extensions: {' '.join(sorted(EXTENSIONS))}"
        if held == "no files":
            advice = "Fill it; or remove a validation set that is empty, so that a part of training is drawn for it."
            raise DataError(f"{images}: is empty; expected images.", notes, advice)
        raise DataError(f"{images}: no images in it, but {held}.", notes, known)
    return found[images], found[masks], notes


def list_images(folder: Path, recursive: bool = False) -> list[Path]:
    """Lists the image files of a folder, sorted, without dot files; with `recursive` also those of its subfolders.

    Raises DataError if a folder cannot be read.
    """
    try:
        files = _walk(folder) if recursive else folder.iterdir()
        return sorted(
            file
            for file in files
            if file.suffix.lower() in EXTENSIONS and not file.name.startswith(".") and file.is_file()
        )
    except OSError as error:
        raise problem(Path(error.filename or folder), f"cannot be listed ({error.strerror or error})") from None


def entries(folder: Path, deep: bool = True, most: int | None = None) -> Iterator[Entry]:
    """Yields the image files in the folders of `tree`; with `most`, in its first `most` folders only."""
    for here in islice(tree(folder, deep), most):
        below = nfc(here.relative_to(folder).as_posix())
        yield from (Entry(file, below, nfc(file.stem)) for file in list_images(here))


def tree(folder: Path, deep: bool = True) -> Iterator[Path]:
    """Yields `folder` and, if `deep`, every folder below it except those in LEFT_ALONE.

    Follows symbolic links; each folder comes once.
    """
    seen, waiting = set(), [folder]
    while waiting:
        here = waiting.pop()
        if (real := os.path.realpath(here)) in seen:
            continue
        seen.add(real)
        if deep:
            waiting += [sub for sub in reversed(subfolders(here)) if sub.name.casefold() not in LEFT_ALONE]
        yield here


def subfolders(folder: Path) -> list[Path]:
    """Visible subfolders of `folder`, sorted by name. Raises DataError if it cannot be opened."""
    found = (entry for entry in _scan(folder) if entry.name != "__MACOSX")
    # DirEntry.is_dir needs no disk access, but raises for a link to itself.
    names = sorted(e.name for e in found if (os.path.isdir(e.path) if e.is_symlink() else e.is_dir()))
    return [folder / name for name in names]


def left_alone(folder: Path) -> list[str]:
    """Notes on skipped subfolders of test images, one each."""
    test = [sub for sub in subfolders(folder) if sub.name.casefold() in LEFT_ALONE]
    return [f"{sub}: skipped; test images are used for neither training nor validation" for sub in test]


def contents(folder: Path) -> str:
    """Counts the files directly in `folder` by kind, as text: "384 images, 2 of .json"."""
    ends = [Path(entry.name).suffix.lower() for entry in _scan(folder) if os.path.isfile(entry.path)]
    kinds = Counter("images" if end in EXTENSIONS else f"of {end or 'no extension'}" for end in ends)
    return ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(3)) or "no files"


def nfc(text: str) -> str:
    """Normalizes `text` to Unicode form NFC, in which equal names compare equal."""
    return unicodedata.normalize("NFC", text)


def _path_below(entry: Entry) -> list[str]:
    return [*([] if entry.folder == "." else entry.folder.split("/")), entry.path.name]


def _names(folder: Path) -> set[str]:
    return {nfc(sub.name) for sub in subfolders(folder) if sub.name.casefold() not in LEFT_ALONE}


def _broken_links(folder: Path) -> list[Path]:
    links = (entry.name for entry in _scan(folder) if entry.is_symlink() and not os.path.exists(entry.path))
    return [folder / name for name in sorted(links) if Path(name).suffix.lower() in EXTENSIONS]


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    """Visible entries of a folder."""
    try:
        with os.scandir(folder) as found:
            return [entry for entry in found if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError("Cannot read the tiles.", [f"{folder}: cannot be opened ({error.strerror})"]) from None


def _walk(folder: Path) -> Iterator[Path]:
    """Yields files in and below `folder`. Follows symbolic links, but enters each folder once, since links may loop."""
    seen = {os.path.realpath(folder)}

    def fail(error: OSError) -> NoReturn:
        raise error

    for parent, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        real = {name: os.path.realpath(os.path.join(parent, name)) for name in sorted(folders) if name[0] != "."}
        folders[:] = [name for name, path in real.items() if path not in seen]
        seen.update(real.values())
        yield from (Path(parent, name) for name in names)
