"""Writes made-up scenes with coordinates, and their parcels as polygons: `python -m jaxseg.data.made.scene ROOT`.

The farmland is that of `landscape.py`, with orchards, in four bands: red, green, blue and near infrared. ROOT gets
train.tif, test.tif, which lies elsewhere, and fields.gpkg with the parcels of both; their `use` is arable or orchard.
Needs the extra `geo`.
"""

import json
import os
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float32, Int32, UInt8

from jaxseg.base import doors, extra
from jaxseg.base.errors import UserError
from jaxseg.data.made import landscape
from jaxseg.data.made.fields import RECORD, check_made, contents
from jaxseg.data.made.landscape import LEAVES, ROADS, WATER, Tile, wave

VERSION = 1  # version of the generator: increase it when a pixel changes
USES = ("arable", "orchard")
CRS, PIXEL = "EPSG:32633", 0.5
"""Coordinate reference system, and side of a pixel in its unit, meters."""
CORNERS = {"train": (451_000, 5_405_000), "test": (454_000, 5_406_000)}
"""x and y of each scene's upper left corner."""
GRASS = landscape.GROUND[0]
"""Color between the parcels, of all scenes, as they are of one region."""
REACH = 24
"""Pixels by which a parcel may reach over its straight outline."""


def make_scenes(root: Path, size: int = 4096, test: int = 1024, seed: int = 0) -> Path:
    """Writes two scenes and their parcels, and returns `root` as an absolute path.

    - `root`: new or empty folder, or one made earlier with the same arguments, which is left as it is
    - `size`, `test`: height and width of train.tif and test.tif in pixels, at least 256
    - `seed`: 0 or more

    Scenes are tiled GeoTIFF, uint8 [size size 4], in UTM zone 33. Raises UserError for arguments out of range, and if
    `root` holds other files; and without the extra `geo`.
    """
    extra.require("geo", "a made-up scene")
    import pyogrio
    import shapely

    root = Path(root).absolute()
    made = {"generator": VERSION, "train": size, "test": test, "seed": seed}
    least = {"train": 256, "test": 256, "seed": 0}
    if low := [f"{name} is {made[name]}; expected at least {n}" for name, n in least.items() if made[name] < n]:
        raise UserError("Cannot make scenes: " + "; ".join(low))
    if root.exists() and not (root.is_dir() and not any(root.iterdir())):
        check_made(root, made)
        return root
    draft = root.with_name(f".{root.name}.{os.getpid()}")
    try:
        draft.mkdir(parents=True)
        parcels, uses = [], []
        for number, name in enumerate(CORNERS):
            image, numbers, use = make_scene(np.random.default_rng((seed, number)), made[name])
            transform = write_scene(draft / f"{name}.tif", image, CORNERS[name])
            for polygon, parcel in outlines(numbers, transform):
                parcels.append(polygon)
                uses.append(USES[use[parcel]])
        pyogrio.raw.write(
            draft / "fields.gpkg",
            shapely.to_wkb(np.array(parcels)),
            [np.arange(1, len(uses) + 1), np.array(uses, object)],
            ["parcel", "use"],
            layer="fields",
            driver="GPKG",
            geometry_type="Polygon",
            crs=CRS,
        )
        (draft / RECORD).write_text(json.dumps({"made": made, "files": contents(draft)}, indent=1) + "\n")
        if root.exists():
            root.rmdir()
        draft.rename(root)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return root


def write_scene(path: Path, image: UInt8[np.ndarray, "h w 4"], corner: tuple[int, int]):
    """Writes a scene as GeoTIFF, and returns its transform."""
    import rasterio

    height, width, bands = image.shape
    transform = rasterio.transform.from_origin(*corner, PIXEL, PIXEL)
    profile = {"driver": "GTiff", "height": height, "width": width, "count": bands, "dtype": "uint8", "crs": CRS}
    profile |= {"transform": transform, "tiled": True, "blockxsize": 256, "blockysize": 256}
    profile |= {"compress": "deflate", "predictor": 2, "photometric": "RGB", "alpha": "UNSPECIFIED"}
    with rasterio.open(path, "w", **profile, num_threads=2) as file:
        file.write(np.moveaxis(image, -1, 0))
        file.descriptions = ("red", "green", "blue", "near infrared")
    return transform


