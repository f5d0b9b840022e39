"""Turns labels with coordinates into masks: polygons of a vector file, or a raster, in any CRS.

>>> labels = open_labels(Path("fields.gpkg"), field="use")  # doctest: +SKIP
>>> mask = labels.on(grid).read(0, 0, 256, 256)  # doctest: +SKIP
"""

import contextlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import pyogrio
import rasterio
import shapely
from jaxtyping import Bool, Int, UInt8
from rasterio.enums import Resampling
from rasterio.features import rasterize
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

from jaxseg.base.config import IGNORE_INDEX
from jaxseg.base.errors import DataError, problem
from jaxseg.data.find.class_names import BACKGROUND
from jaxseg.data.read.masks import MOST_CLASSES, few
from jaxseg.geo.grid import Grid, Turn, warped
from jaxseg.geo.raster import Scene

POLYGON, MULTIPOLYGON = 3, 6  # types of shapely


class Polygons:
    """Polygons of a vector file, and the class of each.

    - `path`: GeoPackage, GeoJSON, Shapefile, FlatGeobuf, or another file that GDAL reads
    - `layer`: name of the layer; needed if there are several
    - `field`: attribute that holds the class; without it all polygons are class 1
    - `values`: values of the attribute for class 1, 2, ..., which need not occur; if empty, the sorted values that do
    - `all_touched`: whether a pixel belongs to a polygon that touches it, not only to one that holds its center
    - `border`: number of pixels on each side of a border between two polygons that are ignored

    Background is class 0, as are polygons whose value is 0 or a name of background. Polygons without a value, or with
    one that is not among `values`, are ignored pixels. Raises DataError.
    """

    def __init__(
        self,
        path: Path,
        layer: str | None = None,
        field: str | None = None,
        values: Sequence[str] = (),
        all_touched: bool = False,
        border: int = 0,
    ):
        self.path, self.field, self.layer = path, field, choose_layer(path, layer)
        self._how = all_touched, border
        with naming(path):
            info = pyogrio.read_info(path, layer=self.layer, force_feature_count=True, force_total_bounds=True)
        self.crs, self.count = info["crs"], info["features"]
        if not self.count:
            raise problem(path, f"layer {self.layer} has no features; expected polygons")
        self.bounds = tuple(float(x) for x in info["total_bounds"])
        self.names, self._numbers, self.values = ("background", self.layer), {}, set()
        if field is not None:
            if field not in info["fields"]:
                raise problem(path, f"layer {self.layer} has no attribute {field!r}; found {few(info['fields'])}")
            with naming(path):
                _, _, _, columns = pyogrio.raw.read(path, layer=self.layer, columns=[field], read_geometry=False)
            self.values = {value_text(value) for value in columns[0]} - {None}
            self._numbers = number_values(path, field, self.values, values)
            classes = {number: value for value, number in self._numbers.items() if number}
            self.names = ("background", *(classes[number] for number in sorted(classes)))
        self.odd: Counter[str] = Counter()
        """Values that were ignored, with the number of their polygons, over all calls of `on`."""

    def on(self, grid: Grid) -> "Placed":
        """Reads the polygons near a scene and brings them to its CRS. Raises DataError if only one has a CRS."""
        turn = Turn(self.path, self.crs, grid)
        geometries, classes = np.array([], object), np.array([], np.uint8)
        if (area := turn.bounds(grid.bounds)) is not None:
            columns = [self.field] if self.field else []
            with naming(self.path):
                _, _, found, data = pyogrio.raw.read(self.path, layer=self.layer, columns=columns, bbox=area)
                geometries = shapely.from_wkb(found)
            kept = np.isin(shapely.get_type_id(geometries), (POLYGON, MULTIPOLYGON))
            if len(kept) and not kept.any():
                raise problem(self.path, f"layer {self.layer} holds {geometries[0].geom_type}s; expected polygons")
            geometries = turn.geometries(geometries[kept], area)
            classes = self._classes(data[0][kept]) if self.field else np.ones(len(geometries), np.uint8)
        return Placed(grid, geometries, classes, *self._how)

    def _classes(self, values: Iterable) -> UInt8[np.ndarray, " n"]:
        texts = [value_text(value) for value in values]
        self.odd.update(text or "no value" for text in texts if text not in self._numbers)
        return np.array([self._numbers.get(text, IGNORE_INDEX) for text in texts], np.uint8)


