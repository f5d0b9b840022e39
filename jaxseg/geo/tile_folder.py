"""Writes the folder of a tiled data set: whole or not at all, and never over files that are not its own."""

import contextlib
import io
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyogrio
import shapely
from jaxtyping import Int
from rasterio.io import MemoryFile

from jaxseg.base import files
from jaxseg.base.config import IGNORE_INDEX, Data, Run
from jaxseg.base.errors import DataError, UserError
from jaxseg.data.find import blocks
from jaxseg.data.find.blocks import Drawn
from jaxseg.data.find.ground import Ground, boxes_of, in_one_crs
from jaxseg.geo.grid import Grid

RECORD = "tiles.json"
SIDECARS = (".aux.xml", "-wal", "-shm")
"""Ends of files that QGIS leaves beside those that it shows."""

SIDES = ("training", "validation", "left out")


class Tile(NamedTuple):
    """Tile that was written.

    - `scene`: name of its scene
    - `row`, `column`: its place among the tiles of the scene
    - `grid`: its pixels
    - `pixels`: int64 [256], number of pixels of each mask value
    """

    scene: str
    row: int
    column: int
    grid: Grid
    pixels: Int[np.ndarray, "256"]

    def name(self, block: int | None = None) -> str:
        """Returns the name of its files: of the scene, the block if known, the row and the column."""
        place = "" if block is None else f"_b{block:03}"
        return f"{self.scene}{place}_r{self.row:03}_c{self.column:03}.tif"

    @property
    def ground(self) -> Ground:
        """Footprint, as `blocks` splits it."""
        first, right, _, down = self.grid.corners
        return Ground(self.grid.crs.to_wkt() if self.grid.crs else "", (*first, *down, *right))


@contextlib.contextmanager
def drafted(out: Path, overwrite: bool) -> Iterator[Path]:
    """Yields a hidden folder beside `out`, which becomes `out` when the block ends, and is deleted when it fails.

    Raises UserError if `out` holds files that were not written by an earlier call, or that one's without `overwrite`.
    """
    check_free(out, overwrite)
    files.try_writing(out.parent)
    out = out.resolve()
    draft, old = (out.with_name(f".{out.name}.{os.getpid()}.{end}") for end in ("tmp", "old"))
    draft.mkdir(parents=True)
    try:
        yield draft
        check_free(out, overwrite)
        if out.exists():
            os.replace(out, old)
        try:
            os.replace(draft, out)
        except OSError:
            if old.exists():
                os.replace(old, out)
            raise
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        if str(error.filename).startswith(str(draft)):
            error.filename = str(out)  # the draft is gone when this is read
        raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def check_free(out: Path, overwrite: bool) -> None:
    """Raises UserError unless tiles may be written to `out`."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"--out {out}: is a file; expected a folder, or the name of a new one")
    held = {path.relative_to(out).as_posix() for path in out.rglob("*") if not path.is_dir()}
    held = {name for name in held if not name.endswith(SIDECARS)}
    if not held:
        return
    try:
        own = set(json.loads((out / RECORD).read_text(encoding="utf-8"))["files"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"--out {out}: holds other files, such as {min(held)}; expected a new or empty folder"
        ) from None
    if foreign := sorted(held - own - {RECORD}):
        what = f"{len(foreign)} files that python -m jaxseg.tile did not write, such as {foreign[0]}"
        raise UserError(f"--out {out}: holds {what}; move them away, or choose another folder")
    if not overwrite:
        raise UserError(f"--out {out}: holds tiles of an earlier call; give --overwrite to replace them")


def write_tile(folder: Path, name: str, array: np.ndarray, profile: Mapping) -> None:
    """Writes an array [c h w] as a GeoTIFF. Raises OSError, which names the file."""
    with MemoryFile() as memory:
        with memory.open(driver="GTiff", compress="deflate", **profile) as file:
            file.write(array)
        content = memory.read()  # GDAL reports a full disk late, if at all
    with files.naming(folder / name):
        (folder / name).write_bytes(content)


def finish(draft: Path, tiles: Sequence[Tile], names: Sequence[str] | None, record: Mapping) -> Drawn | None:
    """Gives tiles their block numbers, and writes class names, footprints and the record.

    Returns the split that training draws by default with --group-by auto; None if there are too few tiles for one.
    """
    grounds = in_one_crs([tile.ground for tile in tiles])
    boxes = boxes_of(grounds)
    numbers = blocks.number_blocks(boxes)
    try:
        drawn = blocks.draw(boxes, Data.validation, Run.seed)
    except DataError:
        drawn = None
    for tile, block in zip(tiles, numbers.tolist()):
        for folder in ("images", "masks"):
            os.replace(draft / folder / tile.name(), draft / folder / tile.name(block))
    if names is not None:
        put(draft / "classes.txt", ("\n".join(names) + "\n").encode())
    put(draft / "tiles.gpkg", footprints(tiles, grounds, numbers, drawn, names))
    held = sorted(path.relative_to(draft).as_posix() for path in draft.rglob("*") if path.is_file())
    put(draft / RECORD, (json.dumps({**record, "files": held}, indent=1, default=str) + "\n").encode())
    return drawn


def put(path: Path, content: bytes) -> None:
    """Writes a file. Raises OSError, which names it."""
    with files.naming(path):
        path.write_bytes(content)


def footprints(
    tiles: Sequence[Tile],
    grounds: Sequence[Ground],
    numbers: Int[np.ndarray, " n"],
    drawn: Drawn | None,
    names: Sequence[str] | None,
) -> bytes:
    """Returns a GeoPackage of the tiles' outlines, with block, side of the split, and share of each class."""
    sides = np.array([""] * len(tiles), object)
    if drawn is not None:
        sides[:] = SIDES[0]
        sides[list(drawn.validation)] = SIDES[1]
        sides[list(drawn.gap)] = SIDES[2]
    pixels = np.array([tile.pixels for tile in tiles])
    shares = pixels / pixels.sum(1, keepdims=True)
    values = [value for value in range(256) if pixels[:, value].any() or value < len(names or ())]
    titles = dict(enumerate(names or ())) | {IGNORE_INDEX: "ignored"}
    columns = {
        "tile": np.array([tile.name(block) for tile, block in zip(tiles, numbers.tolist())], object),
        "scene": np.array([tile.scene for tile in tiles], object),
        "block": numbers.astype(np.int32),
        "row": np.array([tile.row for tile in tiles], np.int32),
        "column": np.array([tile.column for tile in tiles], np.int32),
        "split": sides,
    } | {
        f"share_{value}_{titles[value]}" if value in titles else f"share_{value}": shares[:, value] for value in values
    }
    corners = np.array([ground.corners for ground in grounds]).reshape(-1, 3, 2)
    first, down, right = corners.transpose(1, 0, 2)
    outlines = shapely.polygons(np.stack([first, right, right + down - first, down], 1))
    content, how = io.BytesIO(), {"layer": "tiles", "driver": "GPKG", "geometry_type": "Polygon"}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "'crs' was not provided")
        pyogrio.raw.write(
            content, shapely.to_wkb(outlines), [*columns.values()], [*columns], crs=grounds[0].crs or None, **how
        )
    return content.getvalue()
