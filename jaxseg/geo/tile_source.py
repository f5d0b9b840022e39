"""Brings scenes and their labels to the same pixels, and reads windows of both."""

import dataclasses
import itertools
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import shapely
from jaxtyping import Bool, Shaped, UInt8
from rasterio.enums import ColorInterp, Resampling
from rasterio.errors import NodataShadowWarning
from rasterio.io import DatasetReader
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

from jaxseg.base.config import IGNORE_INDEX
from jaxseg.base.errors import DataError
from jaxseg.base.options import Tiling
from jaxseg.data.read.masks import few
from jaxseg.geo.burn import Labels, Placed, Polygons, Warped, is_background, open_labels, sort_values
from jaxseg.geo.grid import Grid, Turn, bounds_text, crs_text, warped
from jaxseg.geo.raster import Scene

Place = tuple[int, int, int, int]
"""Window: first row, first column, height and width in pixels."""


@dataclasses.dataclass(frozen=True)
class Source:
    """Scene to cut, with its labels.

    - `name`: of its tiles
    - `grid`: its pixels, after resampling
    - `data`: its bands on these pixels
    - `labels`: labels of all scenes, or its own
    - `placed`: these labels on its pixels
    - `area`: the labeled area on its pixels; None for all of it
    """

    name: str
    scene: Scene
    grid: Grid
    data: DatasetReader | WarpedVRT
    labels: Labels
    placed: Placed | Warped
    area: Placed | Warped | None


def check_alike(scenes: Sequence[Scene]) -> None:
    """Raises DataError listing scenes without coordinates, and those of other bands or type than most."""
    lost = [f"{s.path}: has no transform" for s in scenes if s.dataset.transform.is_identity]
    lost += [f"{s.path}: has a palette" for s in scenes if s.dataset.colorinterp[0] == ColorInterp.palette]
    if lost:
        advice = (
            "Warp scenes with control points by gdalwarp, expand palettes by gdal_translate -expand rgb. Tiles without "
            "coordinates are not for this command: python -m jaxseg.train reads images and masks."
        )
        raise DataError(f"{len(lost)} of {len(scenes)} scenes cannot be cut:", lost, advice)
    kinds = [f"{s.shape[2]} bands of {s.dtype}, {'color' if s.color else 'plain'}" for s in scenes]
    usual = Counter(kinds).most_common(1)[0][0]
    if odd := [f"{scene.path}: {kind}" for scene, kind in zip(scenes, kinds) if kind != usual]:
        headline = f"{len(odd)} of {len(scenes)} scenes differ from the others, which have {usual}:"
        raise DataError(headline, odd, "Cut them apart, or convert them with gdal_translate -b -ot.")


def place(scenes: Sequence[Scene], options: Tiling) -> list[Source]:
    """Opens the labels, and brings them to each scene. Raises DataError naming the scenes that they miss."""
    opened = open_all(options)
    area = None if options.aoi is None else open_labels(options.aoi)
    sources = []
    names = unique_names([scene.path.stem for scene in scenes])
    for name, scene, labels in zip(names, scenes, itertools.cycle(opened)):
        grid = Grid.of(scene, options.resolution)
        data = warped(scene, grid, Resampling.bilinear)
        source = Source(name, scene, grid, data, labels, labels.on(grid), area and area.on(grid))
        sources.append(source)
    none = not any(source.placed.count for source in sources)
    missed = [elsewhere(of.scene, area) for of in sources if of.area is not None and not of.area.count]
    missed += [elsewhere(of.scene, of.labels) for of in sources if not of.placed.count and (none or of.area is None)]
    if missed:
        advice = "Are the files of the same place, and are the coordinates in the right order, x before y? "
        advice += "A scene without any object needs --aoi, the area that was labeled."
        raise DataError("Labels and scenes do not overlap, so that masks would be empty:", missed, advice)
    return sources


def open_all(options: Tiling) -> list[Labels]:
    """Opens the files of labels with one numbering of classes. Raises DataError for classes that no file has."""

    def opened(values: Sequence[str]) -> list[Labels]:
        how = {"all_touched": options.all_touched, "border": options.border, "values": values}
        return [open_labels(path, options.layer, options.class_field, **how) for path in options.labels]

    labels = opened(options.class_values)
    found = {value for of in labels if isinstance(of, Polygons) for value in of.values}
    if gone := sorted(set(options.class_values) - found):
        what = f"{options.class_field} never is {', '.join(gone)}; found {few(sort_values(found))}"
        raise DataError("--class-values names values that do not occur:", [f"{of.path}: {what}" for of in labels])
    if options.class_field is not None and not options.class_values and len(labels) > 1:
        labels = opened(sort_values(value for value in found if not is_background(value)))
    if any(of.names != labels[0].names for of in labels):
        rows = [f"{of.path}: {few(of.names or ['numbers 0 to 254'])}" for of in labels]
        raise DataError("The labels have several sets of classes:", rows, "Bring them to one, or cut the scenes apart.")
    return labels