def outlines(numbers: Int32[np.ndarray, "h w"], transform, least: float = 15.0):
    """Yields the outline of each parcel as a shapely Polygon, and its number; pieces below `least` m2 are left out."""
    import shapely
    from rasterio.features import shapes

    for geometry, number in shapes(numbers, mask=numbers > 0, transform=transform):
        polygon = shapely.simplify(shapely.geometry.shape(geometry), PIXEL)
        if polygon.area >= least:
            yield polygon, int(number)


def make_scene(
    rng: np.random.Generator, size: int
) -> tuple[UInt8[np.ndarray, "{size} {size} 4"], Int32[np.ndarray, "{size} {size}"], list[int]]:
    """Draws a scene.

    Returns its image, uint8 [size size 4] of red, green, blue and near infrared; the number of the parcel at each
    pixel, int32 [size size], 0 outside; and the index into `USES` of each number.
    """
    land = new_land(rng, size)
    numbers, uses = np.zeros((size, size), np.int32), [0]
    boxes = landscape.split(land, (-0.75 * size, 0.75 * size, -0.75 * size, 0.75 * size))
    trees, yards = np.zeros((size, size), bool), []
    for box in boxes:
        window = window_of(land, box)
        if window is None:
            continue
        view, kind = view_of(land, window), rng.random()
        before = view.field.copy()
        chance = rng.random((view.size, view.size))
        if kind < 0.72:
            uses.append(int(rng.random() < 0.25))
            (landscape.crop, orchard)[uses[-1]](view, box)
            numbers[window][view.field & ~before] = len(uses) - 1
        elif kind < 0.9:
            view.paint(landscape.inside(view, box, 1), landscape.ground_color(rng), 13 * view.blotches())  # meadow
            yards.append((window, box))
        else:
            trees[window] |= landscape.inside(view, box, 0) & (chance < 1 / 14)
        if rng.random() < 0.2:
            u0, u1, v0, v1 = box
            hedge = [(u0 - 1, u0 + 1, v0, v1), (u0, u1, v0 - 1, v0 + 1)][rng.integers(2)]
            trees[window] |= landscape.inside(view, hedge, 0) & (chance < 1 / 9)
    for window, box in yards[:: max(1, len(yards) // (1 + size // 300))]:
        landscape.farm(view_of(land, window), box)
    lines(land, boxes)
    numbers[~land.field] = 0
    landscape.plant(land, trees)
    return photograph(land), numbers, uses


def new_land(rng: np.random.Generator, size: int) -> Tile:
    """Draws rough grassland with a rotated and bent coordinate frame, as `landscape.new_tile` does, in float32."""
    y, x = np.mgrid[:size, :size].astype(np.float32) - np.float32((size - 1) / 2)
    cos, sin = np.float32(0.96), np.float32(0.28)
    u = cos * x + sin * y + 4 * relief(rng, size, 72) + 12 * relief(rng, size, 500)
    v = cos * y - sin * x + 4 * relief(rng, size, 72) + 12 * relief(rng, size, 500)
    texture = sum(weight * relief(rng, size, cell) for cell, weight in ((400, 1), (24, 0.5), (11, 0.4), (5, 0.4)))
    image = GRASS.astype(np.float32) + 10 * texture[..., None]
    return Tile(rng, size, image, np.zeros((size, size), bool), u, v, GRASS, np.array([3, 2]))


def relief(rng: np.random.Generator, size: int, cell: int) -> Float32[np.ndarray, "{size} {size}"]:
    """Draws smooth noise, float32 [size size], about -1..1, of a lattice of `cell` pixels."""
    cells = size // cell + 4
    lattice = (rng.random((cells, cells)) * 2 - 1).astype(np.float32)
    smooth = cv2.resize(lattice, (cells * cell, cells * cell), interpolation=cv2.INTER_CUBIC)
    return smooth[cell : cell + size, cell : cell + size]


def window_of(land: Tile, box: tuple) -> tuple[slice, slice] | None:
    """Returns the square window that holds a parcel, the box (u0, u1, v0, v1); None if it is outside the scene."""
    cos, sin, middle = 0.96, 0.28, (land.size - 1) / 2
    corners = np.array([(u, v) for u in box[:2] for v in box[2:]])
    x, y = corners @ (cos, -sin) + middle, corners @ (sin, cos) + middle
    side = min(land.size, int(max(np.ptp(x), np.ptp(y))) + 2 * REACH)
    left, top = (int(np.mean(of) - side / 2) for of in (x, y))
    if left + side < 0 or top + side < 0 or left > land.size or top > land.size:
        return None
    left, top = (min(max(0, at), land.size - side) for at in (left, top))
    return slice(top, top + side), slice(left, left + side)


def view_of(land: Tile, window: tuple[slice, slice]) -> Tile:
    """Returns a square window of a scene as a tile; what is drawn there is drawn in the scene."""
    arrays = (array[window] for array in (land.image, land.field, land.u, land.v))
    return Tile(land.rng, window[0].stop - window[0].start, *arrays, land.ground, land.sun)


def orchard(tile: Tile, box: tuple) -> None:
    """Draws trees in a square grid on a parcel, the box (u0, u1, v0, v1)."""
    where = landscape.inside(tile, box, tile.between(2.2, 3.2))
    space = tile.between(6.5, 9)
    tile.paint(where, landscape.ground_color(tile.rng), tile.between(4, 8) * tile.blotches())
    crowns = where & (wave((tile.u - box[0]) / space) + wave((tile.v - box[2]) / space) > tile.between(0.1, 0.4))
    tile.image[landscape.shadow(tile, crowns) & where] *= 0.75
    tile.paint(crowns, LEAVES[tile.rng.integers(len(LEAVES))], 12 * tile.blotches())
    tile.field |= where


def lines(land: Tile, boxes: list[tuple], block: int = 256) -> None:
    """Draws roads, tracks and streams across the scene, block by block."""
    bend = 14 * relief(land.rng, land.size, 60)
    drawn = []
    for number in range(max(2, land.size // 230)):
        u0, _, v0, _ = boxes[land.rng.integers(len(boxes))]
        along, at = (land.u, u0) if number % 2 else (land.v, v0)
        if number % 5 == 4:
            drawn.append((along, at, 1, land.between(5, 10), 3, WATER[land.rng.integers(len(WATER))]))
        else:
            width = land.between(4, 7) if number % 5 < 2 else land.between(2, 3)
            drawn.append((along, at, 0, width, 2, ROADS[land.rng.integers(len(ROADS))]))
    for top, left in np.ndindex(-(-land.size // block), -(-land.size // block)):
        top, left = (min(block * at, land.size - min(block, land.size)) for at in (top, left))
        window = slice(top, top + block), slice(left, left + block)
        view = view_of(land, window)
        for along, at, winds, width, bank, color in drawn:
            distance = np.abs(along[window] - at + winds * bend[window])
            if distance.min() < width:
                landscape.cover(view, distance, width, bank, color, 5 * view.noise(4))


def photograph(land: Tile) -> UInt8[np.ndarray, "h w 4"]:
    """Renders the scene with near infrared, cloud shadows, uneven light, blur and noise."""
    rng, size, image = land.rng, land.size, land.image
    red, green, blue = (image[..., band] for band in range(3))
    infrared = 40 + 0.6 * green + (2 * green - red - blue) - 3 * np.maximum(blue - red, 0)
    light = 1 + 0.1 * relief(rng, size, 900) - 0.25 * np.clip(3 * relief(rng, size, 260) - 1.4, 0, 1)
    result = np.empty((size, size, 4), np.uint8)
    for band, values in enumerate((red, green, blue, infrared)):
        values = cv2.GaussianBlur(values * light, (3, 3), 0.6)
        values += rng.integers(-3, 4, values.shape, np.int8)
        values += rng.integers(-3, 4, values.shape, np.int8)
        result[..., band] = np.clip(np.rint(values), 0, 255)
    return result


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m jaxseg.data.made.scene ROOT")
    sys.exit(doors.enter(lambda: print(make_scenes(Path(sys.argv[1])))))
