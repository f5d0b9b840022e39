"""Turns the regions of a class map into polygons, and writes them as GeoPackage, GeoJSON, Shapefile or FlatGeobuf."""

import dataclasses
import errno
import warnings
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pyogrio
import pyproj
import shapely
from jaxtyping import Float, Int
from rasterio.features import shapes
from rasterio.transform import Affine

from jaxseg.base.errors import problem
from jaxseg.geo.raster import Scene
from jaxseg.geo.regions import SIDE, Regions

Format = Literal["gpkg", "geojson", "shp", "fgb"]
DRIVERS = {"gpkg": "GPKG", "geojson": "GeoJSON", "shp": "ESRI Shapefile", "fgb": "FlatGeobuf"}


@dataclasses.dataclass(frozen=True)
class Polygons:
    """Polygons in pixel coordinates (column, row), and the number of the region of each."""

    shapes: np.ndarray
    """Objects of shapely, [n]."""
    numbers: Int[np.ndarray, " n"]


def polygonize(regions: Regions, left_out: Collection[int] = (), side: int = SIDE) -> Polygons:
    """Returns a polygon for each region, with its holes, along the edges of the pixels.

    - `regions`: regions of a class map
    - `left_out`: classes without polygons, such as the background
    - `side`: side of the blocks in pixels; pieces of a region in several blocks are dissolved

    Memory: a block, and the polygons.
    """
    wanted = ~np.isin(regions.classes, list(left_out))
    wanted[0] = False
    pieces: dict[int, list] = defaultdict(list)
    for (row, column), block in regions.blocks(side):
        place = Affine.translation(column, row)
        for found, number in shapes(block.astype(np.int32), mask=wanted[block], connectivity=4, transform=place):
            shell, *holes = found["coordinates"]
            pieces[int(number)].append(shapely.Polygon(shell, holes))
    numbers = np.array(sorted(pieces), np.int64)
    whole = [parts[0] if len(parts) == 1 else shapely.union_all(parts) for _, parts in sorted(pieces.items())]
    return Polygons(shapely.simplify(np.array(whole, object), 0), numbers)


def simplified(polygons: Polygons, tolerance: float | int) -> Polygons:
    """Simplifies outlines without gaps or overlaps between neighbors, by `shapely.coverage_simplify`.

    - `polygons`: polygons along the edges of pixels
    - `tolerance`: in pixels; about the square root of the area of triangles that are cut off
    """
    if not len(polygons.shapes):
        return polygons
    # A coverage has a vertex wherever outlines meet; those along pixels may meet at any corner of a pixel.
    dense = shapely.transform(shapely.segmentize(polygons.shapes, 1), np.rint)
    return Polygons(shapely.coverage_simplify(dense, tolerance), polygons.numbers)


def place(shapes: np.ndarray, transform: Affine) -> np.ndarray:
    """Moves shapes from pixel coordinates (column, row) to those of a transform."""
    a, b, c, d, e, f = transform[:6]
    return shapely.transform(shapes, lambda at: at @ np.array([[a, d], [b, e]]) + (c, f))


def is_metric(crs: pyproj.CRS) -> bool:
    """True where areas may be measured in the plane: projected, in meters, and not Mercator, which enlarges."""
    method = crs.coordinate_operation.method_name if crs.coordinate_operation else ""
    mercator = "Mercator" in method and "Transverse" not in method and "Oblique" not in method
    return crs.is_projected and not mercator and all(axis.unit_conversion_factor == 1 for axis in crs.axis_info[:2])


def areas(shapes: np.ndarray, crs: pyproj.CRS | None) -> Float[np.ndarray, " n"]:
    """Returns areas in m2: planar where the CRS is metric, else on the ellipsoid; NaN without a CRS."""
    if crs is None:
        return np.full(len(shapes), np.nan)
    geodetic = crs.geodetic_crs
    if is_metric(crs) or geodetic is None:  # a local one, such as of a building site, is in no place on Earth
        return shapely.area(shapes) * crs.axis_info[0].unit_conversion_factor ** 2
    if not crs.is_geographic:
        shapes = reprojected(shapes, crs, geodetic)
    ellipsoid = geodetic.get_geod()
    right = shapely.orient_polygons(shapes)
    return np.array([ellipsoid.geometry_area_perimeter(shape)[0] for shape in right])


def reprojected(shapes: np.ndarray, source: pyproj.CRS, target: pyproj.CRS) -> np.ndarray:
    """Transforms shapes between two CRS, with longitude or easting first."""
    change = pyproj.Transformer.from_crs(source, target, always_xy=True)
    return shapely.transform(shapes, lambda at: np.stack(change.transform(*at.T), -1))


def crs_of(scene: Scene) -> pyproj.CRS | None:
    """Returns the CRS of a scene; one without an EPSG code as its WKT says."""
    return pyproj.CRS.from_wkt(scene.crs.to_wkt()) if scene.crs else None


def pixel_area(scene: Scene) -> float:
    """Returns the area in m2 of the pixel in the middle of a scene; in units of its transform without a CRS."""
    height, width, _ = scene.shape
    row, column = height // 2, width // 2
    pixel = place(np.array([shapely.box(column, row, column + 1, row + 1)]), scene.transform)
    return float((areas(pixel, crs_of(scene)) if scene.crs else shapely.area(pixel))[0])


def write(path: Path, scene: Scene, polygons: Polygons, regions: Regions, names: Sequence[str]) -> int:
    """Writes polygons in a scene's CRS with the fields id, class, name, area_m2 and mean_prob. Returns their number.

    - `path`: file to write, as its suffix says: GeoPackage, GeoJSON (in WGS 84, as RFC 7946 says), Shapefile or
      FlatGeobuf; the layer takes its stem
    - `scene`: raster from which the map was made
    - `polygons`: polygons in pixel coordinates
    - `regions`: regions of the polygons
    - `names`: names of the classes

    `mean_prob` is the mean probability of the class in the region. Raises OSError when the file cannot be written,
    DataError for GeoJSON without a geographic or projected CRS.
    """
    crs, shapes, format = crs_of(scene), place(polygons.shapes, scene.transform), path.suffix[1:]
    if format == "geojson" and (crs is None or crs.geodetic_crs is None):
        raise problem(
            scene.path, "has no place on Earth, but GeoJSON holds longitude and latitude", "Give --vector gpkg."
        )
    classes = regions.classes[polygons.numbers]
    fields = {
        "id": polygons.numbers,
        "class": classes.astype(np.int32),
        "name": np.array([names[number] for number in classes], object),
        "area_m2": areas(shapes, crs).round(2),
        "mean_prob": regions.probability[polygons.numbers].round(4),
    }
    options = {"RFC7946": "YES"} if format == "geojson" else {}  # to WGS 84, rings by the right-hand rule
    several = bool((shapely.get_type_id(shapes) == shapely.GeometryType.MULTIPOLYGON).any())
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "'crs' was not provided")
            pyogrio.raw.write(
                path,
                shapely.to_wkb(shapes),
                list(fields.values()),
                list(fields),
                crs=crs and crs.to_wkt(),
                layer=path.stem,
                driver=DRIVERS[format],
                geometry_type="MultiPolygon" if several else "Polygon",
                promote_to_multi=several,
                layer_options=options,
            )
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, pyogrio.errors.FeatureError) as error:
        raise OSError(errno.EIO, str(error), str(path)) from None
    return len(shapes)
