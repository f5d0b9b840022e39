"""Where images are, where their masks go, and how commands are told of both."""

import contextlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from jaxseg.base.errors import DataError
from jaxseg.data.find.layouts import WORDS, recognize
from jaxseg.data.find.listing import list_images, nfc


class Images:
    """Image files below a folder, found by path or by name."""

    def __init__(self, root: Path):
        self.root = root
        self.files = [f for f in list_images(root, recursive=True) if "masks" not in f.relative_to(root).parts]
        self.by_name: dict[str, list[Path]] = {}
        for file in self.files:
            for key in {nfc(file.name), nfc(file.stem)}:
                self.by_name.setdefault(key, []).append(file)

    def find(self, name: str, near: Path) -> list[Path]:
        """Images that `name` in an annotation file in folder `near` may mean."""
        if (near / name).is_file():
            return [near / name]
        parts = name.replace("\\", "/").split("/")
        found = self.by_name.get(nfc(parts[-1]), [])
        ending = [file for file in found if file.as_posix().endswith("/" + "/".join(parts))]
        found = ending or found
        beside = [file for file in found if near in file.parents or file.parent.parent == near.parent]
        return beside if len(found) > 1 and beside else found


def mask_path(image: Path, root: Path, out: Path | None) -> Path:
    """Path of an image's mask: in `out`, or else in masks/ beside its folder images/, or else in masks/ of `root`."""
    parts = list(image.relative_to(root).with_suffix(".png").parts)
    at = next((i for i, part in enumerate(parts[:-1]) if part.casefold() in WORDS["images"].split("|")), None)
    if out is not None:
        return out.joinpath(*(part for i, part in enumerate(parts) if i != at))
    if at is None:
        return root.joinpath("masks", *parts)
    return root.joinpath(*parts[:at], "masks", *parts[at + 1 :])


def common(files: Iterable[Path]) -> Path:
    """Folder that all files lie in or below."""
    return Path(os.path.commonpath([file.parent for file in files]))


def where(files: Sequence[tuple[Path, Path]], root: Path) -> list[str | Path]:
    """Arguments that name images and masks for other commands: `root` if it has a known layout, else flags.

    - `files`: each image and its mask
    """
    folders = sorted({(image.parent, mask.parent) for image, mask in files})
    with contextlib.suppress(DataError):
        if set(recognize(root).sources) <= set(folders):
            return [root]
    sides = {split: [of for of in folders if is_split(of[0], root, split)] for split in ("train", "val")}
    if len(sides["train"]) == len(sides["val"]) == 1:
        names = ("--images", "--masks", "--val-images", "--val-masks")
        return [word for pair in zip(names, (*sides["train"][0], *sides["val"][0])) for word in pair]
    images, masks = (common(column) for column in zip(*files))
    return ["--images", images, "--masks", masks]


def is_split(folder: Path, root: Path, split: str) -> bool:
    """True if a folder below `root`, or one above it there, is named as one of training or of validation."""
    return any(part.casefold() in WORDS[split].split("|") for part in folder.relative_to(root).parts)
