"""Regions, polygons and objects of class maps, in blocks as at once."""

import json

import numpy as np
import pytest

rasterio = pytest.importorskip("rasterio", reason="needs the extra geo")

import cv2  # noqa: E402
import pyogrio  # noqa: E402
import pyproj  # noqa: E402
import shapely  # noqa: E402
from geo_tile_files import on_ground, some_fields, write_scene  # noqa: E402
from rasterio.features import rasterize, sieve  # noqa: E402
from rasterio.transform import from_origin  # noqa: E402
from skimage.measure import label  # noqa: E402
from test_geo_raster import make, noise  # noqa: E402

from jaxseg.base.errors import DataError  # noqa: E402
from jaxseg.geo import vectors  # noqa: E402
from jaxseg.geo.instances import AGREEMENT, HALO, separate  # noqa: E402
from jaxseg.geo.objects import ObjectScores  # noqa: E402
from jaxseg.geo.raster import Scene  # noqa: E402
from jaxseg.geo.regions import find_regions  # noqa: E402
from jaxseg.geo.sieve import merge_small  # noqa: E402

NAMES = ("background", "wheat", "rape", "oats")


def blobs(rng, height, width):
    """Classes 0 to 3 in blobs of all sizes, with a corner without data."""
    smooth = cv2.GaussianBlur(rng.normal(size=(height, width)).astype(np.float32), (0, 0), 2.5)
    classes = np.clip(smooth / smooth.std() + 1.5, 0, 3).astype(np.uint8)
    classes[:40, :70] = 255
    return classes


@pytest.fixture
def found(tmp_path):
    """Returns a function from classes to the regions, and the scene, of a map in UTM with pixels of 0.5 m."""
    opened = []

    def find(classes, probability=None, least=0, **how):
        path = write_scene(tmp_path / "map.tif", classes, tiled=True, blockxsize=256, blockysize=256)
        sure = None if probability is None else write_scene(tmp_path / "sure.tif", probability)
        opened.append(Scene(path))
        regions = find_regions(tmp_path / f"regions{len(opened)}.tif", path, opened[-1], sure, **how)
        return merge_small(regions, least, side=how.get("side", 256)) if least else regions, opened[-1]

    yield find
    for scene in opened:
        scene.close()


def numbers(regions, scene):
    return regions.read((0, 0, *scene.shape[:2]))


@pytest.mark.parametrize("least", [0, 60])
def test_regions_and_polygons_in_blocks_equal_those_at_once(found, rng, least):
    classes = blobs(rng, 300, 540)
    one, scene = found(classes, least=least, side=1024)
    several, _ = found(classes, least=least, side=256)
    np.testing.assert_array_equal(numbers(one, scene), numbers(several, scene))
    np.testing.assert_array_equal(one.pixels, several.pixels)
    a, b = vectors.polygonize(one, side=1024), vectors.polygonize(several, side=256)
    np.testing.assert_array_equal(a.numbers, b.numbers)
    assert shapely.equals_exact(shapely.normalize(a.shapes), shapely.normalize(b.shapes)).all()
    np.testing.assert_array_equal(shapely.area(a.shapes), one.pixels[1:])
    assert shapely.is_valid(a.shapes).all()


def test_small_regions_are_merged_as_gdals_sieve_does(found, rng):
    classes = blobs(rng, 300, 540)
    regions, scene = found(classes, least=80, side=256)
    expected = sieve(classes, 80, mask=classes != 255)
    expected[classes == 255] = 255
    inside = numbers(regions, scene)
    np.testing.assert_array_equal(np.where(inside > 0, regions.classes[inside], 255), expected)
    assert len(regions) == label(expected, background=255, connectivity=1).max()
    assert regions.pixels[1:].min() >= 80


def test_a_small_region_that_touches_no_other_is_dropped(found):
    classes = np.full((20, 20), 255, np.uint8)
    classes[2:4, 2:4], classes[10:18, 10:18] = 1, 2
    regions, _ = found(classes, least=5)
    assert regions.pixels.tolist() == [0, 64]
    assert regions.classes.tolist() == [0, 2]


