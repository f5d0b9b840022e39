"""Labels with coordinates become masks: equal to rasterizing at once, in any CRS, and never silently empty."""

import numpy as np
import pytest

pytest.importorskip("rasterio")

import rasterio
import shapely
from geo_tile_files import LONLAT, NORTH_UP, ROTATED, SOUTH_UP, UTM32, UTM33, on_ground, some_fields
from geo_tile_files import write_polygons as polygons
from geo_tile_files import write_scene as scene
from rasterio.features import rasterize
from rasterio.warp import transform_geom

from jaxseg.base.errors import DataError
from jaxseg.geo.burn import borders, number_values, open_labels, value_text
from jaxseg.geo.grid import Grid

SIDE = 100
TRANSFORMS = {"north-up": NORTH_UP, "south-up": SOUTH_UP, "rotated": ROTATED}


def grid_of(transform=NORTH_UP, crs=UTM33, side=SIDE):
    return Grid(crs and rasterio.crs.CRS.from_user_input(crs), transform, side, side)


def stitched(placed, side=SIDE, step=32):
    """Reads a scene window by window."""
    mask = np.full((side, side), 77, np.uint8)
    for row, column in np.ndindex(-(-side // step), -(-side // step)):
        top, left = row * step, column * step
        height, width = min(step, side - top), min(step, side - left)
        mask[top : top + height, left : left + width] = placed.read(top, left, height, width)
    return mask


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize("all_touched", [False, True], ids=["centers", "all_touched"])
def test_windows_of_polygons_equal_rasterizing_at_once(tmp_path, rng, transform, all_touched):
    fields = [on_ground(field, transform) for field in some_fields(rng)]
    classes = [int(n) for n in rng.integers(1, 5, len(fields))]
    path = polygons(tmp_path / "fields.gpkg", fields, kind=classes)
    labels = open_labels(path, field="kind", all_touched=all_touched)
    whole = rasterize(zip(fields, classes), (SIDE, SIDE), transform=transform, all_touched=all_touched, dtype=np.uint8)
    assert len(np.unique(whole)) == 5
    np.testing.assert_array_equal(stitched(labels.on(grid_of(transform))), whole)
    assert labels.names == ("background", "1", "2", "3", "4")


@pytest.mark.parametrize("crs", [LONLAT, UTM32, "+proj=laea +lat_0=50 +lon_0=14 +ellps=WGS84"])
def test_labels_of_another_crs_are_turned_to_the_scenes(tmp_path, rng, crs):
    fields = [on_ground(field) for field in some_fields(rng)]
    there = [shapely.geometry.shape(transform_geom(UTM33, crs, shapely.geometry.mapping(f))) for f in fields]
    placed = open_labels(polygons(tmp_path / "fields.gpkg", there, crs)).on(grid_of())
    whole = rasterize(fields, (SIDE, SIDE), transform=NORTH_UP, dtype=np.uint8)
    assert (stitched(placed) != whole).mean() < 0.001  # a pixel whose center lies on an edge
    assert placed.count == sum(field.intersects(grid_of().outline) for field in fields)


def test_straight_edges_of_another_crs_are_bent(tmp_path):
    west, east = 15.0, 15.6
    area = shapely.box(west, 48.0, east, 48.7)
    path = polygons(tmp_path / "area.gpkg", [area], LONLAT)
    x, y = rasterio.warp.transform(LONLAT, UTM33, [(west + east) / 2], [48.7])
    there = rasterio.Affine(1, 0, x[0] - 20_000, 0, -1, y[0] + 20_000)
    grid = Grid(rasterio.crs.CRS.from_string(UTM33), there, 40_000, 40_000)
    mask = open_labels(path).on(grid).read(19_980, 19_980, 40, 40)
    assert (mask[:19] == 0).all()  # the chord of the parallel lies 43 m to the south
    assert (mask[21:] == 1).all()


@pytest.mark.parametrize(
    ("driver", "name"), [("GeoJSON", "f.geojson"), ("ESRI Shapefile", "f.shp"), ("FlatGeobuf", "f.fgb")]
)
def test_vector_formats_give_equal_masks(tmp_path, rng, driver, name):
    fields = [on_ground(field) for field in some_fields(rng, 9)]
    uses = ["maize", "wheat", "Ölrettich"] * 3
    masks = []
    for path, kind in ((tmp_path / "f.gpkg", "GPKG"), (tmp_path / name, driver)):
        if kind == "GeoJSON":
            fields = [
                shapely.geometry.shape(transform_geom(UTM33, LONLAT, shapely.geometry.mapping(f))) for f in fields
            ]
        crs = LONLAT if kind == "GeoJSON" else UTM33
        labels = open_labels(polygons(path, fields, crs, kind, use=uses), field="use")
        assert labels.names == ("background", "maize", "wheat", "Ölrettich")
        masks.append(labels.on(grid_of()).read(0, 0, SIDE, SIDE))
    different = (
        (masks[0] > 0) != (masks[1] > 0) if driver == "FlatGeobuf" else masks[0] != masks[1]
    )  # it sorts features
    assert different.mean() <= (0.001 if driver == "GeoJSON" else 0)


# Classes


def test_values_are_sorted_and_background_is_class_0(tmp_path):
    number = {"wheat": 2, "maize": 1, "Background": 0, "0": 0}
    assert number_values(tmp_path, "use", ["wheat", "maize", "Background", "0"], ()) == number
    assert number_values(tmp_path, "use", ["10", "9", "2.5", "b", "a"], ()) == {
        "2.5": 1,
        "9": 2,
        "10": 3,
        "a": 4,
        "b": 5,
    }
    assert number_values(tmp_path, "use", ["a", "b", "c"], ("c", "a")) == {"c": 1, "a": 2}
    assert number_values(tmp_path, "use", ["0", "1"], ("0", "1")) == {"0": 1, "1": 2}


def test_texts_of_values():
    values = [3.0, np.float32(2.0), np.int64(7), 2.5, " wheat ", "", None, float("nan")]
    assert [value_text(value) for value in values] == ["3", "2", "7", "2.5", "wheat", None, None, None]


def test_polygons_without_a_class_are_ignored_and_counted(tmp_path):
    boxes = [on_ground(shapely.box(10 * i, 0, 10 * i + 10, 10)) for i in range(5)]
    path = polygons(tmp_path / "f.gpkg", boxes, use=["wheat", None, "maize", "rye", "rye"])
    labels = open_labels(path, field="use", values=("maize", "wheat"))
    mask = labels.on(grid_of()).read(0, 0, 10, 60)
    assert mask[0, 5::10].tolist() == [2, 255, 1, 255, 255, 0]
    assert dict(labels.odd) == {"no value": 1, "rye": 2}


def test_later_polygons_cover_earlier_ones(tmp_path):
    boxes = [on_ground(shapely.box(0, 0, 10, 10)), on_ground(shapely.box(4, 0, 6, 10))]
    mask = open_labels(polygons(tmp_path / "f.gpkg", boxes, n=[7, 3]), field="n").on(grid_of()).read(0, 0, 1, 12)
    assert mask[0].tolist() == [2, 2, 2, 2, 1, 1, 2, 2, 2, 2, 0, 0]


def test_borders_between_touching_polygons_are_ignored_across_windows(tmp_path):
    boxes = [shapely.box(0, 0, 31, 8), shapely.box(31, 0, 50, 8), shapely.box(60, 0, 70, 8)]
    placed = open_labels(polygons(tmp_path / "f.gpkg", [on_ground(b) for b in boxes]), border=2).on(grid_of())
    mask = stitched(placed)
    assert np.flatnonzero(mask[4] == 255).tolist() == [29, 30, 31, 32]
    assert np.flatnonzero(mask[4] == 0).tolist() == [*range(50, 60), *range(70, 100)]
    np.testing.assert_array_equal(mask, placed.read(0, 0, SIDE, SIDE))


def test_borders_equal_a_search_of_all_pixels_around(rng):
    numbers = np.kron(rng.integers(0, 5, (5, 5)), np.ones((3, 3), int)).astype(np.int32)
    for reach in (1, 2):
        expected = np.zeros(numbers.shape, bool)
        for row, column in np.argwhere(numbers):
            around = numbers[max(0, row - reach) : row + reach + 1, max(0, column - reach) : column + reach + 1]
            expected[row, column] = len(set(around[around > 0])) > 1
        np.testing.assert_array_equal(borders(numbers, reach), expected)


# Rasters


def test_raster_labels_on_the_same_pixels_are_taken_as_they_are(tmp_path, rng):
    values = rng.integers(0, 5, (SIDE, SIDE), np.uint8)
    labels = open_labels(scene(tmp_path / "l.tif", values))
    assert labels.names is None
    np.testing.assert_array_equal(stitched(labels.on(grid_of())), values)


def test_nodata_of_raster_labels_is_ignored_never_class_0(tmp_path):  # complaint 5 of users of other tools
    values = np.array([[0, 1], [2, 9]], np.int16).repeat(50, 0).repeat(50, 1)
    labels = open_labels(scene(tmp_path / "l.tif", values, nodata=9))
    assert np.unique(labels.on(grid_of()).read(0, 0, SIDE, SIDE)).tolist() == [0, 1, 2, 255]
    assert labels.on(grid_of()).read(60, 60, 1, 1).tolist() == [[255]]
    nan = np.where(values == 9, np.nan, values).astype(np.float32)
    assert open_labels(scene(tmp_path / "n.tif", nan)).on(grid_of()).read(60, 60, 1, 1).tolist() == [[255]]


@pytest.mark.parametrize("nodata", [None, 9])
def test_a_scene_beyond_its_raster_labels_is_ignored_there(tmp_path, nodata):
    moved = rasterio.Affine(0.5, 0, 451_000 + 10, 0, -0.5, 5_405_000)  # 20 pixels to the east
    labels = open_labels(scene(tmp_path / "l.tif", np.ones((SIDE, SIDE), np.uint8), transform=moved, nodata=nodata))
    mask = stitched(labels.on(grid_of()))
    assert (mask[:, :20] == 255).all()
    assert (mask[:, 20:] == 1).all()


def test_raster_labels_of_another_crs_and_resolution_are_taken_by_the_nearest(tmp_path):
    x, y = rasterio.warp.transform(UTM33, LONLAT, [451_000], [5_405_000])
    values = np.zeros((300, 300), np.uint8)
    values[:, 120:] = 3
    there = rasterio.Affine(3e-6, 0, x[0] - 20 * 3e-6, 0, -3e-6, y[0] + 20 * 3e-6)
    mask = stitched(open_labels(scene(tmp_path / "l.tif", values, LONLAT, there)).on(grid_of()))
    east = rasterio.warp.transform(LONLAT, UTM33, [x[0] + 100 * 3e-6], [y[0]])[0][0]
    edge = round((east - 451_000) / 0.5)
    assert (mask[:, : edge - 2] == 0).all()
    assert (mask[:, edge + 2 :] == 3).all()


@pytest.mark.parametrize(("found", "names"), [([0, 255], ("0", "255")), ([-1, 4, 300], ("-1", "4", "300"))])
def test_values_that_are_no_class_numbers_are_numbered(tmp_path, found, names):
    values = np.array(found, np.int16)[np.arange(SIDE * SIDE).reshape(SIDE, SIDE) % len(found)]
    labels = open_labels(scene(tmp_path / "l.tif", values))
    assert labels.names == names
    np.testing.assert_array_equal(labels.on(grid_of()).read(0, 0, 9, 9), np.searchsorted(found, values[:9, :9]))


# Faults


def faults(tmp_path):
    box = on_ground(shapely.box(0, 0, 9, 9))
    two = polygons(tmp_path / "two.gpkg", [box], layer="a")
    polygons(two, [box], layer="b")
    (tmp_path / "text.gpkg").write_text("no labels")
    return {
        "gone.gpkg: no such file": {"path": tmp_path / "gone.gpkg"},
        "text.gpkg: is neither a vector file nor a raster": {"path": tmp_path / "text.gpkg"},
        "has 2 layers with geometries: a, b.*Give --layer": {"path": two},
        "has no layer 'c'; found a, b": {"path": two, "layer": "c"},
        "has no attribute 'use'; found n": {"path": polygons(tmp_path / "n.gpkg", [box], n=[1]), "field": "use"},
        "n has no value to learn: 0": {"path": polygons(tmp_path / "0.gpkg", [box], n=[0]), "field": "n"},
        "has no value to learn: all are empty": {"path": polygons(tmp_path / "v.gpkg", [box], n=[None]), "field": "n"},
        "n has 300 values": {"path": polygons(tmp_path / "m.gpkg", [box] * 300, n=list(range(1, 301))), "field": "n"},
        "has 2 bands; expected labels in one": {"path": scene(tmp_path / "2.tif", np.zeros((9, 9, 2), np.uint8))},
        "holds 0.5 .81 values like it.; expected whole": {"path": scene(tmp_path / "f.tif", np.full((9, 9), 0.5))},
        "has no attributes: leave out --class-field": {
            "path": scene(tmp_path / "1.tif", np.zeros((9, 9), np.uint8)), "field": "use",
        },
    }  # fmt: skip


def test_labels_that_cannot_be_used_are_named_with_the_reason(tmp_path):
    for message, arguments in faults(tmp_path).items():
        with pytest.raises(DataError, match=f"(?s){message}"):
            open_labels(**arguments)


@pytest.mark.filterwarnings("ignore:.*:RuntimeWarning", "ignore:.*:pytest.PytestUnraisableExceptionWarning")
def test_damaged_files_are_named(tmp_path, rng):
    path = polygons(tmp_path / "f.gpkg", [on_ground(f) for f in some_fields(rng)], use=["a"] * 25)
    content, errors = path.read_bytes(), []
    for flips in (20, 300, 2000) * 4:
        damaged = np.frombuffer(content, np.uint8).copy()
        damaged[rng.integers(0, len(damaged), flips)] ^= 0xFF
        path.write_bytes(damaged.tobytes())
        try:
            open_labels(path, field="use").on(grid_of()).read(0, 0, SIDE, SIDE)
        except DataError as error:
            errors.append(str(error))
    assert len(errors) > 6
    assert all("f.gpkg: " in error for error in errors)


def test_points_are_refused(tmp_path):
    path = polygons(tmp_path / "p.gpkg", [on_ground(shapely.Point(5, 5))])
    with pytest.raises(DataError, match="holds Points; expected polygons"):
        open_labels(path).on(grid_of())


@pytest.mark.parametrize("of_labels", [UTM33, None])
def test_one_crs_alone_is_refused(tmp_path, of_labels):
    grid = grid_of(crs=None if of_labels else UTM33)
    path = polygons(tmp_path / "f.fgb", [on_ground(shapely.box(0, 0, 9, 9))], of_labels, "FlatGeobuf")
    with pytest.raises(DataError, match="has no coordinate reference system, but"):
        open_labels(path).on(grid)


def test_without_any_crs_coordinates_are_compared_as_they_are(tmp_path):
    path = polygons(tmp_path / "f.fgb", [on_ground(shapely.box(0, 0, 9, 9))], None, "FlatGeobuf")
    assert open_labels(path).on(grid_of(crs=None)).read(0, 0, 20, 20).sum() == 81
