"""Pairs images with masks by equal stems, after removing common prefixes and suffixes such as `_mask`.

All files that do not pair up are reported at once, with the flag that would fix it if there is one.
"""

import dataclasses
from collections.abc import Collection, Sequence
from itertools import islice
from pathlib import Path

from jaxseg.base.config import Data
from jaxseg.base.errors import DataError
from jaxseg.data.find import annotations, mismatches
from jaxseg.data.find.listing import Entry, Pair, entries, list_both
from jaxseg.data.find.names import SECOND, Rule, best_rule, given, group, rules_of, star

ENOUGH = 0.95  # share of images that need a mask for a naming rule to be accepted


AS_FOUND = Data()


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
    images_of, odd_images = group(image_files, rule.image_key)
    masks_of, odd_masks = group(mask_files, rule.mask_key)
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
    problems = mismatches.missed(missed, surplus, masks, rule) + mismatches.clashes(images_of, masks_of)
    problems += mismatches.surplus(surplus, images_of, masks_of, settings.mask_suffix) if only is None else []
    if problems:
        counts = f"{len(image_files)} images in {images} have no mask ({len(mask_files)} masks in {masks}):"
        clash = f"{len(image_files)} images in {images} and {len(mask_files)} masks in {masks} do not pair up:"
        headline = f"{len(missed)} of {counts}" if missed else clash
        advice = annotations.found_in((masks, images), settings.data)
        advice += [] if advice and not mask_files else [mismatches.advice(image_files, mask_files, rule)]
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
    _, found = best_rule(rules_of(AS_FOUND, one_folder=False), of_images, of_masks)
    return found / max(1, len(of_images))


def holds_both(folder: Path) -> bool:
    """True if a folder holds images and masks together: half or more of the first 1000 images have a mask in it."""
    files = list(islice(entries(folder, most=200), 2000))  # bounded, since the folder may be huge
    _, found = best_rule(rules_of(AS_FOUND, one_folder=True), files, files)
    return found > 0 and 4 * found >= len(files)


def _recognize(images: Sequence[Entry], masks: Sequence[Entry], settings: Data, one_folder: bool, some: bool) -> Rule:
    """Known rule that gives the most images a mask, if it covers nearly all; else the rule in the settings.

    With `some`, not all images need a mask: covering nearly all masks is enough too.
    """
    best, found = best_rule(rules_of(settings, one_folder), images, masks)
    needed = ENOUGH * (min(len(images), len(masks)) if some else len(images))
    return best if found and (one_folder or found >= needed) else given(settings)
