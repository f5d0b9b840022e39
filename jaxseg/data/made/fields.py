"""Writes made-up crop fields seen from the air, for use without data: `python -m jaxseg.data.made.fields ROOT`.

`landscape.py` describes them, and why they are not trivial to learn. Existing files are never overwritten.
"""

import dataclasses
import json
import os
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np

from jaxseg.base.config import Data
from jaxseg.base.errors import UserError
from jaxseg.base.terminal import console
from jaxseg.data.made.landscape import make_tile

VERSION = 1  # version of the generator: increase it when a pixel changes
RECORD = "fields.json"


def make_fields(root: Path, train: int = 64, val: int = 16, size: int = 128, seed: int = 0) -> Path:
    """Writes a data set of crop fields in the article's layout, and returns `root` as an absolute path.

    - `root`: new or empty folder, or one made earlier with the same arguments, which is left as it is.
    - `train`, `val`: number of tiles, at least 1.
    - `size`: height and width of a tile in pixels, at least 32.
    - `seed`: 0 or more; a tile depends on (seed, split, number) alone.

    Images are train/train_0000.png, uint8 color; masks are Ltrain/train_0000_mask.png, uint8, 255 for field and 0 for
    background. val/ and Lval/ are alike. Raises UserError for arguments out of range, and if `root` holds other files.
    """
    root = Path(root).absolute()
    made = {"generator": VERSION, "train": train, "val": val, "size": size, "seed": seed}
    least = {"train": 1, "val": 1, "size": 32, "seed": 0}
    if low := [
        f"{name} is {made[name]}; expected at least {least[name]}" for name in least if made[name] < least[name]
    ]:
        raise UserError("Cannot make crop fields: " + "; ".join(low))
    if root.exists() and not (root.is_dir() and not any(root.iterdir())):
        check_made(root, made)
        return root
    draft = root.with_name(f".{root.name}.{os.getpid()}")
    try:
        for number, (split, count) in enumerate((("train", train), ("val", val))):
            for index in range(count):
                image, mask = make_tile(np.random.default_rng((seed, number, index)), size)
                write_png(draft / split / f"{split}_{index:04d}.png", image)
                write_png(draft / f"L{split}" / f"{split}_{index:04d}_mask.png", mask)
        (draft / RECORD).write_text(json.dumps({"made": made, "files": contents(draft)}, indent=1) + "\n")
        if root.exists():
            root.rmdir()  # empty; Windows does not rename onto it
        draft.rename(root)
    except OSError:
        if not root.exists():
            raise
        check_made(root, made)  # another process made it first
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return root


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Writes an image, uint8 [h w 3] BGR or [h w], and creates the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())  # cv2.imwrite fails on some Windows paths


def contents(root: Path) -> list[str]:
    """Lists the files of a data set, sorted, except its record and hidden files."""
    files = (path.relative_to(root).as_posix() for path in root.rglob("[!.]*") if path.is_file())
    return sorted(file for file in files if file != RECORD)


def check_made(root: Path, made: dict[str, int]) -> None:
    """Raises UserError unless `root` holds what `make_fields` wrote for the arguments `made`, and no other files."""
    advice = "Choose another folder, or move this one away."
    try:
        record = json.loads((root / RECORD).read_text())
        found, files = record["made"], set(record["files"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{root} exists and was not made by jaxseg: it has no readable {RECORD}. {advice}") from None
    if found != made:
        raise UserError(f"{root} holds other crop fields: found {found}, expected {made}. {advice}")
    missing, unknown = sorted(files - set(contents(root))), sorted(set(contents(root)) - files)
    if missing or unknown:
        raise UserError(f"{root} was changed after it was made: missing {missing}, unknown {unknown}. {advice}")


def given_or_made_up(data: Data) -> Data:
    """Returns the data settings; if they name no data, makes up fields in data/made-up-fields and names those."""
    if data.data is not None or data.images is not None:
        return data
    data = dataclasses.replace(data, data=Path("data") / "made-up-fields")
    make_fields(data.data, train=48, val=12, size=112)
    console.print(f"data  none given, so made-up crop fields in {data.data}")
    return data if data.class_names else dataclasses.replace(data, class_names=("background", "field"))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m jaxseg.data.made.fields ROOT")
    print(make_fields(Path(sys.argv[1])))
