"""Recognizes the layout of a data folder: which folders below `--data` hold images and masks."""

import dataclasses
from collections.abc import Iterator
from itertools import product
from pathlib import Path

from jaxseg.base.errors import DataError
from jaxseg.data.find.listing import LEFT_ALONE, TEST_MASKS, entries, left_alone, subfolders
from jaxseg.data.find.pairs import ENOUGH, holds_both, share_paired
from jaxseg.data.find.unknown import unknown

Folders = tuple[Path, Path]  # images, masks

WORDS = {
    "train": "train|training",
    "val": "val|valid|validation",
    "test": "test|testing",
    "images": "images|imgs|img|image",
    "masks": "masks|labels|mask|label|annotations|gt",
}


@dataclasses.dataclass(frozen=True)
class Layout:
    """Known layout of a data set below `--data`.

    - `folders`: patterns, separated by spaces, for training images, training masks, validation images and validation
      masks. Case is ignored, `{word}` stands for the names in WORDS, and `|` separates alternatives. Validation may be
      missing.
    - `lists`: text files that name the training and the validation images.
    - `mask_suffix`: the value of `--mask-suffix`.
    - `spare`: folders of other pictures, which are not the masks of this task. They rule out layouts that take them.
    """

    name: str
    folders: str
    lists: tuple[str, str] | None = None
    mask_suffix: str | None = None
    spare: str = ""

    @property
    def sides(self) -> list[tuple[str, str]]:
        """(images, masks) patterns of training, then of validation if the layout has it."""
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
        spare="SegmentationObject",
    ),
    Layout("DRIVE's", "{train}/{images} {train}/1st_manual {val}/{images} {val}/1st_manual", spare="mask|2nd_manual"),
    Layout("DRIVE's or HRF's", "{images} 1st_manual|manual1", spare="mask|2nd_manual"),
    Layout("Oxford Pets'", "{images} annotations/trimaps"),
    Layout("images and masks", "{images} {masks}"),
    Layout("milesial's", "data/{images} data/{masks}"),
    Layout("DeepGlobe's, images and masks together", "{train} {train} {val} {val}"),
    Layout("images and masks together", ". ."),
)


@dataclasses.dataclass(frozen=True)
class Place:
    """Folders of a recognized layout, or the ones that flags name."""

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
        """Every folder once."""
        return list(dict.fromkeys(folder for source in self.sources for folder in source))

    @property
    def sources(self) -> list[Folders]:
        """(images, masks) folders of training, then of validation if given."""
        return [self.training, *([self.validation] if self.validation else [])]


def recognize(root: Path) -> Place:
    """Recognizes the layout of folder `root`. Raises DataError listing its contents unless one layout fits."""
    if not root.is_dir():
        why = "not a folder" if root.exists() else "no such folder"
        raise DataError(f"--data {root}: {why}.", [], _looked_for())
    found = list(_places(root))
    spare = {folder for layout, place in found for folder in _spare(layout, place)}
    found = [(layout, place) for layout, place in found if not spare.intersection(place.folders)]
    found = [(layout, place) for layout, place in found if not any(_within(other, place) for _, other in found)]
    if len(found) > 1:
        found = [(layout, place) for layout, place in found if all(map(_any_images, place.folders))] or found
    if not found:
        raise unknown(root, any(_places(root, "test")), _looked_for(), lambda folder: any(_places(folder)))
    (layout, place), *others = found
    if others:
        rows = [str(place) for _, place in found]
        advice = "Name the folders with --images, --masks, --val-images and --val-masks, or move the others away."
        raise DataError(f"--data {root}: more than one layout fits.", rows, advice)
    if place.validation is None and len(layout.sides) > 1:
        _check_no_half(root, layout)
    return dataclasses.replace(place, notes=tuple(_unused(root, layout, place)))


def recognize_test(root: Path) -> Place | None:
    """Recognizes test images with masks below `root`, named as training's are: test/ Ltest/, test/ testannot/."""
    found = [place for _, place in _places(root, "test") if all(map(_any_images, place.folders))]
    found = [place for place in found if not any(_within(other, place) for other in found)]
    return found[0] if len(found) == 1 else None


def _places(root: Path, split: str = "train") -> Iterator[tuple[Layout, Place]]:
    """Every way in which any layout fits; with `split` "test", the test folders that go with training's."""
    for layout in LAYOUTS:
        if split == "test":
            if "train" in layout.folders or "Tr" in layout.folders:
                patterns = tuple(pattern.replace("train", "test").replace("Tr", "Ts") for pattern in layout.sides[0])
                for folders in _sides(root, patterns):
                    yield layout, Place(layout.name, folders, None, None, layout.mask_suffix, root=root)
            continue
        lists = tuple(root / file for file in layout.lists or ())
        lists = lists if lists and all(file.is_file() for file in lists) else None
        training, *validation = ([*_sides(root, patterns)] for patterns in layout.sides)
        for of_training, of_validation in product(training, (validation and validation[0]) or [None]):
            yield layout, Place(layout.name, of_training, of_validation, lists, layout.mask_suffix, root=root)


