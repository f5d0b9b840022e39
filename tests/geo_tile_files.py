"""Writes small scenes and polygons for tests of `jaxseg.tile`."""

import warnings

import numpy as np
import pyogrio
import rasterio
import shapely
from rasterio import Affine

UTM33, UTM32, LONLAT = "EPSG:32633", "EPSG:32632", "EPSG:4326"
NORTH_UP = Affine(0.5, 0, 451_000, 0, -0.5, 5_405_000)
SOUTH_UP = Affine(0.5, 0, 451_000, 0, 0.5, 5_404_900)
ROTATED = Affine(0.4, 0.3, 451_000, 0.3, -0.4, 5_405_000)


def write_scene(path, array, crs=UTM33, transform=NORTH_UP, **profile):
    """Writes an array [h w c] or [h w] as GeoTIFF, and returns its path."""
    array = np.atleast_3d(array)
    height, width, count = array.shape
    size = {"height": height, "width": width, "count": count, "dtype": array.dtype}
    with rasterio.open(path, "w", driver="GTiff", crs=crs, transform=transform, **size, **profile) as file:
        file.write(np.moveaxis(array, -1, 0))
    return path


def write_polygons(path, polygons, crs=UTM33, driver="GPKG", layer="fields", **fields):
    """Writes polygons with attributes, given as lists, and returns the path."""
    values = [
        np.array(of, object if any(v is None or isinstance(v, str) for v in of) else None) for of in fields.values()
    ]
    kind = {shapely.Polygon: "Polygon", shapely.Point: "Point"}.get(type(polygons[0]) if polygons else None, "Unknown")
    how = {"layer": layer, "driver": driver, "crs": crs, "geometry_type": kind, "append": path.exists()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "'crs' was not provided")
        pyogrio.raw.write(path, shapely.to_wkb(np.array(polygons, object)), values, list(fields), **how)
    return path


def on_ground(polygon, transform=NORTH_UP):
    """Turns a polygon in pixels, (column, row), to coordinates."""
    a, b, c, d, e, f = transform[:6]
    return shapely.transform(polygon, lambda at: at @ np.array([[a, d], [b, e]]) + (c, f))


def read(path):
    """Reads the first band of a raster."""
    with rasterio.open(path) as file:
        return file.read(1)


def some_fields(rng, count=25, side=100):
    """Draws rotated rectangles in pixels, some of them over the sides of the scene and over each other."""
    found = []
    for x, y, long, short, angle in rng.uniform((0, 0, 8, 4, 0), (side, side, 30, 20, np.pi), (count, 5)):
        box = shapely.box(-long / 2, -short / 2, long / 2, short / 2)
        turned = shapely.affinity.rotate(box, angle, use_radians=True)
        found.append(shapely.affinity.translate(turned, x, y))
    return found