def elsewhere(scene: Scene, labels: Labels) -> str:
    """Says where a scene and its labels lie, in both CRS."""
    there = f"{labels.path} is in {crs_text(labels.crs)}, {bounds_text(labels.bounds)}"
    grid = Grid.of(scene)
    here = f"{scene.path}: is in {crs_text(scene.crs)}, {bounds_text(grid.bounds)}"
    turned = Turn(labels.path, labels.crs, grid).bounds(grid.bounds)
    if crs_text(labels.crs) != crs_text(scene.crs):
        here += f" (in that of the labels {bounds_text(turned) if turned else 'undefined'})"
    return f"{here}; {there}"


def unique_names(stems: Sequence[str]) -> list[str]:
    """Returns the stems; those that occur before, in whatever case, get a number."""
    names: list[str] = []
    for stem in stems:
        name, number = stem, 1
        while name.casefold() in map(str.casefold, names):
            number += 1
            name = f"{stem}-{number}"
        names.append(name)
    return names


def covered(source: Source) -> float:
    """Returns the share of a scene's bounds, in the CRS of the labels, that the bounds of the labels cover."""
    bounds = Turn(source.labels.path, source.labels.crs, source.grid).bounds(source.grid.bounds)
    scene = shapely.box(*bounds)
    return scene.intersection(shapely.box(*source.labels.bounds)).area / scene.area


def starts(length: int, size: int, overlap: float) -> list[int]:
    """Returns where windows of `size` begin along `length` pixels; the last one is moved inward."""
    if length <= size:
        return [0]
    step = max(1, round(size * (1 - overlap)))
    return [*range(0, length - size, step), length - size]


def windows(sources: Sequence[Source], options: Tiling) -> Iterator[tuple[Source, int, int, Place]]:
    """Yields source, row and column of each tile, and its window: first row, first column, height, width."""
    for source in sources:
        rows, columns = (starts(n, options.size, options.overlap) for n in (source.grid.height, source.grid.width))
        for (row, top), (column, left) in itertools.product(enumerate(rows), enumerate(columns)):
            yield source, row, column, (top, left, options.size, options.size)


def inside(source: Source, window: Place) -> Place:
    """Returns the part of a window that lies in the scene."""
    top, left, height, width = window
    return top, left, min(height, source.grid.height - top), min(width, source.grid.width - left)


def read_image(source: Source, window: Place) -> tuple[Shaped[np.ndarray, "c h w"], Bool[np.ndarray, "h w"]]:
    """Reads the bands of a window, and which of its pixels have data; the part outside of the scene has none."""
    data, count = source.data, source.scene.shape[2]
    top, left, height, width = inside(source, window)
    part = Window(left, top, width, height)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NodataShadowWarning)
        array, there = data.read(list(range(1, count + 1)), window=part), data.dataset_mask(window=part) != 0
    if array.dtype.kind == "f":
        there &= np.isfinite(array).any(0)
    pad = ((0, window[2] - height), (0, window[3] - width))
    fill = source.scene.nodata or 0
    return np.pad(array, ((0, 0), *pad), constant_values=fill), np.pad(there, pad)


def read_mask(source: Source, window: Place) -> UInt8[np.ndarray, "h w"]:
    """Reads the classes of a window; 255 outside of the scene and of the labeled area."""
    part = inside(source, window)
    mask = source.placed.read(*part)
    if source.area is not None:
        mask[np.isin(source.area.read(*part), (0, IGNORE_INDEX))] = IGNORE_INDEX
    pad = ((0, window[2] - part[2]), (0, window[3] - part[3]))
    return np.pad(mask, pad, constant_values=IGNORE_INDEX)


def bands_of(scene: Scene) -> dict[str, object]:
    """Returns the options with which a tile's bands mean what those of its scene mean."""
    data = scene.dataset
    color = data.colorinterp[:3] == (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
    alpha = "UNSPECIFIED" if scene.alpha is None else "YES"
    profile = {"count": scene.shape[2], "dtype": str(scene.dtype), "nodata": data.nodata}
    return profile | {"photometric": "RGB" if color else "MINISBLACK", "alpha": alpha}
