"""`python -m jaxseg.predict` on scenes: coordinates in, coordinates out."""

import json
import subprocess
import sys

import cv2
import numpy as np
import pytest
import tifffile

rasterio = pytest.importorskip("rasterio", reason="needs the extra geo")
pytest.importorskip("rasterio.shutil")

import pyogrio  # noqa: E402
import shapely  # noqa: E402
from rasterio.control import GroundControlPoint  # noqa: E402
from test_geo_raster import UTM, make, noise  # noqa: E402
from test_predict import command, files, make_run  # noqa: E402

from jaxseg.base import extra  # noqa: E402
from jaxseg.base.errors import UserError  # noqa: E402
from jaxseg.data.read.masks import PALETTE, ClassMap  # noqa: E402
from jaxseg.data.read.samples import Reading, read_image  # noqa: E402
from jaxseg.geo import maps  # noqa: E402
from jaxseg.geo.raster import Scene  # noqa: E402
from jaxseg.inference.predictor import Predictor  # noqa: E402
from jaxseg.inference.shards import shard_of  # noqa: E402

NAMES = ("background", "wheat", "ra<pe")
TILES = ["--tile", "32", "--overlap", "0.25"]
ODD = rasterio.crs.CRS.from_wkt('LOCAL_CS["site",UNIT["metre",1]]')


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on four bands of uint16, three classes, that was not trained."""
    folder = tmp_path_factory.mktemp("run")
    return folder, make_run(folder, Reading(ClassMap((0, 7, 300), NAMES), 4, dtype="uint16", order="bands"))


@pytest.fixture
def scene(tmp_path, rng):
    """A scene that is not square, in blocks, compressed, without data in a corner."""
    bands = noise(rng, 4, 90, 150, dtype="uint16")
    bands[:, :20, :30] = 0
    return make(tmp_path / "scene.tif", bands, nodata=0, tiled=True, blockxsize=32, blockysize=16, compress="deflate")


def whole(run, scene):
    """Probabilities of the scene in memory."""
    predictor = Predictor(run[1], Reading(channels=4, dtype="uint16", order="bands"), tile=32, overlap=0.25)
    return predictor.probabilities(read_image(scene, predictor.reading))


def info(path):
    """What rasterio's own command says of a file."""
    rio = [sys.executable, "-c", "from rasterio.rio.main import main_group; main_group()", "info", str(path)]
    return json.loads(subprocess.run(rio, capture_output=True, check=True).stdout)


def test_a_map_has_the_scenes_coordinates_and_in_windows_the_classes_of_memory(run, scene, tmp_path, capsys):
    assert command(run[0], scene, out=tmp_path / "out", more=TILES) == 0
    assert files(tmp_path / "out") == {"scene.tif", "scene.tif.aux.xml"}
    expected = whole(run, scene).argmax(-1)
    expected[:20, :30] = 255
    with rasterio.open(scene) as source, rasterio.open(tmp_path / "out/scene.tif") as found:
        np.testing.assert_array_equal(found.read(1), expected)
        assert (found.crs, found.transform, found.bounds) == (source.crs, source.transform, source.bounds)
        assert (found.nodata, found.dtypes, found.compression.value) == (255, ("uint8",), "DEFLATE")
        assert found.block_shapes == [(256, 256)]
        assert found.colormap(1)[1] == (*PALETTE[1], 255)
        assert found.colormap(1)[255][3] == 0
        assert {f"class_{i}": name for i, name in enumerate(NAMES)}.items() <= found.tags().items()
    assert "600 pixels have no data" in capsys.readouterr().out
    a, b = info(scene), info(tmp_path / "out/scene.tif")
    assert {key: a[key] for key in ("crs", "transform", "bounds", "lnglat", "shape")}.items() <= b.items()


def test_gdal_names_the_classes(run, scene, tmp_path):
    assert command(run[0], scene, out=tmp_path / "out", more=TILES) == 0
    rasterio.shutil.copy(tmp_path / "out/scene.tif", tmp_path / "all.vrt", driver="VRT")
    known = "".join((tmp_path / "all.vrt").read_text().split())
    assert "".join(f"<Category>{name}</Category>" for name in ("background", "wheat", "ra&lt;pe")) in known


