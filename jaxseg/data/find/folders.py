"""Finds the training and validation pairs in the folders that the settings name."""

import dataclasses
import os
from collections.abc import Collection
from pathlib import Path

from jaxseg.base.config import Data
from jaxseg.base.errors import DataError, UserError
from jaxseg.data.find import blocks, scenes
from jaxseg.data.find.ground import read_ground
from jaxseg.data.find.layouts import Place, recognize
from jaxseg.data.find.listing import list_both
from jaxseg.data.find.pairs import Match, find_pairs, match
from jaxseg.data.find.splits import Split, by_group, by_percent, from_lists

__all__ = ["Split", "find_pairs", "find_split"]

AUTO = "auto"
"""Value of --group-by for a split by blocks on the ground."""


def find_split(settings: Data, seed: int, *, all_train: bool = False) -> Split:
    """Finds training and validation pairs in the folders that flags name, or in a known layout below `--data`.

    The validation set comes from the first of these that is there:

    - `--train-list` and `--val-list`, or Pascal VOC's lists;
    - validation folders, without `--train-list`;
    - a random draw with `seed` of `--validation` percent of the pairs, or of those that `--train-list` names, in whole
      groups if `--group-by` is given. With `auto`, groups are blocks on the ground, and tiles between training and
      validation are left out.

    With `all_train` a single pair is enough; it is for training.

    Raises UserError for flags that do not go together. Raises DataError listing every folder, image, mask and list line
    that is missing, ambiguous, or on both sides.
    """
    place = _place(settings)
    lists = _lists(settings) or place.lists or ()
    if len(lists) == 1 and place.validation:
        unused = f"{place.validation[0]}: not used, since --train-list alone draws the validation set from its list"
        place = dataclasses.replace(place, validation=None, notes=(*place.notes, unused))
    chosen = from_lists(lists, _images(place), settings.image_suffix) if lists else None
    matches = _matches(place, settings, set().union(*chosen) if chosen else None)
    pairs = [pair for found in matches for pair in found.pairs]
    names = [name for found in matches for name in found.names]
    notes = [*place.notes, *(note for found in matches for note in found.notes)]

    left_out: set[int] = set()
    of_list = f" of {lists[0].name}" if len(lists) == 1 else ""
    if len(lists) == 2:
        how = f"split by {lists[0].name} and {lists[1].name}"
        validation = {index for index, pair in enumerate(pairs) if pair.image in chosen[1]}
    elif place.validation:
        how = "validation set as given"
        validation = set(range(len(matches[0].pairs), len(pairs)))
        _check_disjoint(*matches)
    elif settings.group_by == AUTO:
        drawn = blocks.of_files([pair.image for pair in pairs], settings.validation, seed)
        how, validation, left_out = f"{drawn}{of_list}", drawn.validation, drawn.gap
    elif settings.group_by is not None:
        keys = scenes.groups(names, settings.group_by)
        validation = by_group(keys, settings.validation, seed)
        drawn = f"{len({keys[index] for index in validation})} of {len(set(keys))} groups of '{settings.group_by}'"
        how = f"{drawn} drawn{of_list} for validation, {100 * len(validation) / len(pairs):.3g} percent of the pairs"
    else:
        validation = by_percent(len(pairs), settings.validation, seed, all_train)
        how = f"{settings.validation:g} percent{of_list} drawn for validation"
        if read_ground(pairs[0].image) is None:  # else `check` compares the ground itself
            notes += scenes.leak(names, validation, matches[0].rule.image.partition("*")[2])
    training = [index for index in range(len(pairs)) if index not in validation | left_out]
    if settings.group_by not in (None, AUTO):
        notes += scenes.shared([names[i] for i in training], [names[i] for i in sorted(validation)], settings.group_by)
    rules = " or ".join(dict.fromkeys(str(found.rule) for found in matches if found.pairs))
    return Split(
        tuple(pairs[index] for index in training),
        tuple(pairs[index] for index in sorted(validation)),
        f"{place}; {rules}; {how}",
        tuple(dict.fromkeys(notes)),
    )


def _place(settings: Data) -> Place:
    if settings.images is not None:
        validation = (settings.val_images, settings.val_masks) if settings.val_images is not None else None
        return Place("folders as named", (settings.images, settings.masks), validation)
    if settings.data is None:
        raise UserError("No data: give --data, or --images and --masks.")
    return recognize(settings.data)


def _lists(settings: Data) -> tuple[Path, ...]:
    """Lists that flags name: of training and of validation, or of training alone; () if none."""
    if settings.train_list is None and settings.val_list is not None:
        raise UserError("--val-list needs --train-list, which names the training images")
    return tuple(file for file in (settings.train_list, settings.val_list) if file is not None)


def _images(place: Place) -> list[Path]:
    return [entry.path for images, masks in place.sources for entry in list_both(images, masks)[0]]


def _matches(place: Place, settings: Data, only: Collection[Path] | None) -> list[Match]:
    """Matches every pair of folders; all their problems are raised as one DataError."""
    if settings.mask_suffix is None:
        settings = dataclasses.replace(settings, mask_suffix=place.mask_suffix)
    found, errors = [], []
    for images, masks in place.sources:
        try:
            found.append(match(images, masks, settings, only))
        except DataError as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        headline, advice = ("\n".join(dict.fromkeys(texts)) for texts in zip(*((e.headline, e.advice) for e in errors)))
        raise DataError(headline, [problem for error in errors for problem in error.problems], advice)
    return found


def _check_disjoint(training: Match, validation: Match) -> None:
    trains = {os.path.realpath(pair.image) for pair in training.pairs}
    if both := [pair.image for pair in validation.pairs if os.path.realpath(pair.image) in trains]:
        headline = f"{len(both)} of {len(validation.pairs)} validation images are also training images:"
        raise DataError(headline, [f"{image}: is on both sides" for image in both], "Validate on other images.")
