"""What lies on disk: the image files of a folder and of those below it."""

import dataclasses
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NoReturn

from jaxseg.base.errors import DataError, problem

LEFT_ALONE = frozenset({"test", "testing", "imagests"})  # subfolders of images that are kept for the end


@dataclasses.dataclass(frozen=True)
class Entry:
    """An image file, its folder below the one that was listed, and its stem.

    Both are in Unicode's form NFC, whatever the disk has: macOS writes an accent apart from its letter.
    """

    path: Path
    folder: str
    stem: str


def subfolders(folder: Path) -> list[Path]:
    """Folders in `folder`, sorted by name, without hidden ones. Raises DataError when it cannot be opened."""
    found = (entry for entry in _scan(folder) if entry.name != "__MACOSX")
    # DirEntry knows without asking the disk, but raises for a link to itself
    names = sorted(e.name for e in found if (os.path.isdir(e.path) if e.is_symlink() else e.is_dir()))
    return [folder / name for name in names]


def tree(folder: Path, deep: bool = True) -> Iterator[Path]:
    """`folder` and, if `deep`, all folders below it but those named in LEFT_ALONE.

    Symbolic links are followed; a folder that is met again by one comes once.
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


def entries(folder: Path, deep: bool = True, most: int | None = None) -> Iterator[Entry]:
    """The image files of `tree`, or of the first `most` folders of it."""
    for here in islice(tree(folder, deep), most):
        below = nfc(here.relative_to(folder).as_posix())
        yield from (Entry(file, below, nfc(file.stem)) for file in list_images(here))


def list_both(images: Path, masks: Path) -> tuple[list[Entry], list[Entry], list[str]]:
    """Image files and mask files, sorted by the path below their folder, and notes on subfolders that were left out.

    Subfolders are looked into if the two folders have one in common. Raises DataError when a folder is missing, when
    there are no images, and for symbolic links to files that are not there.
    """
    roots = list(dict.fromkeys((images, masks)))
    why = {root: "is no folder" if root.exists() else "no such folder" for root in roots if not root.is_dir()}
    if why:
        raise DataError("Cannot read the tiles.", [f"{root}: {reason}" for root, reason in why.items()])
    deep = bool(_names(images) & _names(masks))
    if broken := [link for root in roots for here in tree(root, deep) for link in _broken_links(here)]:
        problems = [f"{link}: is a link to a file that is not there" for link in broken]
        fetch = "Fetch the files (git annex get, dvc pull) or mend the links."
        raise DataError("Cannot read the tiles.", problems, fetch)
    notes = left_alone(images)
    for root, other in zip(roots, reversed(roots)) if not deep else ():
        for sub in subfolders(root):
            if sub.name.casefold() not in LEFT_ALONE and (count := sum(1 for _ in entries(sub))):
                notes.append(f"{sub}: its {count} images are left out, for {other} has no folder of that name")
    found = {root: sorted(entries(root, deep), key=_path_below) for root in roots}
    if not found[images]:
        known = f"Known extensions: {' '.join(sorted(EXTENSIONS))}"
        raise DataError(f"{images}: no images in it, but {contents(images)}.", notes, known)
    return found[images], found[masks], notes


def left_alone(folder: Path) -> list[str]:
    """A note on each subfolder of test images."""
    test = [sub for sub in subfolders(folder) if sub.name.casefold() in LEFT_ALONE]
    return [f"{sub}: left alone; test images neither train nor validate" for sub in test]


def contents(folder: Path) -> str:
    """What kinds of files lie in `folder` itself, in words: "384 images, 2 of .json"."""
    ends = [Path(entry.name).suffix.lower() for entry in _scan(folder) if os.path.isfile(entry.path)]
    kinds = Counter("images" if end in EXTENSIONS else f"of {end or 'no extension'}" for end in ends)
    return ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(3)) or "no files"


def _path_below(entry: Entry) -> list[str]:
    return [*([] if entry.folder == "." else entry.folder.split("/")), entry.path.name]


def _names(folder: Path) -> set[str]:
    return {nfc(sub.name) for sub in subfolders(folder) if sub.name.casefold() not in LEFT_ALONE}


def _broken_links(folder: Path) -> list[Path]:
    links = (entry.name for entry in _scan(folder) if entry.is_symlink() and not os.path.exists(entry.path))
    return [folder / name for name in sorted(links) if Path(name).suffix.lower() in EXTENSIONS]


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder and not hidden."""
    try:
        with os.scandir(folder) as found:
            return [entry for entry in found if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError("Cannot read the tiles.", [f"{folder}: cannot be opened ({error.strerror})"]) from None


def nfc(text: str) -> str:
    """`text` in Unicode's form NFC, in which equal names are equal."""
    return unicodedata.normalize("NFC", text)


EXTENSIONS = frozenset(
    {".png", ".jpg", ".jpeg", ".jp2", ".bmp", ".tif", ".tiff", ".webp", ".pbm", ".pgm", ".ppm", ".gif"}
)


def list_images(folder: Path, recursive: bool = False) -> list[Path]:
    """The images in a folder, sorted, without dot files; with `recursive` those of its folders too, each once.

    Raises DataError when the folder cannot be read.
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


def _walk(folder: Path) -> Iterator[Path]:
    """Files in it and below, through symlinks but never twice into one folder, so that loops end."""
    seen = {os.path.realpath(folder)}

    def fail(error: OSError) -> NoReturn:
        raise error

    for parent, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        real = {name: os.path.realpath(os.path.join(parent, name)) for name in sorted(folders) if name[0] != "."}
        folders[:] = [name for name, path in real.items() if path not in seen]
        seen.update(real.values())
        yield from (Path(parent, name) for name in names)


@dataclasses.dataclass(frozen=True, order=True)
class Pair:
    """Where one sample lies."""

    image: Path
    mask: Path
