"""Places pixels on the ground: grids of scenes and windows, and labels turned from their CRS to a scene's."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyproj
import rasterio
import shapely
from rasterio.enums import Resampling
from rasterio.io import DatasetReader
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

from jaxseg.base.errors import problem
from jaxseg.geo.raster import Scene

Bounds = tuple[float, float, float, float]
"""Left, bottom, right and top."""

EDGES = 100
"""Least number of pieces along a scene into which edges are cut before they are turned, since straight ones bend."""


class Grid(NamedTuple):
    """Pixels of a scene, or of a window."""

    crs: rasterio.crs.CRS | None
    transform: rasterio.Affine
    height: int
    width: int

    @classmethod
    def of(cls, scene: Scene, resolution: float | None = None) -> "Grid":
        """Returns the grid of a scene, or one with pixels of `resolution` units a side that covers it."""
        grid = cls(scene.crs, scene.transform, *scene.shape[:2])
        if resolution is None:
            return grid
        a, b, c, d, e, f = scene.transform[:6]
        across, down = resolution / np.hypot(a, d), resolution / np.hypot(b, e)
        transform = rasterio.Affine(a * across, b * down, c, d * across, e * down, f)
        return cls(scene.crs, transform, max(1, round(grid.height / down)), max(1, round(grid.width / across)))

    def is_of(self, scene: Scene) -> bool:
        """True if these are the pixels of a scene."""
        return self == Grid.of(scene)

    def window(self, row: int, column: int, height: int, width: int) -> "Grid":
        """Returns the grid of a window, which may reach over the sides."""
        transform = rasterio.windows.transform(Window(column, row, width, height), self.transform)
        return self._replace(transform=transform, height=height, width=width)

    @property
    def corners(self) -> list[tuple[float, float]]:
        """x and y of the corners, around the grid from its first pixel."""
        a, b, c, d, e, f = self.transform[:6]
        around = ((0, 0), (self.width, 0), (self.width, self.height), (0, self.height))
        return [(a * column + b * row + c, d * column + e * row + f) for column, row in around]

    @property
    def outline(self) -> shapely.Polygon:
        """Outline in the grid's CRS."""
        return shapely.Polygon(self.corners)

    @property
    def bounds(self) -> Bounds:
        """Bounds in the grid's CRS."""
        return self.outline.bounds


def warped(scene: Scene, grid: Grid, resampling: Resampling) -> DatasetReader | WarpedVRT:
    """Returns a dataset with the bands of a scene on the pixels of a grid: its own, or one resampled while it is read.

    Its `dataset_mask` has no data outside of the scene.
    """
    if grid.is_of(scene):
        return scene.dataset
    crs = grid.crs or "EPSG:3857"  # if neither has one, any does
    place = {"transform": grid.transform, "height": grid.height, "width": grid.width}
    alpha = {"add_alpha": True} if scene.dataset.nodata is None and scene.alpha is None else {}
    return WarpedVRT(scene.dataset, src_crs=scene.crs or crs, crs=crs, resampling=resampling, **place, **alpha)


class Turn:
    """Turns labels to the CRS of a scene.

    - `path`: file of the labels
    - `crs`: CRS of the labels, as text; None if they have none
    - `grid`: the scene

    Raises DataError if only one of them has a CRS.
    """

    def __init__(self, path: Path, crs: str | None, grid: Grid):
        if (crs is None) != (grid.crs is None):
            has, lacks = ("its scene", "it") if crs is None else ("it", "its scene")
            advice = "Name it with gdal_edit.py -a_srs or ogr2ogr -a_srs, or save the file again with one."
            raise problem(path, f"{lacks} has no coordinate reference system, but {has} has one", advice)
        self._back = None
        if crs is not None:
            ours, theirs = pyproj.CRS.from_user_input(crs), pyproj.CRS.from_wkt(grid.crs.to_wkt())
            if not ours.equals(theirs, ignore_axis_order=True):
                self._there = pyproj.Transformer.from_crs(ours, theirs, always_xy=True)
                self._back = pyproj.Transformer.from_crs(theirs, ours, always_xy=True)

    def bounds(self, bounds: Bounds) -> Bounds | None:
        """Returns bounds of the scene in the CRS of the labels; None if there are none there."""
        if self._back is None:
            return bounds
        try:
            found = self._back.transform_bounds(*bounds, densify_pts=21)
        except pyproj.exceptions.ProjError:
            return None
        return found if np.isfinite(found).all() else None

    def geometries(self, geometries: np.ndarray, area: Bounds) -> np.ndarray:
        """Returns geometries in the CRS of the scene, whose bounds in their own are `area`."""
        if self._back is None:
            return geometries
        left, bottom, right, top = area
        w, h = right - left, top - bottom
        near = shapely.clip_by_rect(shapely.force_2d(geometries), left - w, bottom - h, right + w, top + h)
        bent = shapely.segmentize(near, max(w, h) / EDGES)
        return shapely.transform(bent, lambda xy: np.stack(self._there.transform(*xy.T), 1))


def crs_text(crs: object) -> str:
    """Names a CRS of rasterio, or one given as text: by its code, or else by its name."""
    if crs is None:
        return "no CRS"
    found = pyproj.CRS.from_user_input(crs if isinstance(crs, str) else crs.to_wkt())
    authority = found.to_authority()
    return ":".join(authority) if authority else found.name


def bounds_text(bounds: Bounds) -> str:
    """Formats bounds: 'x 451,000 to 453,048, y 5,402,952 to 5,405,000'."""
    left, bottom, right, top = (f"{value:,.6g}" if abs(value) < 1000 else f"{value:,.1f}" for value in bounds)
    return f"x {left} to {right}, y {bottom} to {top}"
