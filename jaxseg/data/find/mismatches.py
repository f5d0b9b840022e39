"""Says which images and masks do not pair up, and which flags would pair them."""

import os
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from jaxseg.data.find.listing import Entry
from jaxseg.data.find.names import MASK_NAMES, Key, Rule, best_rule


def missed(missed: Sequence[Entry], surplus: Sequence[Entry], masks: Path, rule: Rule) -> list[str]:
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


def clashes(images_of: dict[Key, list[Entry]], masks_of: dict[Key, list[Entry]]) -> list[str]:
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


def surplus(
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


def advice(images: Sequence[Entry], masks: Sequence[Entry], rule: Rule) -> str:
    """Explains how names were compared, or suggests suffix flags that would pair more images."""
    fix = f"Names are compared as {rule}; change this with --image-suffix and --mask-suffix. Or fix the names, remove "
    fix += "what does not belong, or list what to use in --train-list and --val-list."
    endings = [("", *_endings(files)) for files in (images, masks)]
    rules = [Rule("*" + image, "*" + mask) for image, mask in product(*endings)]
    if images == masks:
        rules = [other for other in rules if other.mask not in ("*", other.image)]
    _, now = best_rule([rule], images, masks)
    best, found = best_rule(rules, images, masks)
    if found <= now:
        return fix
    suffixes = {"image": best.image[1:], "mask": best.mask[1:]}
    ends = [f'{found} {kind}s end in "{suffix}"' for kind, suffix in suffixes.items() if suffix]
    flags = [_flag(kind, suffix) for kind, suffix in suffixes.items() if suffix]
    if not flags:
        return f"{found} images and masks have equal stems: leave --image-suffix and --mask-suffix out."
    alike = [
        other.mask[1:] for other in rules if other.image == best.image and best_rule([other], images, masks)[1] == found
    ]
    return f"{', '.join(ends)}: try {' '.join(flags)}" + (f" (or {', '.join(alike[1:])})" if alike[1:] else "")


def _endings(files: Sequence[Entry]) -> list[str]:
    """Endings of stems, from a separator on, that a tenth of the files or more share; at most 20."""
    counts = Counter(e.stem[found.start() :] for e in files for found in re.finditer(r"(?<!^)[-_. ]", e.stem))
    return [ending for ending, count in counts.most_common(20) if count >= len(files) / 10]


def _flag(kind: str, suffix: str) -> str:
    """`--mask-suffix _label`, quoted for a shell."""
    return f"--{kind}-suffix{'=' if suffix.startswith('-') else ' '}{shlex.quote(suffix)}"
