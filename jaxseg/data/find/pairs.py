"""Pairs images with masks by equal stems, after removing common prefixes and suffixes such as `_mask`.

All files that do not pair up are reported at once, with the flag that would fix it if there is one.
"""

import dataclasses
import os
import re
import shlex
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from itertools import islice, product
from pathlib import Path

from jaxseg.base.config import Data
from jaxseg.base.errors import DataError
from jaxseg.data.find import annotations
from jaxseg.data.find.listing import Entry, Pair, entries, list_both, nfc

# File stems of images and masks, likelier first; `*` is the part that both share.
IMAGE_NAMES = (
    *("*", "*_image", "*_img", "*_sat", "*_rgb", "*_leftImg8bit", "*_0000", "image_*", "img_*"),
    *("*_training", "*_test"),
)


MASK_NAMES = (
    *("*", "*_mask", "*_label", "*_labels", "*_gt", "*_seg", "*_segmentation", "*_annotation", "mask_*", "*_L"),
    *("*_labelTrainIds", "*_gtFine_labelTrainIds", "label_*", "*_manual1", "*_1stHO"),
)
SECOND = {"*_1stHO": "*_2ndHO", "*_manual1": "*_manual2"}
"""Names of masks by a second annotator, which are left alone, by the names of the first one's."""


ENOUGH = 0.95  # share of images that need a mask for a naming rule to be accepted


AS_FOUND = Data()


Key = tuple[str, str]  # folder and stem that an image and its mask share


@dataclasses.dataclass(frozen=True)
class Rule:
    """Naming rule for images and masks; `*` stands for the part that both share."""

    image: str = "*"
    mask: str = "*"
    first_dot: bool = False
    """True if the image's `*` ends at the first dot of its name, as in the article."""

    def __str__(self) -> str:
        image, mask = (name.replace("*", "x") for name in (self.image, self.mask))
        return f"image {image}{'[.y]' * self.first_dot}, mask {mask}"

    def image_key(self, entry: Entry) -> Key | None:
        """Key that an image shares with its mask; None if the name does not fit the rule."""
        common = star(self.image, entry.stem.split(".")[0] if self.first_dot else entry.stem)
        return (entry.folder, common) if common else None

    def mask_key(self, entry: Entry) -> Key | None:
        """Key that a mask shares with its image; None if the name does not fit the rule."""
        common = star(self.mask, entry.stem)
        return (entry.folder, common) if common else None


@dataclasses.dataclass(frozen=True)
class Match:
    """Pairs, sorted by image path below the folder `images`, and the rule that matched them."""

    images: Path
    pairs: tuple[Pair, ...]
    rule: Rule
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """Image paths relative to `images`, with forward slashes, in the order of the pairs."""
        return [pair.image.relative_to(self.images).as_posix() for pair in self.pairs]


def find_pairs(images: Path, masks: Path, settings: Data = AS_FOUND) -> list[Pair]:
    """Finds all pairs in two folders, or in one folder that holds both, sorted by image name.

    Subfolders are searched if the two folders share a subfolder name; a mask must then lie in the same subfolder as its
    image. Dot files and other files are skipped. Uses `image_suffix` and `mask_suffix` of `settings`.
    Raises DataError listing every image without a mask, every mask without an image, and every ambiguous file.
    """
    return list(match(images, masks, settings).pairs)


def match(images: Path, masks: Path, settings: Data, only: Collection[Path] | None = None) -> Match:
    """Finds pairs as `find_pairs` does, and the rule used. With `only`, other images need no mask and are ignored."""
    image_files, mask_files, notes = list_both(images, masks)
    rule = _recognize(image_files, mask_files, settings, images == masks, only is not None)
    image_files, mask_files, left = _without_second(rule, image_files, mask_files)
    notes += left
    if only is not None:
        image_files = [entry for entry in image_files if entry.path in only]
    if images == masks and rule.mask != "*":
        image_files = [entry for entry in image_files if not rule.mask_key(entry)]
        mask_files = [entry for entry in mask_files if rule.mask_key(entry)]
    images_of, odd_images = _group(image_files, rule.image_key)
    masks_of, odd_masks = _group(mask_files, rule.mask_key)
    if odd_images and images_of and only is None and settings.image_suffix is not None:
        notes.append(f"{images}: {len(odd_images)} of {len(image_files)} images skipped, not named {rule.image}")
        odd_images = []
    missed = odd_images + [entry for key, of in images_of.items() if key not in masks_of for entry in of]
    surplus = [entry for key, of in masks_of.items() if key not in images_of for entry in of]
    surplus += odd_masks if settings.mask_suffix is None else []
    if settings.unpaired == "skip" and only is None and images_of.keys() & masks_of.keys():
        notes += _left_out(missed, surplus, images, masks)
        images_of = {key: of for key, of in images_of.items() if key in masks_of}
        masks_of = {key: of for key, of in masks_of.items() if key in images_of}
        missed, surplus = [], []
    problems = _missed(missed, surplus, masks, rule) + _clashes(images_of, masks_of)
    problems += _surplus(surplus, images_of, masks_of, settings.mask_suffix) if only is None else []
    if problems:
        counts = f"{len(image_files)} images in {images} have no mask ({len(mask_files)} masks in {masks}):"
        clash = f"{len(image_files)} images in {images} and {len(mask_files)} masks in {masks} do not pair up:"
        headline = f"{len(missed)} of {counts}" if missed else clash
        advice = [*annotations.found_in((masks, images), settings.data), _advice(image_files, mask_files, rule)]
        unpaired = missed or surplus
        if unpaired and only is None and len(images_of.keys() & masks_of.keys()) >= len(unpaired):
            advice.append("--unpaired skip leaves out files that do not pair up.")
        raise DataError(headline, problems, "\n".join(advice))
    pairs = [Pair(of[0].path, masks_of[key][0].path) for key, of in images_of.items()]
    return Match(images, tuple(pairs), rule, tuple(notes))


