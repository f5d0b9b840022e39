"""Which folders below `--data` hold images and masks: a table of the layouts that data sets come in."""

import dataclasses
from collections.abc import Iterator
from itertools import product
from pathlib import Path

from jaxseg.base.errors import DataError
from jaxseg.data.find.listing import contents, entries, left_alone, subfolders
from jaxseg.data.find.pairs import holds_both

Folders = tuple[Path, Path]  # of images, and of their masks

WORDS = {
    "train": "train|training",
    "val": "val|valid|validation",
    "images": "images|imgs|img|image",
    "masks": "masks|labels|mask|label|annotations|gt",
}


@dataclasses.dataclass(frozen=True)
class Layout:
    """Folders below --data: training images, their masks, and those of validation, which may be missing.

    Upper and lower case are alike; words in braces are one of WORDS, `|` stands between names of which any will do.
    `lists`: files that name the images of training and of validation. `mask_suffix`: as with --mask-suffix.
    """

    name: str
    folders: str
    lists: tuple[str, str] | None = None
    mask_suffix: str | None = None

    @property
    def sides(self) -> list[tuple[str, str]]:
        """Patterns for folders of images and of masks: of training, then of validation if there is one."""
        names = self.folders.split()
        return list(zip(names[::2], names[1::2]))

    def __str__(self) -> str:
        return " ".join(f"{_first(folder)}/" for folder in dict.fromkeys(self.folders.split()))


LAYOUTS = (
    Layout("the article's", "train Ltrain val Lval"),
    Layout("CamVid's", "{train} trainannot {val} valannot"),
    Layout("Massachusetts'", "{train} train_labels|train_masks {val} val_labels|val_masks"),
    Layout("a folder for each split", "{train}/{images} {train}/{masks} {val}/{images} {val}/{masks}"),
    Layout("splits in images and masks", "{images}/{train} {masks}/{train} {images}/{val} {masks}/{val}"),
    Layout("mmsegmentation's", "img_dir/{train} ann_dir/{train} img_dir/{val} ann_dir/{val}"),
    Layout(
        "Cityscapes'",
        "leftImg8bit/{train} gtFine/{train} leftImg8bit/{val} gtFine/{val}",
        mask_suffix="_gtFine_labelTrainIds",
    ),
    Layout("nnU-Net's", "imagesTr labelsTr"),
    Layout(
        "Pascal VOC's",
        "JPEGImages SegmentationClass",
        lists=("ImageSets/Segmentation/train.txt", "ImageSets/Segmentation/val.txt"),
    ),
    Layout("Oxford Pets'", "{images} annotations/trimaps"),
    Layout("images and masks", "{images} {masks}"),
    Layout("milesial's", "data/{images} data/{masks}"),
    Layout("DeepGlobe's, images and masks together", "{train} {train} {val} {val}"),
    Layout("images and masks together", ". ."),
)


@dataclasses.dataclass(frozen=True)
class Place:
    """A layout as it was found, or folders as flags name them."""

    name: str
    training: Folders
    validation: Folders | None = None
    lists: tuple[Path, Path] | None = None
    mask_suffix: str | None = None
    notes: tuple[str, ...] = ()
    root: Path | None = None

    def __str__(self) -> str:
        names = [folder.relative_to(self.root) if self.root else folder for folder in self.folders]
        return f"{self.name}: {' '.join(f'{name.as_posix()}/' for name in names)}"

    @property
    def folders(self) -> list[Path]:
        """All folders, once each."""
        return list(dict.fromkeys(folder for source in self.sources for folder in source))

    @property
    def sources(self) -> list[Folders]:
        """Folders of images and masks: those of training, then those of validation."""
        return [self.training, *([self.validation] if self.validation else [])]


def recognize(root: Path) -> Place:
    """The layout of folder `root`. Raises DataError when there is none, or more than one, saying what is there."""
    if not root.is_dir():
        why = "is no folder" if root.exists() else "no such folder"
        raise DataError(f"--data {root}: {why}.", [], _looked_for())
    found = list(_places(root))
    found = [(layout, place) for layout, place in found if not any(_within(other, place) for _, other in found)]
    if len(found) > 1:
        found = [(layout, place) for layout, place in found if all(map(_any_images, place.folders))] or found
    if not found:
        raise _unknown(root)
    (layout, place), *others = found
    if others:
        rows = [str(place) for _, place in found]
        advice = "Name the folders with --images, --masks, --val-images and --val-masks, or move those not meant away."
        raise DataError(f"--data {root}: more than one layout fits.", rows, advice)
    if place.validation is None and len(layout.sides) > 1:
        _check_no_half(root, layout)
    return dataclasses.replace(place, notes=tuple(_unused(root, place)))