@pytest.mark.parametrize("kind", ["uint8", "float16", "float32"])
def test_probabilities_are_bands_of_the_classes(run, scene, tmp_path, kind):
    more = [*TILES, "--probabilities", "--probability-type", kind]
    assert command(run[0], scene, out=tmp_path / "out", more=more) == 0
    p = whole(run, scene)
    p[:20, :30] = np.nan
    with rasterio.open(tmp_path / "out/probabilities/scene.tif") as found:
        assert found.descriptions == NAMES
        assert found.crs.to_epsg() == 32633
        values = np.ma.filled(found.read(masked=True).astype(np.float32), np.nan) * found.scales[0]
        np.testing.assert_allclose(
            np.moveaxis(values, 0, -1), p, atol={"uint8": 0.002, "float16": 3e-4, "float32": 0}[kind]
        )
    with tifffile.TiffFile(tmp_path / "out/probabilities/scene.tif") as file:
        assert file.pages[0].bitspersample == {"uint8": 8, "float16": 16, "float32": 32}[kind]


def test_cog_values_and_overlay_of_a_scene(run, scene, tmp_path, monkeypatch):
    monkeypatch.setattr("jaxseg.inference.maps.OVERLAY_SIDE", 50)
    assert command(run[0], scene, out=tmp_path / "classes", more=[*TILES, "--overlay"]) == 0
    assert command(run[0], scene, out=tmp_path / "values", more=[*TILES, "--cog", "--values", "--probabilities"]) == 0
    with rasterio.open(tmp_path / "classes/scene.tif") as a, rasterio.open(tmp_path / "values/scene.tif") as b:
        assert b.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert (b.dtypes, b.nodata, b.crs, b.transform) == (("uint16",), 255, a.crs, a.transform)
        np.testing.assert_array_equal(b.read(1), np.array([0, 7, 300, *[255] * 253])[a.read(1)])
    with rasterio.open(tmp_path / "values/probabilities/scene.tif") as found:
        assert found.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert found.scales == (1 / 254,) * 3
    assert cv2.imread(str(tmp_path / "classes/overlays/scene.png")).shape == (30, 50, 3)
    assert files(tmp_path / "values") == {"scene.tif", "probabilities/scene.tif"}


TURNED = rasterio.Affine(1.7, 1.5, 4e5, 1.0, -2.6, 5e6)


@pytest.mark.parametrize(
    "place",
    [
        {"transform": TURNED},
        {"transform": rasterio.Affine(0.5, 0, 4e5, 0, 0.5, 5e6)},
        {"crs": ODD},
        {"crs": "EPSG:4326", "transform": rasterio.transform.from_origin(14, 45, 1e-5, 1e-5)},
        {"crs": None},
        {"crs": None, "transform": None, "rpcs": None, "gcps": True},
    ],
    ids=["turned", "south up", "no EPSG code", "degrees", "no CRS", "ground control points"],
)
def test_any_coordinates_are_kept(run, rng, tmp_path, capsys, place):
    if place.pop("gcps", None):
        points = [GroundControlPoint(r, c, 10 + c / 9, 50 - r / 9) for r, c in ((0, 0), (0, 30), (40, 0), (40, 30))]
        place = {"gcps": points, "crs": "EPSG:4326", "transform": None}
    scene = make(tmp_path / "a.tif", noise(rng, 4, 40, 30, dtype="uint16"), **place)
    assert command(run[0], scene, out=tmp_path / "out", more=TILES) == 0
    with rasterio.open(scene) as source, rasterio.open(tmp_path / "out/a.tif") as found:
        assert (found.crs, found.transform, found.shape) == (source.crs, source.transform, source.shape)
        assert [p.asdict() | {"id": 0} for p in found.gcps[0]] == [p.asdict() | {"id": 0} for p in source.gcps[0]]
        assert found.gcps[1] == source.gcps[1]
    assert ("has no CRS" in capsys.readouterr().out) == (place.get("crs", 0) is None)


def test_a_color_jpeg_2000_and_a_png_with_a_world_file_give_geotiffs_and_a_plain_png_a_png(rng, tmp_path):
    make_run(tmp_path / "run", Reading())
    (tmp_path / "in").mkdir()
    make(tmp_path / "in/a.jp2", noise(rng, 3, 40, 40), driver="JP2OpenJPEG", photometric="RGB")
    for name in "bc":
        cv2.imwrite(str(tmp_path / f"in/{name}.png"), noise(rng, 20, 20, 3))
    (tmp_path / "in/b.pgw").write_text("0.5\n0\n0\n-0.5\n1000.25\n1999.75\n")
    assert command(tmp_path / "run", tmp_path / "in", out=tmp_path / "out") == 0
    assert files(tmp_path / "out") == {"a.tif", "a.tif.aux.xml", "b.tif", "b.tif.aux.xml", "c.png"}
    with rasterio.open(tmp_path / "out/a.tif") as a, rasterio.open(tmp_path / "out/b.tif") as b:
        assert a.crs.to_epsg() == 32633
        assert a.transform == UTM
        assert b.bounds == (1000, 1990, 1010, 2000)