def test_the_probability_of_a_region_is_the_mean_of_its_own_pixels(found, rng):
    classes, p = np.zeros((30, 40), np.uint8), rng.integers(100, 254, (30, 40), dtype=np.uint8)
    classes[5:20, 5:30], classes[10, 10] = 1, 2
    regions, scene = found(classes, p, least=2)
    assert regions.classes.tolist() == [0, 0, 1]
    assert numbers(regions, scene)[10, 10] == 2
    assert regions.probability[2] == pytest.approx(p[classes == 1].mean() / 254)


def test_simplified_neighbors_share_their_borders(found, rng):
    regions, _ = found(blobs(rng, 120, 150), least=20)
    jagged = vectors.polygonize(regions)
    smooth = vectors.simplified(jagged, 2)
    assert shapely.coverage_is_valid(smooth.shapes)
    assert shapely.get_num_coordinates(smooth.shapes).sum() < 0.5 * shapely.get_num_coordinates(jagged.shapes).sum()
    assert shapely.area(smooth.shapes).sum() == pytest.approx(regions.pixels.sum(), rel=0.02)
    assert not shapely.coverage_is_valid(shapely.simplify(jagged.shapes, 2)), "plain simplification breaks borders"


@pytest.mark.parametrize(
    ("crs", "pixel", "expected"),
    [
        ("EPSG:32633", 0.5, 0.25),
        ("EPSG:4326", 1e-5, None),
        ("EPSG:3857", 1, None),
        ("EPSG:2263", 1, 0.3048006**2),
        ('LOCAL_CS["site",UNIT["foot",0.3048]]', 1, 0.3048**2),
    ],
    ids=["meters", "degrees", "web Mercator", "feet", "a local one"],
)
def test_areas_are_those_on_the_ground(crs, pixel, expected):
    crs, degrees = pyproj.CRS(crs), pyproj.CRS("EPSG:4326")
    center = {"EPSG:2263": (-74, 40.7)}.get(crs.to_string(), (14, 45))
    x, y = 0, 0
    if crs.geodetic_crs:
        x, y = pyproj.Transformer.from_crs(degrees, crs, always_xy=True).transform(*center)
    box = np.array([shapely.box(x, y, x + pixel, y + pixel)])
    if expected is None:
        there = vectors.reprojected(box, crs, degrees)
        expected = pyproj.Geod(ellps="WGS84").geometry_area_perimeter(shapely.orient_polygons(there)[0])[0]
    assert vectors.areas(box, crs)[0] == pytest.approx(expected, rel=1e-3)
    assert np.isnan(vectors.areas(box, None)).all()


@pytest.mark.parametrize("format", vectors.DRIVERS)
def test_every_format_holds_polygons_with_holes_and_their_fields(found, tmp_path, format):
    classes = np.zeros((30, 40), np.uint8)
    classes[5:25, 5:35], classes[10:15, 10:20] = 1, 0
    regions, scene = found(classes)
    polygons = vectors.polygonize(regions, left_out=(0,))
    assert vectors.write(tmp_path / f"a.{format}", scene, polygons, regions, ("background", "blé")) == 1
    about, _, shapes, fields = pyogrio.raw.read(tmp_path / f"a.{format}")
    shape, fields = shapely.from_wkb(shapes)[0], {key: value[0] for key, value in zip(about["fields"], fields)}
    assert fields == {"id": 2, "class": 1, "name": "blé", "area_m2": 137.5, "mean_prob": 1}
    assert pyogrio.list_layers(tmp_path / f"a.{format}")[0, 0] == "a"
    expected = on_ground(shapely.box(5, 5, 35, 25) - shapely.box(10, 10, 20, 15))
    if format == "geojson":
        utm = vectors.reprojected(np.array([shape]), pyproj.CRS("EPSG:4326"), vectors.crs_of(scene))[0]
        assert shapely.hausdorff_distance(utm, expected) < 0.01
        text = json.loads((tmp_path / "a.geojson").read_text(encoding="utf-8"))
        assert "crs" not in text
        shell, hole = (shapely.LinearRing(ring) for ring in text["features"][0]["geometry"]["coordinates"])
        assert shell.is_ccw
        assert not hole.is_ccw
    else:
        assert about["crs"] == "EPSG:32633"
        assert shape.equals(expected)