def _without_second(rule: Rule, images: list[Entry], masks: list[Entry]) -> tuple[list[Entry], list[Entry], list[str]]:
    """Images and masks without those of a second annotator, and a note on these."""
    name = SECOND.get(rule.mask)
    second = {entry.path for entry in masks if name and star(name, entry.stem)}
    if not second:
        return images, masks, []
    note = f"{len(second)} masks named {name} left alone: a second annotator's; {rule.mask} are used"
    return [e for e in images if e.path not in second], [e for e in masks if e.path not in second], [note]


def _left_out(missed: Sequence[Entry], surplus: Sequence[Entry], images: Path, masks: Path) -> list[str]:
    """Notes on files that `--unpaired skip` leaves out."""
    notes = []
    for files, folder, what in (
        (missed, images, "without a mask"),
        (surplus, masks, "that are masks without an image"),
    ):
        if files:
            few = ", ".join(entry.path.name for entry in files[:5]) + ", ..." * (len(files) > 5)
            notes.append(f"{folder}: {len(files)} files {what} left out (--unpaired skip): {few}")
    return notes


def share_paired(images: Path, masks: Path) -> float:
    """Share of the first 1000 images directly in a folder that have a mask directly in another one, 0 to 1."""
    of_images, of_masks = (
        list(islice(entries(folder, deep=False), most)) for folder, most in ((images, 1000), (masks, None))
    )
    _, found = _best(_rules(AS_FOUND, one_folder=False), of_images, of_masks)
    return found / max(1, len(of_images))


def holds_both(folder: Path) -> bool:
    """True if a folder holds images and masks together: half or more of the first 1000 images have a mask in it."""
    files = list(islice(entries(folder, most=200), 2000))  # bounded, since the folder may be huge
    _, found = _best(_rules(AS_FOUND, one_folder=True), files, files)
    return found > 0 and 4 * found >= len(files)


def star(name: str, stem: str) -> str | None:
    """Text that `*` stands for if `stem` matches `name`, such as "*_mask"; else None."""
    prefix, _, suffix = name.partition("*")
    fits = stem.startswith(prefix) and stem.endswith(suffix) and len(stem) > len(prefix) + len(suffix)
    return stem[len(prefix) : len(stem) - len(suffix)] if fits else None


def _group(files: Sequence[Entry], key_of: Callable[[Entry], Key | None]) -> tuple[dict[Key, list[Entry]], list[Entry]]:
    """Groups files by key, in order; also returns the files without one."""
    grouped: dict[Key, list[Entry]] = {}
    odd = []
    for entry in files:
        key = key_of(entry)
        (odd if key is None else grouped.setdefault(key, [])).append(entry)
    return grouped, odd


def _rules(settings: Data, one_folder: bool) -> list[Rule]:
    """Candidate rules, likelier first."""
    given = _given(settings)
    images = IMAGE_NAMES if settings.image_suffix is None else (given.image,)
    masks = MASK_NAMES if settings.mask_suffix is None else (given.mask,)
    rules = [Rule(image, mask) for image, mask in product(images, masks)]
    if "*" in images and "*_mask" in masks:
        rules.append(Rule("*", "*_mask", first_dot=True))
    return [rule for rule in rules if not (one_folder and rule.mask in ("*", rule.image))]


def _given(settings: Data) -> Rule:
    """Rule of equal stems after the suffixes in the settings."""
    return Rule(nfc("*" + (settings.image_suffix or "")), nfc("*" + (settings.mask_suffix or "")))


def _recognize(images: Sequence[Entry], masks: Sequence[Entry], settings: Data, one_folder: bool, some: bool) -> Rule:
    """Known rule that gives the most images a mask, if it covers nearly all; else the rule in the settings.

    With `some`, not all images need a mask: covering nearly all masks is enough too.
    """
    best, found = _best(_rules(settings, one_folder), images, masks)
    needed = ENOUGH * (min(len(images), len(masks)) if some else len(images))
    return best if found and (one_folder or found >= needed) else _given(settings)


