"""Rules by which names of images and masks belong together."""

import dataclasses
from collections.abc import Callable, Sequence
from itertools import product

from jaxseg.base.config import Data
from jaxseg.data.find.listing import Entry, nfc

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


def star(name: str, stem: str) -> str | None:
    """Text that `*` stands for if `stem` matches `name`, such as "*_mask"; else None."""
    prefix, _, suffix = name.partition("*")
    fits = stem.startswith(prefix) and stem.endswith(suffix) and len(stem) > len(prefix) + len(suffix)
    return stem[len(prefix) : len(stem) - len(suffix)] if fits else None


def group(files: Sequence[Entry], key_of: Callable[[Entry], Key | None]) -> tuple[dict[Key, list[Entry]], list[Entry]]:
    """Groups files by key, in order; also returns the files without one."""
    grouped: dict[Key, list[Entry]] = {}
    odd = []
    for entry in files:
        key = key_of(entry)
        (odd if key is None else grouped.setdefault(key, [])).append(entry)
    return grouped, odd


def rules_of(settings: Data, one_folder: bool) -> list[Rule]:
    """Candidate rules, likelier first."""
    fixed = given(settings)
    images = IMAGE_NAMES if settings.image_suffix is None else (fixed.image,)
    masks = MASK_NAMES if settings.mask_suffix is None else (fixed.mask,)
    rules = [Rule(image, mask) for image, mask in product(images, masks)]
    if "*" in images and "*_mask" in masks:
        rules.append(Rule("*", "*_mask", first_dot=True))
    return [rule for rule in rules if not (one_folder and rule.mask in ("*", rule.image))]


def given(settings: Data) -> Rule:
    """Rule of equal stems after the suffixes in the settings."""
    return Rule(nfc("*" + (settings.image_suffix or "")), nfc("*" + (settings.mask_suffix or "")))


def best_rule(rules: Sequence[Rule], images: Sequence[Entry], masks: Sequence[Entry]) -> tuple[Rule, int]:
    """First rule that gives the most images a mask, and how many it gives one."""
    image_keys = {(rule.image, rule.first_dot): rule for rule in rules}
    image_keys = {name: {rule.image_key(entry) for entry in images} - {None} for name, rule in image_keys.items()}
    mask_keys = {rule.mask: rule for rule in rules}
    mask_keys = {name: {rule.mask_key(entry) for entry in masks} - {None} for name, rule in mask_keys.items()}
    counts = [len(image_keys[rule.image, rule.first_dot] & mask_keys[rule.mask]) for rule in rules]
    most = max(counts, default=0)
    return (rules[counts.index(most)], most) if most else (Rule(), 0)