def test_without_the_extra_the_map_is_a_png_and_a_line_says_so(run, scene, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(extra, "find_spec", lambda name: None)
    assert command(run[0], scene, out=tmp_path / "out") == 0
    assert files(tmp_path / "out") == {"scene.png"}
    assert "coordinates of 1 images are dropped: pip install 'jaxseg[geo]'" in capsys.readouterr().out
    assert command(run[0], scene, out=tmp_path / "out", more=["--vector", "gpkg"]) == 2
    assert "--vector needs rasterio, pyogrio, shapely, pyproj, skimage: pip install" in capsys.readouterr().err


def test_polygons_need_coordinates_and_every_image_without_is_named(run, scene, tmp_path, rng, capsys):
    for name in "ab":
        cv2.imwrite(str(tmp_path / f"{name}.png"), noise(rng, 20, 20, 3))
    assert command(run[0], scene, tmp_path / "[ab].png", out=tmp_path / "out", more=["--vector", "gpkg", "--cog"]) == 2
    error = capsys.readouterr().err
    assert all(f"{name}.png: has no coordinates, which --vector and --cog need" in error for name in "ab")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("format", ["gpkg", "shp"])
def test_polygons_are_those_of_the_map(run, scene, tmp_path, format, capsys):
    more = [*TILES, "--vector", format, "--probabilities", "--probability-type", "float32"]
    assert command(run[0], scene, out=tmp_path / "out", more=more) == 0
    about, _, shapes, fields = pyogrio.raw.read(tmp_path / f"out/scene.{format}")
    fields, shapes = dict(zip(about["fields"], fields)), shapely.from_wkb(shapes)
    with rasterio.open(tmp_path / "out/scene.tif") as file:
        classes = file.read(1)
    with rasterio.open(tmp_path / "out/probabilities/scene.tif") as file:
        p = file.read()
    assert about["crs"] == "EPSG:32633"
    assert set(fields["name"]) == {NAMES[i] for i in np.unique(classes) if i not in (0, 255)}
    for shape, kind, area, mean in zip(shapes, fields["class"], fields["area_m2"], fields["mean_prob"]):
        inside = rasterio.features.geometry_mask([shape], classes.shape, UTM, invert=True)
        assert set(classes[inside]) == {kind}
        assert area == shape.area == inside.sum() / 4
        assert mean == pytest.approx(p[kind][inside].mean(), abs=0.003)
    assert sum(fields["area_m2"]) == ((classes > 0) & (classes < 255)).sum() / 4
    assert f"{len(shapes)} polygons in" in capsys.readouterr().out


def test_simplified_sieved_and_separated(run, scene, tmp_path):
    more = [*TILES, "--vector", "geojson", "--simplify", "2", "--min-area", "20", "--instances"]
    assert command(run[0], scene, out=tmp_path / "out", more=more) == 0
    made = {"scene.tif", "scene.tif.aux.xml", "scene.geojson", "instances/scene.tif"}
    assert files(tmp_path / "out") == made
    about, _, _, fields = pyogrio.raw.read(tmp_path / "out/scene.geojson")
    assert about["crs"] in ("EPSG:4326", "OGC:CRS84")
    numbers = dict(zip(about["fields"], fields))["id"]
    with rasterio.open(tmp_path / "out/instances/scene.tif") as file:
        found, counts = np.unique(file.read(1), return_counts=True)
    np.testing.assert_array_equal(found, [0, *numbers])
    assert counts[1:].min() >= 80


def test_ground_control_points_alone_have_no_polygons(run, rng, tmp_path, capsys):
    points = [GroundControlPoint(r, c, 10 + c / 9, 50 - r / 9) for r, c in ((0, 0), (0, 30), (40, 0), (40, 30))]
    scene = make(
        tmp_path / "a.tif", noise(rng, 4, 40, 30, dtype="uint16"), gcps=points, crs="EPSG:4326", transform=None
    )
    assert command(run[0], scene, out=tmp_path / "out", more=["--vector", "gpkg"]) == 2
    assert "a.tif: has ground control points, but polygons need a transform" in capsys.readouterr().err
    assert files(tmp_path / "out") == set()


def test_a_stopped_prediction_leaves_no_half_map_and_goes_on(run, scene, tmp_path, monkeypatch, rng):
    make(tmp_path / "b.tif", noise(rng, 4, 90, 40, dtype="uint16"))
    right, calls = Predictor.bands, []

    def bands(self, image):
        calls.append(1)
        for number, band in enumerate(right(self, image)):
            yield band
            if len(calls) == 2 and number == 1:
                raise KeyboardInterrupt

    monkeypatch.setattr(Predictor, "bands", bands)
    more, out = [*TILES, "--vector", "gpkg"], tmp_path / "out"
    first = {"b.tif", "b.tif.aux.xml", "b.gpkg"}
    assert command(run[0], tmp_path / "b.tif", scene, out=out, more=more) == 130
    assert files(out) == first
    monkeypatch.undo()
    before = (out / "b.tif").stat().st_mtime_ns
    assert command(run[0], tmp_path / "b.tif", scene, out=out, more=[*more, "--skip-existing"]) == 0
    assert files(out) == first | {"scene.tif", "scene.tif.aux.xml", "scene.gpkg"}
    assert (out / "b.tif").stat().st_mtime_ns == before


def test_no_more_than_a_tile_of_the_scene_is_read_at_once(run, scene, tmp_path, monkeypatch):
    right, read = Scene.read, []
    monkeypatch.setattr(Scene, "read", lambda self, where, *bands: read.append(where) or right(self, where, *bands))
    more = [*TILES, "--vector", "gpkg", "--instances", "--overlay"]
    assert command(run[0], scene, out=tmp_path / "out", more=more) == 0
    sizes = [[len(range(*part.indices(size))) for part, size in zip(where, (90, 150))] for where in read]
    tiles = [size for size in sizes if max(size) > 1 and size[1] < 150]
    assert len(tiles) >= 20
    assert np.max(tiles) == 32
    assert max(rows for rows, _ in sizes[:-1]) <= 32, "the last one is the overlay's, thinned"


def test_a_map_that_may_exceed_4_gb_is_a_bigtiff(scene, tmp_path):
    with Scene(scene) as large:
        large.shape = (70_000, 70_000, 4)
        file = maps.open_map(tmp_path / "a.tif", large, 1, "uint8", nodata=255, sparse_ok=True)
        with pytest.raises(OSError, match="parts of it are missing"), file:
            pass
    assert (tmp_path / "a.tif").read_bytes()[:4] == b"II+\0"


def test_a_full_disk_is_no_map(run, scene, tmp_path, capsys, monkeypatch):
    right = maps._check

    def cut(path):
        path.write_bytes(path.read_bytes()[:-100])
        right(path)

    monkeypatch.setattr(maps, "_check", cut)
    assert command(run[0], scene, out=tmp_path / "out", more=TILES) == 2
    assert "scene.tif: cannot be written (parts of it are missing; is the disk full?)" in capsys.readouterr().err
    assert files(tmp_path / "out") == set()


def test_shards_share_the_scenes(run, rng, tmp_path, capsys, monkeypatch):
    (tmp_path / "in").mkdir()
    zones = {"a": 32632, "b": 32633, "c": 3035}
    for name, zone in zones.items():
        make(tmp_path / f"in/{name}.tif", noise(rng, 4, 16, 16, dtype="uint16"), crs=f"EPSG:{zone}")
    assert command(run[0], tmp_path / "in", out=tmp_path / "out", more=["--shard", "1/2"]) == 0
    assert {name[0] for name in files(tmp_path / "out")} == {"a", "c"}
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "1")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    assert command(run[0], tmp_path / "in", out=tmp_path / "out") == 0
    assert "part 2 of 2 of the images, by Open MPI" in capsys.readouterr().out
    assert {name[0] for name in files(tmp_path / "out")} == {"a", "b", "c"}
    for name, zone in zones.items():
        with rasterio.open(tmp_path / f"out/{name}.tif") as found:
            assert found.crs.to_epsg() == zone
    assert command(run[0], tmp_path / "in", out=tmp_path / "new", more=["--shard", "3/2", "--simplify", "1"]) == 2
    error = capsys.readouterr().err
    assert "--shard is 3/2; expected part/parts" in error
    assert "--simplify is about polygons" in error


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, (1, 1)),
        ({"SLURM_PROCID": "2", "SLURM_NTASKS": "4"}, (1, 1)),
        ({"SLURM_PROCID": "2", "SLURM_NTASKS": "4", "SLURM_STEP_ID": "0"}, (3, 4)),
        ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"}, (1, 1)),
    ],
    ids=["no launcher", "a batch script that srun did not start", "srun", "one process"],
)
def test_launchers(variables, expected):
    assert shard_of(None, variables)[:2] == expected
    with pytest.raises(UserError, match="--shard is 0/4"):
        shard_of("0/4", variables)