def _best(rules: Sequence[Rule], images: Sequence[Entry], masks: Sequence[Entry]) -> tuple[Rule, int]:
    """First rule that gives the most images a mask, and how many it gives one."""
    image_keys = {(rule.image, rule.first_dot): rule for rule in rules}
    image_keys = {name: {rule.image_key(entry) for entry in images} - {None} for name, rule in image_keys.items()}
    mask_keys = {rule.mask: rule for rule in rules}
    mask_keys = {name: {rule.mask_key(entry) for entry in masks} - {None} for name, rule in mask_keys.items()}
    counts = [len(image_keys[rule.image, rule.first_dot] & mask_keys[rule.mask]) for rule in rules]
    most = max(counts, default=0)
    return (rules[counts.index(most)], most) if most else (Rule(), 0)


def _missed(missed: Sequence[Entry], surplus: Sequence[Entry], masks: Path, rule: Rule) -> list[str]:
    """One line per image without a mask."""
    folded = {(entry.folder, entry.stem.casefold()): entry.path.name for entry in surplus}
    lines = []
    for entry in missed:
        if (key := rule.image_key(entry)) is None:
            lines.append(f"{entry.path}: has no mask, because it is not named {rule.image}")
            continue
        stem = rule.mask.replace("*", key[1])
        other = folded.get((entry.folder, stem.casefold()))
        hint = f"; {other} differs in upper and lower case" if other else ""
        lines.append(f"{entry.path}: has no mask, expected {masks / entry.folder / stem}.*{hint}")
    return lines


def _clashes(images_of: dict[Key, list[Entry]], masks_of: dict[Key, list[Entry]]) -> list[str]:
    """One line per duplicate image or mask of a key, and per file that would be its own mask."""
    lines = []
    for key in images_of.keys() & masks_of.keys():
        (image, *images), (mask, *masks) = images_of[key], masks_of[key]
        lines += [f"{e.path}: has the same mask as {image.path.name} ({mask.path.name})" for e in images]
        lines += [f"{e.path}: may be the mask of {image.path.name}, but so may {mask.path.name}" for e in masks]
        if image.path == mask.path:
            lines.append(f"{image.path}: would be its own mask; images and masks must be different files")
        elif os.path.samefile(image.path, mask.path):
            lines.append(f"{mask.path}: is the same file as its image {image.path}")
    return sorted(lines)


def _surplus(
    surplus: Sequence[Entry],
    images_of: dict[Key, list[Entry]],
    masks_of: dict[Key, list[Entry]],
    mask_suffix: str | None,
) -> list[str]:
    """One line per mask without an image, and per second mask unless `mask_suffix` settles which is meant."""
    lines = []
    for entry in surplus:
        keys = (Rule(mask=name).mask_key(entry) for name in MASK_NAMES)
        key = next((key for key in keys if key in images_of and key in masks_of), None)
        if key is None:
            lines.append(f"{entry.path}: is a mask without an image")
        elif mask_suffix is None:
            image, mask = images_of[key][0].path.name, masks_of[key][0].path.name
            lines.append(f"{entry.path}: may be the mask of {image}, but so may {mask}")
    return lines


def _advice(images: Sequence[Entry], masks: Sequence[Entry], rule: Rule) -> str:
    """Explains how names were compared, or suggests suffix flags that would pair more images."""
    fix = f"Names are compared as {rule}; change this with --image-suffix and --mask-suffix. Or fix the names, remove "
    fix += "what does not belong, or list what to use in --train-list and --val-list."
    endings = [("", *_endings(files)) for files in (images, masks)]
    rules = [Rule("*" + image, "*" + mask) for image, mask in product(*endings)]
    if images == masks:
        rules = [other for other in rules if other.mask not in ("*", other.image)]
    _, now = _best([rule], images, masks)
    best, found = _best(rules, images, masks)
    if found <= now:
        return fix
    suffixes = {"image": best.image[1:], "mask": best.mask[1:]}
    ends = [f'{found} {kind}s end in "{suffix}"' for kind, suffix in suffixes.items() if suffix]
    flags = [_flag(kind, suffix) for kind, suffix in suffixes.items() if suffix]
    if not flags:
        return f"{found} images and masks have equal stems: leave --image-suffix and --mask-suffix out."
    alike = [
        other.mask[1:] for other in rules if other.image == best.image and _best([other], images, masks)[1] == found
    ]
    return f"{', '.join(ends)}: try {' '.join(flags)}" + (f" (or {', '.join(alike[1:])})" if alike[1:] else "")


def _endings(files: Sequence[Entry]) -> list[str]:
    """Endings of stems, from a separator on, that a tenth of the files or more share; at most 20."""
    counts = Counter(e.stem[found.start() :] for e in files for found in re.finditer(r"(?<!^)[-_. ]", e.stem))
    return [ending for ending, count in counts.most_common(20) if count >= len(files) / 10]


def _flag(kind: str, suffix: str) -> str:
    """`--mask-suffix _label`, quoted for a shell."""
    return f"--{kind}-suffix{'=' if suffix.startswith('-') else ' '}{shlex.quote(suffix)}"