class Placed:
    """Polygons in the CRS of a scene, found by a spatial index.

    - `count`: number of polygons that touch the scene
    - `classes`: class of each polygon
    """

    def __init__(
        self, grid: Grid, geometries: np.ndarray, classes: UInt8[np.ndarray, " n"], all_touched: bool, border: int
    ):
        self._grid, self._geometries, self.classes = grid, geometries, classes
        self._all_touched, self._border = all_touched, border
        self._tree = shapely.STRtree(geometries)
        self.count = len(self._tree.query(grid.outline, predicate="intersects"))

    def read(self, row: int, column: int, height: int, width: int) -> UInt8[np.ndarray, "{height} {width}"]:
        """Burns the polygons into a window: class numbers, and 255 where ignored. Later ones cover earlier ones."""
        border = self._border
        numbers = self.objects(row - border, column - border, height + 2 * border, width + 2 * border)
        mask = np.concatenate([np.zeros(1, np.uint8), self.classes])[numbers]
        if border:
            mask[borders(numbers, border)] = IGNORE_INDEX
        return mask[border : border + height, border : border + width]

    def objects(self, row: int, column: int, height: int, width: int) -> Int[np.ndarray, "{height} {width}"]:
        """Burns the numbers of the polygons, from 1, into a window; 0 outside. Number n has class `classes[n - 1]`."""
        window = self._grid.window(row, column, height, width)
        near = np.sort(self._tree.query(window.outline))
        if not len(near):
            return np.zeros((height, width), np.int32)
        return rasterize(
            zip(self._geometries[near], near + 1),
            out_shape=(height, width),
            transform=window.transform,
            all_touched=self._all_touched,
            dtype=np.int32,
        )


class Raster:
    """Labels in one band of a raster, whose values are the classes. Pixels without data are ignored.

    Values stay as they are if they are 0 to 254; else they are numbered in order, and `names` has them. The whole file
    is read once, block by block, for its values. Raises DataError.
    """

    def __init__(self, path: Path):
        self.path, self.scene = path, Scene(path)
        if self.scene.shape[2] != 1:
            raise problem(path, f"has {self.scene.shape[2]} bands; expected labels in one band, or a vector file")
        self.crs, self.bounds, self.count = self.scene.crs and self.scene.crs.to_wkt(), Grid.of(self.scene).bounds, 1
        data, found = self.scene.dataset, set()
        for _, window in data.block_windows(1):
            values, there = read_whole(data, path, window)
            found.update(np.unique(values[there]).tolist())
            if len(found) > MOST_CLASSES:
                raise problem(path, f"holds more than {MOST_CLASSES} values; expected classes")
        self.names, self._values = None, np.array(sorted(found), np.int64)
        self.values = {str(value) for value in found}
        if found and not 0 <= self._values[0] <= self._values[-1] <= MOST_CLASSES:
            self.names = tuple(str(value) for value in self._values)
        self.odd: Counter[str] = Counter()

    def on(self, grid: Grid) -> "Warped":
        """Brings the labels to a scene's pixels, by the nearest. Raises DataError if only one of them has a CRS."""
        Turn(self.path, self.crs, grid)
        return Warped(self.scene, grid, self._values if self.names else None)


class Warped:
    """Raster labels on the pixels of a scene.

    - `count`: 1 if the labels and the scene overlap, else 0
    """

    def __init__(self, scene: Scene, grid: Grid, numbered: Int[np.ndarray, " n"] | None):
        self._path, self._data, self._numbered = scene.path, warped(scene, grid, Resampling.nearest), numbered
        rows = range(0, grid.height, 256)
        parts = (self.read(row, 0, min(256, grid.height - row), grid.width) for row in rows)
        self.count = int(any((part != IGNORE_INDEX).any() for part in parts))

    def read(self, row: int, column: int, height: int, width: int) -> UInt8[np.ndarray, "{height} {width}"]:
        """Reads a window: class numbers, and 255 without data. Raises DataError for values that are not whole."""
        values, there = read_whole(self._data, self._path, Window(column, row, width, height))
        if self._numbered is not None:
            values = np.searchsorted(self._numbered, values)
        return np.where(there, values, IGNORE_INDEX).astype(np.uint8)


Labels = Polygons | Raster