def _sides(root: Path, patterns: tuple[str, str]) -> Iterator[Folders]:
    """(images, masks) folders that fit; both use the same word for the split."""
    split = next((split for split in ("train", "val", "test") if f"{{{split}}}" in patterns[0]), "train")
    words = WORDS[split].split("|") if f"{{{split}}}" in patterns[0] else [""]
    for word in words:
        images, masks = (_find(root, pattern, **{split: word}) for pattern in patterns)
        if patterns[0] == patterns[1]:
            yield from ((folder, folder) for folder in images if holds_both(folder))
        else:
            yield from product(images, masks)


def _find(root: Path, pattern: str, **words: str) -> list[Path]:
    """Folders below `root` that match `pattern`; `words` override WORDS."""
    found = [root]
    for names in pattern.format(**(WORDS | words)).casefold().split("/") if pattern != "." else ():
        found = [sub for folder in found for sub in subfolders(folder) if sub.name.casefold() in names.split("|")]
    return found


def _within(place: Place, other: Place) -> bool:
    """True if `place` is more specific: each of its folders equals one of `other` or lies in it."""
    pairs = list(zip(place.training, other.training))
    if place.validation and other.validation:
        pairs += zip(place.validation, other.validation)
    says_more = place.sources != other.sources and not (other.validation and not place.validation)
    return says_more and all(inner == outer or outer in inner.parents for inner, outer in pairs)


def _any_images(folder: Path) -> bool:
    return next(entries(folder), None) is not None


def _check_no_half(root: Path, layout: Layout) -> None:
    """Raises DataError if only one of validation images and validation masks is there."""
    patterns = dict.fromkeys(layout.sides[1])
    there = [folder for pattern in patterns for folder in _find(root, pattern)]
    if missing := [root / _first(pattern) for pattern in patterns if not _find(root, pattern)] if there else []:
        raise DataError(
            f"--data {root}: half of the validation set is missing. The layout is {layout.name}: {layout}",
            [*(f"{folder}: is there" for folder in there), *(f"{folder}: no such folder" for folder in missing)],
            "Add it or rename it; or name the folders with --images, --masks, --val-images and --val-masks.",
        )


def _spare(layout: Layout, place: Place) -> Iterator[Path]:
    """Yields the folders beside those of a place that hold other pictures."""
    for folder in {folder.parent for folder in place.folders}:
        yield from (sub for sub in subfolders(folder) if sub.name.casefold() in layout.spare.casefold().split("|"))


def _unused(root: Path, layout: Layout, place: Place) -> Iterator[str]:
    """Yields a note on each folder beside the used ones that holds pictures, or is named like a validation set."""
    known, used = set(_spare(layout, place)), {parent for of in place.folders for parent in (of, *of.parents)}
    images, masks = place.training
    beside = {folder.parent: None for folder in place.folders if folder not in (root, root.parent)}
    for folder in dict.fromkeys((root, *beside)):
        yield from left_alone(folder)
        for sub in subfolders(folder):
            name = sub.name.casefold()
            if sub in used or sub in known or name in LEFT_ALONE | TEST_MASKS:
                continue
            number = sum(1 for _ in entries(sub, deep=False)) if folder not in place.folders else 0
            if name in WORDS["val"].split("|"):
                yield f"{sub}: ignored; it does not hold images and masks of this layout"
            elif number and masks != images and share_paired(images, sub) >= ENOUGH:
                advice = f"If these are the masks, give --images {images} --masks {sub}."
                yield f"{sub}: {number} images left alone, though they pair with {images}; {masks} is used. {advice}"
            elif number:
                yield f"{sub}: {number} images left alone"


def _looked_for() -> str:
    rows = [f"  {layout!s:<61} {layout.name}" for layout in LAYOUTS]
    words = [f"{first} may be {' or '.join(rest)}" for first, *rest in (w.split("|") for w in WORDS.values())]
    return "\n".join(
        [
            "Known layouts (case is ignored, validation folders are optional):",
            *rows,
            f"({'; '.join(words)}.)",
            "To use other folders, give --images, --masks, --val-images and --val-masks.",
        ]
    )


def _first(pattern: str) -> str:
    """First folder name that fits a pattern."""
    return "/".join(part.split("|")[0].strip("{}") for part in pattern.split("/"))