def test_no_polygons_are_a_file_without_features(found, tmp_path):
    regions, scene = found(np.zeros((8, 8), np.uint8))
    polygons = vectors.simplified(vectors.polygonize(regions, left_out=(0,)), 2)
    assert vectors.write(tmp_path / "a.gpkg", scene, polygons, regions, NAMES) == 0
    assert pyogrio.read_info(tmp_path / "a.gpkg", force_feature_count=True)["features"] == 0


def test_a_crs_without_a_code_is_kept_and_one_that_is_missing_is_none(tmp_path, found, rng):
    wkt = pyproj.CRS("+proj=laea +lat_0=52.3 +lon_0=10.7 +ellps=GRS80").to_wkt()
    for crs in (wkt, None):
        path = make(tmp_path / "a.tif", noise(rng, 1, 8, 8), crs=crs)
        with Scene(path) as scene:
            regions = find_regions(tmp_path / "r.tif", path, scene)
            polygons = vectors.polygonize(regions)
            names = [str(i) for i in range(256)]
            vectors.write(tmp_path / "a.gpkg", scene, polygons, regions, names)
            if crs is None:
                with pytest.raises(DataError, match="has no place on Earth, but GeoJSON holds longitude and latitude"):
                    vectors.write(tmp_path / "a.geojson", scene, polygons, regions, names)
        about, _, _, fields = pyogrio.raw.read(tmp_path / "a.gpkg")
        areas = dict(zip(about["fields"], fields))["area_m2"]
        if crs:
            assert pyproj.CRS(about["crs"]).equals(pyproj.CRS(wkt))
            np.testing.assert_array_equal(areas, regions.pixels[1:] / 4)
        else:
            assert about["crs"] is None or "Undefined" in about["crs"] or "Unknown" in about["crs"]
            assert np.isnan(areas).all()
        (tmp_path / "a.gpkg").unlink()


def test_polygons_to_a_map_and_back_are_equal_within_a_pixel(found, rng):
    pixels = [field for field in some_fields(rng) if field.within(shapely.box(0, 0, 100, 100))]
    apart = []
    for field in pixels:
        if all(field.distance(other) > 1.5 for other in apart):
            apart.append(field)
    classes = rasterize([(field, 1) for field in apart], out_shape=(100, 100), dtype="uint8")
    regions, scene = found(classes)
    back = vectors.polygonize(regions, left_out=(0,)).shapes
    assert len(back) == len(apart) >= 4
    order = shapely.STRtree(back).nearest(shapely.centroid(apart))
    ground = vectors.place(back[order], scene.transform)
    distances = shapely.hausdorff_distance(ground, [on_ground(field) for field in apart])
    assert distances.max() <= 0.5 * np.sqrt(2), "a pixel has a side of 0.5 m"


