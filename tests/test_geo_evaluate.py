"""`python -m jaxseg.evaluate` on a scene with polygons or a raster of labels."""

import json

import numpy as np
import pytest

rasterio = pytest.importorskip("rasterio", reason="needs the extra geo")

import shapely.affinity  # noqa: E402
from geo_tile_files import UTM32, on_ground, write_polygons, write_scene  # noqa: E402
from test_devices import together  # noqa: E402
from test_predict import make_run  # noqa: E402

from jaxseg import evaluate  # noqa: E402
from jaxseg.data.read.masks import ClassMap  # noqa: E402
from jaxseg.data.read.samples import Reading  # noqa: E402
from jaxseg.geo import vectors  # noqa: E402
from jaxseg.inference.predictor import Predictor  # noqa: E402

CLASSES = np.zeros((90, 120), np.uint8)
CLASSES[10:40, 10:50], CLASSES[10:40, 50:100], CLASSES[60:80, 20:40] = 1, 2, 1
BOXES = [shapely.box(10, 10, 50, 40), shapely.box(50, 10, 100, 40), shapely.box(20, 60, 40, 80)]
READING = Reading(ClassMap((0, 7, 9), ("background", "wheat", "rape")), 1, order="bands")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    make_run(folder, READING)
    return folder


@pytest.fixture
def scene(tmp_path, monkeypatch):
    """A scene of which the prediction is CLASSES, but for one row of the first field."""
    said = CLASSES.copy()
    said[39, 10:50] = 0

    def class_bands(self, image):
        for top in range(0, 90, 50):
            part = said[top : top + 50].copy()
            yield slice(top, top + len(part)), part, np.eye(3, dtype=np.float32)[part]

    monkeypatch.setattr(Predictor, "class_bands", class_bands)
    return write_scene(tmp_path / "scene.tif", CLASSES * 80 + 5)


def score(run, scene, tmp_path, *flags):
    assert evaluate.main([str(run), str(scene), "-o", str(tmp_path / "out"), *map(str, flags)]) == 0
    return json.loads((tmp_path / "out/metrics.json").read_text(encoding="utf-8"))


def labels(tmp_path, **more):
    shapes = [on_ground(box) for box in BOXES]
    if crs := more.pop("crs", None):
        there = [
            vectors.reprojected(np.array([s]), vectors.pyproj.CRS("EPSG:32633"), vectors.pyproj.CRS(crs))[0]
            for s in shapes
        ]
        return write_polygons(tmp_path / "labels.gpkg", there, crs=crs, use=["wheat", "rape", "7"])
    return write_polygons(tmp_path / "labels.gpkg", shapes, use=["wheat", "rape", "7"])


@pytest.mark.parametrize("crs", [None, UTM32], ids=["its own CRS", "another CRS"])
def test_a_scene_is_scored_against_polygons(run, scene, tmp_path, crs, capsys):
    found = score(run, scene, tmp_path, "--labels", labels(tmp_path, crs=crs), "--class-field", "use")
    confusion = np.array(found["confusion_matrix"])
    assert confusion.sum() == CLASSES.size
    assert confusion[1, 0] == pytest.approx(40, abs=8 if crs else 0)
    assert found["objects"] | {"iou": 0, "over_segmentation": 0, "under_segmentation": 0} == {
        **dict.fromkeys(("predicted", "true", "matched"), 3),
        **dict.fromkeys(("precision", "recall", "f1"), 1.0),
        **dict.fromkeys(("iou", "over_segmentation", "under_segmentation"), 0),
    }
    assert found["objects"]["iou"] == pytest.approx((29 / 30 + 2) / 3, abs=0.02 if crs else 1e-6)
    assert "objects, matched at IoU over 0.5" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "out").iterdir()} > {"metrics.json", "per_image.csv", "worst.png"}


def test_a_raster_of_labels_holds_mask_values_and_its_regions_are_objects(run, scene, tmp_path, capsys):
    values = np.array([0, 7, 9], np.uint8)[CLASSES]
    values[:5] = 77  # no value of the run
    path = write_scene(tmp_path / "labels.tif", values)
    found = score(run, scene, tmp_path, "--labels", path)
    assert np.array(found["confusion_matrix"]).sum() == CLASSES.size - 5 * 120
    assert (found["objects"]["true"], found["objects"]["matched"]) == (3, 3)
    assert "it holds 77; the run's classes are background, wheat, rape, in masks 0, 7, 9" in capsys.readouterr().out


def test_pixels_without_data_do_not_count(run, scene, tmp_path):
    values = CLASSES * 80 + 5
    values[:8] = 77
    scene = write_scene(tmp_path / "gap.tif", values, nodata=77)
    found = score(run, scene, tmp_path, "--labels", labels(tmp_path), "--class-field", "use")
    assert np.array(found["confusion_matrix"]).sum() == CLASSES.size - 8 * 120


def test_pixels_outside_of_the_labeled_area_do_not_count(run, scene, tmp_path):
    area = write_polygons(tmp_path / "area.gpkg", [on_ground(shapely.box(0, 0, 60, 90))])
    found = score(run, scene, tmp_path, "--labels", labels(tmp_path), "--class-field", "use", "--aoi", area)
    assert np.array(found["confusion_matrix"]).sum() == 60 * 90
    assert found["objects"]["true"] == 3


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "is a file; give --labels"),
        (["--labels", "LABELS"], "Give --class-field"),
        (["--labels", "LABELS", "--class-field", "use", "--split", "all"], "--split all: a scene is scored as a whole"),
        (["--labels", "LABELS", "--class-field", "crop"], "no attribute 'crop'; found use"),
        (["--labels", "FAR", "--class-field", "use"], "EPSG:32633"),
        (
            ["--labels", "OTHER", "--class-field", "use"],
            "use holds oats; the run's classes are background, wheat, rape",
        ),
    ],
)
def test_labels_that_do_not_go_with_the_scene_or_the_run(run, scene, tmp_path, capsys, flags, says):
    names = {"LABELS": str(labels(tmp_path))}
    if "FAR" in flags:
        far = [shapely.affinity.translate(on_ground(BOXES[0]), 10_000)]
        names["FAR"] = str(write_polygons(tmp_path / "far.gpkg", far, use=["wheat"]))
    names["OTHER"] = str(write_polygons(tmp_path / "other.gpkg", [on_ground(BOXES[0])], use=["oats"]))
    flags = [names.get(flag, flag) for flag in flags]
    assert evaluate.main([str(run), str(scene), "-o", str(tmp_path / "out"), *flags]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_options_of_scenes_are_for_scenes(run, tmp_path, capsys):
    assert evaluate.main([str(run), "--instances", "--min-area", "3"]) == 2
    assert "--instances, --min-area: only for a SCENE with --labels" in capsys.readouterr().err


@pytest.mark.full
def test_two_processes_share_the_tiles_of_a_scene(run, tmp_path):
    scene = write_scene(tmp_path / "scene.tif", CLASSES * 80 + 5)
    words = [str(run), str(scene), "--labels", str(labels(tmp_path)), "--class-field", "use", "--tile", "32", "-o"]
    assert evaluate.main([*words, str(tmp_path / "one")]) == 0
    started = together(tmp_path, *words, "two", module="jaxseg.evaluate")
    said = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    assert "2 devices in 2 processes" in said[0][0]
    assert "classes" not in said[1][0]
    for file in (tmp_path / "one").iterdir():
        assert (tmp_path / "two" / file.name).read_bytes() == file.read_bytes(), file.name