def open_labels(path: Path, layer: str | None = None, field: str | None = None, **how: object) -> Labels:
    """Opens a vector file as `Polygons`, or a raster as `Raster`; arguments as for `Polygons`. Raises DataError."""
    if not path.exists():
        raise problem(path, "no such file")
    if is_vector(path):
        return Polygons(path, layer, field, **how)
    try:
        Scene(path).close()
    except Exception as error:  # GDAL's messages about damaged files may not even be text
        why = "is neither a vector file nor a raster that GDAL reads"
        raise problem(path, why, str(error) if isinstance(error, DataError) else "") from None
    if field is not None or layer is not None:
        raise problem(path, "is a raster, which has no attributes: leave out --class-field and --layer")
    return Raster(path)


def is_vector(path: Path) -> bool:
    """True if GDAL finds layers of a vector file."""
    try:
        return len(pyogrio.list_layers(path)) > 0
    except Exception:  # a damaged file raises many types; `open_labels` says what is wrong with it
        return False


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turns errors of GDAL and GEOS about a vector file into a DataError that names it."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # a damaged file raises many types
        raise problem(path, f"cannot be read ({error})") from None


def choose_layer(path: Path, layer: str | None) -> str:
    """Returns the name of a file's only layer, or checks the one asked for. Raises DataError."""
    names = [str(name) for name, kind in pyogrio.list_layers(path) if kind is not None]
    if layer is None and len(names) == 1:
        return names[0]
    if layer in names:
        return layer
    if layer is not None:
        raise problem(path, f"has no layer {layer!r}; found {few(names)}")
    raise problem(path, f"has {len(names)} layers with geometries: {few(names)}", "Give --layer." * bool(names))


def number_values(path: Path, field: str, found: Collection[str], asked: Sequence[str]) -> dict[str, int]:
    """Numbers the values of an attribute from 1, in the order of `asked` or else sorted; background is 0.

    Numbers are sorted as numbers. Raises DataError if there are none, or too many.
    """
    background = {value for value in found if is_background(value)} - set(asked)
    values = list(asked) or sort_values(set(found) - background)
    if not values:
        raise problem(path, f"{field} has no value to learn: {few(sort_values(found)) or 'all are empty'}")
    if len(values) >= MOST_CLASSES:
        what = f"{field} has {len(values)} values, such as {few(values[:3])}; expected {MOST_CLASSES - 1} at most"
        raise problem(path, what, "Give an attribute that holds classes, or choose with --class-values.")
    return {value: number for number, value in enumerate(values, 1)} | dict.fromkeys(background, 0)


def is_background(value: str) -> bool:
    """True for values that mean background: 0, or one of `BACKGROUND`."""
    return value == "0" or value.lower() in BACKGROUND


def sort_values(values: Iterable[str]) -> list[str]:
    """Sorts numbers as numbers, before texts."""

    def order(value: str) -> tuple[int, float, str]:
        try:
            return 0, float(value), value
        except ValueError:
            return 1, 0.0, value

    return sorted(values, key=order)


def value_text(value: object) -> str | None:
    """Returns the text of an attribute's value; None for none. 3.0 is "3"."""
    if value is None or value != value:
        return None
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value).strip() or None


def borders(numbers: Int[np.ndarray, "h w"], reach: int) -> Bool[np.ndarray, "h w"]:
    """True for pixels of polygons, numbered from 1, that are at most `reach` pixels from one of another number."""
    found = np.unique(numbers, return_inverse=True)[1].reshape(numbers.shape) + (numbers.min() > 0)
    square = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
    high = cv2.dilate(found.astype(np.float32), square)
    low = cv2.erode(np.where(found > 0, found, np.inf).astype(np.float32), square)
    return (found > 0) & (high != low)


def read_whole(data: rasterio.DatasetReader | WarpedVRT, path: Path, window: Window) -> tuple[np.ndarray, np.ndarray]:
    """Reads labels of a window, int64 [h w], and bool [h w] of pixels with data.

    Raises DataError for values that are not whole.
    """
    array, there = data.read(1, window=window), data.dataset_mask(window=window) != 0
    if array.dtype.kind == "f":
        there &= np.isfinite(array)
        if (odd := array[there & (array != np.trunc(array))]).size:
            raise problem(path, f"holds {odd[0]:g} ({odd.size} values like it); expected whole numbers as classes")
    return np.where(there, array, 0).astype(np.int64), there