def touching(side=64, count=5):
    """Fields of `side` pixels in rows and columns, apart by paths that are open in the middle of each border."""
    field = np.ones((side, side), np.uint8)
    field[:2], field[:, :2] = 0, 0
    gap = slice(side // 2 - 3, side // 2 + 3)
    field[:2, gap], field[gap, :2] = 1, 1
    classes = np.tile(field, (count, count))
    classes[:2], classes[:, :2] = 0, 0
    return classes


@pytest.mark.parametrize("by", ["distance", "probability"])
@pytest.mark.parametrize("side", [256, 1024])
def test_touching_fields_are_separated_also_across_blocks(found, by, side):
    classes = touching()
    sure = np.where(classes > 0, 200, 254).astype(np.uint8)
    for row in range(0, 320, 64):
        sure[row : row + 4] = sure[:, row : row + 4] = 140
    plain, _ = found(classes, sure, side=side)
    assert (plain.classes[1:] == 1).sum() == 1
    how = {"labeler": separate(by, left_out=(0,)), "halo": HALO, "agreement": AGREEMENT}
    apart, scene = found(classes, sure, side=side, **how)
    fields = [n for n in range(1, len(apart) + 1) if apart.classes[n] == 1]
    assert len(fields) == 25
    inside = numbers(apart, scene)
    for row in range(5):
        for column in range(5):
            part = inside[row * 64 + 5 : row * 64 + 60, column * 64 + 5 : column * 64 + 60]
            assert (part == part[0, 0]).mean() > 0.99
    assert shapely.coverage_is_valid(vectors.simplified(vectors.polygonize(apart), 2).shapes)


def test_object_scores_of_a_worked_example():
    true = np.zeros((10, 40), int)
    true[:, :10], true[:, 10:20], true[:, 20:30], true[:, 30:] = 1, 2, 3, 4
    found = true.copy()
    found[:5, :10] = 9  # divided into halves: IoU 0.5 is no match
    found[:, 10:30] = 2  # two melt into one: IoU 0.5
    found[0, 30:] = 0
    scores = ObjectScores()
    for rows in (slice(0, 4), slice(4, 10)):
        scores.add(found[rows], true[rows], np.ones_like(true[rows], bool))
    result = scores.summary()
    assert (result["predicted"], result["true"], result["matched"]) == (4, 4, 1)
    assert (result["precision"], result["recall"], result["f1"]) == (0.25, 0.25, 0.25)
    assert result["iou"] == pytest.approx(0.9)
    assert result["over_segmentation"] == pytest.approx((0.5 + 0 + 0 + 0.1) / 4)
    assert result["under_segmentation"] == pytest.approx((0 + 0.5 + 0.5 + 0) / 4)


def test_object_scores_without_objects_are_undefined_and_ignored_pixels_do_not_count():
    scores = ObjectScores()
    assert np.isnan(scores.summary()["f1"])
    ones, valid = np.ones((4, 4), int), np.zeros((4, 4), bool)
    scores.add(ones, ones, valid)
    assert scores.summary()["true"] == 0
    valid[:2] = True
    half = ones.copy()
    half[2:] = 0
    scores.add(half, ones, valid)
    assert scores.summary()["iou"] == 1


def test_one_geojson_of_a_mosaic_has_polygons_over_the_borders_of_its_tiles(tmp_path, found):
    """A VRT joins tiles into one scene."""
    classes = np.zeros((20, 40), np.uint8)
    classes[5:15, 5:35] = 1
    sources = ""
    for i, part in enumerate((classes[:, :20], classes[:, 20:])):
        write_scene(tmp_path / f"{i}.tif", part, transform=from_origin(451_000 + i * 10, 5_405_000, 0.5, 0.5))
        sources += (
            f'<SimpleSource><SourceFilename relativeToVRT="1">{i}.tif</SourceFilename><SourceBand>1</SourceBand>'
            f'<SrcRect xOff="0" yOff="0" xSize="20" ySize="20"/>'
            f'<DstRect xOff="{20 * i}" yOff="0" xSize="20" ySize="20"/></SimpleSource>'
        )
    place = "<GeoTransform>451000, 0.5, 0, 5405000, 0, -0.5</GeoTransform><SRS>EPSG:32633</SRS>"
    (tmp_path / "all.vrt").write_text(
        f'<VRTDataset rasterXSize="40" rasterYSize="20">{place}<VRTRasterBand dataType="Byte" band="1">{sources}'
        "</VRTRasterBand></VRTDataset>"
    )
    with Scene(tmp_path / "all.vrt") as scene:
        regions = find_regions(tmp_path / "r.tif", tmp_path / "all.vrt", scene)
        polygons = vectors.polygonize(regions, left_out=(0,))
        assert vectors.write(tmp_path / "all.geojson", scene, polygons, regions, NAMES) == 1
    assert polygons.shapes[0].equals(shapely.box(5, 5, 35, 15))