def _places(root: Path) -> Iterator[tuple[Layout, Place]]:
    """Each way in which each layout fits."""
    for layout in LAYOUTS:
        lists = tuple(root / file for file in layout.lists or ())
        lists = lists if lists and all(file.is_file() for file in lists) else None
        training, *validation = ([*_sides(root, patterns)] for patterns in layout.sides)
        for of_training, of_validation in product(training, (validation and validation[0]) or [None]):
            yield layout, Place(layout.name, of_training, of_validation, lists, layout.mask_suffix, root=root)


def _sides(root: Path, patterns: tuple[str, str]) -> Iterator[Folders]:
    """Folders of images and of masks that fit; both have the same word for training or for validation."""
    split = "val" if "{val}" in patterns[0] else "train"
    words = WORDS[split].split("|") if f"{{{split}}}" in patterns[0] else [""]
    for word in words:
        images, masks = (_find(root, pattern, **{split: word}) for pattern in patterns)
        if patterns[0] == patterns[1]:
            yield from ((folder, folder) for folder in images if holds_both(folder))
        else:
            yield from product(images, masks)


def _find(root: Path, pattern: str, **words: str) -> list[Path]:
    """Folders below `root` called as `pattern` says, with `words` for those in braces."""
    found = [root]
    for names in pattern.format(**(WORDS | words)).casefold().split("/") if pattern != "." else ():
        found = [sub for folder in found for sub in subfolders(folder) if sub.name.casefold() in names.split("|")]
    return found


def _within(place: Place, other: Place) -> bool:
    """Whether `place` says more than `other`: each of its folders is one of the other's or lies in it."""
    pairs = list(zip(place.training, other.training))
    if place.validation and other.validation:
        pairs += zip(place.validation, other.validation)
    says_more = place.sources != other.sources and not (other.validation and not place.validation)
    return says_more and all(inner == outer or outer in inner.parents for inner, outer in pairs)


def _any_images(folder: Path) -> bool:
    return next(entries(folder), None) is not None


def _check_no_half(root: Path, layout: Layout) -> None:
    """Raises DataError if of a validation set the images are there, or the masks, but not both."""
    patterns = dict.fromkeys(layout.sides[1])
    there = [folder for pattern in patterns for folder in _find(root, pattern)]
    if missing := [root / _first(pattern) for pattern in patterns if not _find(root, pattern)] if there else []:
        raise DataError(
            f"--data {root}: half of the validation set is missing. The layout is {layout.name}: {layout}",
            [*(f"{folder}: is there" for folder in there), *(f"{folder}: no such folder" for folder in missing)],
            "Add it or rename it; or name the folders with --images, --masks, --val-images and --val-masks.",
        )


def _unused(root: Path, place: Place) -> Iterator[str]:
    """A note on each folder beside those used that is called like a set of test or of validation."""
    for folder in dict.fromkeys((root, *(images.parent for images, _ in place.sources if images != root))):
        yield from left_alone(folder)
        for sub in subfolders(folder):
            used = any(sub == other or sub in other.parents for other in place.folders)
            if sub.name.casefold() in WORDS["val"].split("|") and not used:
                yield f"{sub}: left alone; it does not hold images and masks of this layout"


def _unknown(root: Path) -> DataError:
    folders = [root, *(sub for sub in subfolders(root)), *(s for sub in subfolders(root) for s in subfolders(sub))]
    found = [f"{folder}: {what}" for folder in sorted(folders) if (what := contents(folder)) != "no files"]
    meant = [sub for sub in subfolders(root) if any(_places(sub))]
    advice = f"Did you mean --data {meant[0]} ?\n{_looked_for()}" if meant else _looked_for()
    return DataError(f"--data {root}: none of the known layouts. What is there:", found or [f"{root}: nothing"], advice)


def _looked_for() -> str:
    rows = [f"  {layout!s:<61} {layout.name}" for layout in LAYOUTS]
    words = [f"{first} may be {' or '.join(rest)}" for first, *rest in (w.split("|") for w in WORDS.values())]
    return "\n".join(
        [
            "Looked for, in upper or lower case, with or without the folders of validation:",
            *rows,
            f"({'; '.join(words)}.)",
            "Other folders can be named with --images, --masks, --val-images and --val-masks.",
        ]
    )


def _first(pattern: str) -> str:
    """The first of all folders that fit a pattern."""
    return "/".join(part.split("|")[0].strip("{}") for part in pattern.split("/"))
