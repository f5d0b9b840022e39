"""What the commands that use a trained run can be told."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jaxseg.base.config import LARGEST, Data


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Class maps of new images by a trained run."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Folder of the run."""
    input: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="INPUT ...")]
    """Images, folders (with their sub-folders) or quoted patterns such as 'scenes/**/*.tif'; at least one."""
    out: Annotated[Path, tyro.conf.arg(aliases=("-o",))]
    """Folder for the class maps."""
    checkpoint: Literal["best", "last"] = "best"
    """Which checkpoint."""
    values: bool = False
    """Write the values or colors that the masks of training had, instead of class numbers with a palette."""
    overlay: bool = False
    """Also draw the classes over the image, in OUT/overlays; thinned out above 4096 pixels a side."""
    probabilities: bool = False
    """Also write OUT/probabilities/NAME.npy: float16 [h w classes], NaN where there is no data."""
    tile: int = 512
    """Side of the tiles in which larger images are predicted."""
    overlap: float = 0.5
    """Part of a tile that the next one covers again."""
    tta: bool = False
    """Mean over eight flips and turns: better, and eight times the work."""
    batch_size: Annotated[int, tyro.conf.arg(aliases=("-b",))] = 4
    """Tiles at a time."""
    overwrite: bool = False
    """Replace files that are there."""
    skip_existing: bool = False
    """Leave out images whose files are all there: goes on where a run was stopped."""
    on_bad_file: Literal["error", "skip"] = "error"
    """Whether an image that cannot be read makes the exit status 2 or is only named; the others are done."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Scores of a trained run on images with masks."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Folder of the run."""
    folder: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")] = None
    """The same as --data; the run's own data if not given."""
    out: Annotated[Path | None, tyro.conf.arg(aliases=("-o",))] = None
    """Folder for the results; RUN/evaluation, or RUN/evaluation-<name of FOLDER>, if not given."""
    checkpoint: Literal["best", "last"] = "best"
    """Which checkpoint."""
    split: Literal["validation", "training", "all"] | None = None
    """Which images; if not given validation of the run's own data, and all of other data."""
    tile: int = LARGEST
    """Side of the tiles in which larger images are predicted."""
    overlap: float = 0.5
    """Part of a tile that the next one covers again."""
    tta: bool = False
    """Mean over eight flips and turns: better, and eight times the work."""
    batch_size: Annotated[int, tyro.conf.arg(aliases=("-b",))] = 4
    """Tiles of an image at a time."""
    overwrite: bool = False
    """Replace files that are there."""
    worst: int = 6
    """How many of the images with the lowest mIoU worst.png shows; 0 draws none."""
    debug: bool = False
    """Show the traceback of an error."""
    data: tyro.conf.OmitArgPrefixes[Data] = dataclasses.field(default_factory=Data)
