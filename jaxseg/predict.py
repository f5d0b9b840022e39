"""Class maps of new images by a trained run: `python -m jaxseg.predict RUN INPUT -o OUT`

INPUT is an image or a folder of them, of any size; OUT gets, for each, an indexed PNG of the same size and stem whose
values are the classes and whose palette makes them visible. The network is the run's best; nothing else needs to be
said about it. Exit status: 0 done, 2 a mistake that a person can mend.
"""

import dataclasses
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from PIL import Image

from jaxseg.checkpoint import load_model
from jaxseg.config import UserError
from jaxseg.data import tiles
from jaxseg.pictures import PALETTE
from jaxseg.step import compile_predict_step
from jaxseg.terminal import console


@dataclasses.dataclass(frozen=True)
class Options:
    """Class maps of new images by a trained run."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    input: tyro.conf.Positional[Path]
    """An image, or a folder of images."""
    out: Annotated[Path, tyro.conf.arg(aliases=("-o",))]
    """Folder for the class maps."""
    checkpoint: Literal["best", "last"] = "best"
    """Which checkpoint."""
    overwrite: bool = False
    """Replace class maps that are there."""


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    try:
        predict(tyro.cli(Options, args=argv, prog="python -m jaxseg.predict"))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def predict(options: Options) -> list[Path]:
    """Writes a class map for every image and returns their paths. Raises UserError listing all that cannot be, before
    any is written.
    """
    if not options.input.exists():
        raise UserError(f"{options.input}: no such file or folder")
    files = tiles.list_images(options.input) if options.input.is_dir() else [options.input]
    if not files:
        raise UserError(f"{options.input}: no images in it. Known extensions: {' '.join(sorted(tiles.EXTENSIONS))}")
    targets = [options.out / f"{file.stem}.png" for file in files]
    counts = Counter(targets)
    problems = [f"{file}: has the same stem as another image" for file, t in zip(files, targets) if counts[t] > 1]
    problems += [
        f"{t}: exists; give --overwrite to replace it" for t in targets if t.exists() and not options.overwrite
    ]
    problems += [
        f"{t}: is the image itself; give another -o"
        for file, t in zip(files, targets)
        if t.absolute() == file.absolute()
    ]
    if problems:
        raise tiles.DataError("Nothing was predicted.", problems)
    net, description = load_model(options.run, options.checkpoint)
    step = compile_predict_step(net)
    options.out.mkdir(parents=True, exist_ok=True)
    for file, target in zip(files, targets):
        image = tiles.read_image(file)
        if min(image.shape[:2]) < net.least_side:
            raise UserError(
                f"{file}: is {image.shape[1]}x{image.shape[0]}; this network needs {net.least_side} pixels a side"
            )
        write_indexed(target, np.asarray(step(image[None]))[0])
    names = ", ".join(f"{i} {name}" for i, name in enumerate(description["classes"]))
    console.print(f"{len(targets)} class maps ({names}) in {options.out}")
    return targets


def write_indexed(path: Path, classes: np.ndarray) -> None:
    """Writes uint8 [h w] as a PNG whose values are the classes, shown in the palette's colors."""
    picture = Image.fromarray(classes)
    picture.putpalette(PALETTE.tobytes())
    picture.save(path)


if __name__ == "__main__":
    sys.exit(main())
