"""Splits tiles by blocks on the ground, with a gap: no training tile touches a validation tile."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

from jaxseg.base.errors import DataError, UserError
from jaxseg.data.find.ground import Boxes, boxes_of, in_one_crs, read_ground, touching
from jaxseg.data.find.splits import by_group

BLOCKS = 20
"""Number of blocks to aim at: more would lose more tiles in gaps, fewer would leave validation to few places."""


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Split of tiles by blocks.

    - `blocks`: number of each tile's block, in the order of the tiles
    - `validation`: indices of the validation tiles
    - `gap`: indices of the tiles on neither side, since they touch or overlap a validation tile
    """

    blocks: Int[np.ndarray, " n"]
    validation: set[int]
    gap: set[int]

    def __str__(self) -> str:
        blocks, chosen = len(set(self.blocks.tolist())), len({int(self.blocks[i]) for i in self.validation})
        left = f"; {len(self.gap)} tiles around them left out" if self.gap else ""
        share = f"{100 * len(self.validation) / len(self.blocks):.3g} percent of the tiles"
        return f"{chosen} of {blocks} blocks on the ground drawn for validation, {share}{left}"


def of_files(images: Sequence[Path], percent: float, seed: int) -> Drawn:
    """Splits image files by their coordinates; arguments and errors as in `draw`.

    Raises DataError listing images without coordinates, and UserError for several CRS without pyproj.
    """
    grounds = [read_ground(image) for image in images]
    if odd := [f"{image}: has no coordinates" for image, ground in zip(images, grounds) if ground is None]:
        raise DataError(
            f"--group-by auto splits by coordinates, and {len(odd)} of {len(images)} images have none:",
            odd,
            "It reads GeoTIFF, as python -m jaxseg.tile writes it. For others, give a pattern of what their names have "
            r"in common, such as --group-by 'scene(\d+)_'.",
        )
    systems = sorted({ground.crs or "none" for ground in grounds})
    several = f"--group-by auto: the images have several coordinate reference systems ({', '.join(systems)})"
    if len(systems) > 1 and not all(system.startswith("EPSG:") for system in systems):
        raise UserError(f"{several}, not all of them known; give a pattern of what names have in common")
    try:
        boxes = boxes_of(in_one_crs(grounds))
    except ImportError:
        raise UserError(f"{several}, which needs pyproj: pip install 'jaxseg[geo]'") from None
    return draw(boxes, percent, seed)


def draw(boxes: Boxes, percent: float, seed: int) -> Drawn:
    """Draws whole blocks for validation, as near to `percent` of the tiles as possible, and leaves out the gap.

    - `boxes`: tiles on the ground
    - `percent`: share of the tiles for validation, 1 to 90
    - `seed`: decides among equally near choices

    Raises DataError if there is only one block, or if no training tile is left.
    """
    blocks = number_blocks(boxes)
    if blocks.max() == 0:
        raise DataError(
            f"--group-by auto: {len(boxes)} tiles make a single block of ground; a split needs two.",
            [],
            "Add tiles, cut smaller ones, or name folders with --images --masks --val-images --val-masks.",
        )
    validation = by_group([f"{block:09}" for block in blocks], percent, seed)
    chosen = np.zeros(len(boxes), bool)
    chosen[list(validation)] = True
    gap = touching(boxes, boxes[chosen]) & ~chosen
    if (gap | chosen).all():
        raise DataError(
            f"--group-by auto: all of the other {int(gap.sum())} tiles touch the {len(validation)} for validation, "
            "which leaves none for training.",
            [],
            "Add tiles, cut smaller ones or with less --overlap, or give a smaller --validation.",
        )
    return Drawn(blocks, validation, set(np.flatnonzero(gap).tolist()))


def number_blocks(boxes: Boxes) -> Int[np.ndarray, " n"]:
    """Numbers the blocks of a regular grid from 0, and returns the block that holds the middle of each tile.

    About `BLOCKS` of them cover the tiles, or fewer, as a block has two rows and columns of tiles or more.
    """
    side = np.median(boxes[:, 2:] - boxes[:, :2], axis=0)
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2
    middles -= middles.min(0)
    covered = len(np.unique(np.floor(middles / side + 1e-6), axis=0))
    block = side * max(2.0, math.sqrt(covered / BLOCKS))
    across = np.maximum(1, np.round((middles.max(0) + side) / block))
    at = np.minimum(np.floor(middles / (middles.max(0) + side) * across + 1e-6), across - 1)
    return np.unique(at[:, ::-1], axis=0, return_inverse=True)[1].reshape(-1)
