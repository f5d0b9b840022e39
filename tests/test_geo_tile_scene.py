"""Made-up scenes, and the way from them to tiles."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rasterio")

import pyogrio
import rasterio
import shapely
from geo_tile_files import on_ground, write_polygons, write_scene
from rasterio.features import rasterize

from jaxseg import tile as door
from jaxseg.base.errors import UserError
from jaxseg.data.made.scene import USES, make_scene, make_scenes


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return make_scenes(tmp_path_factory.mktemp("made") / "scenes", size=512, test=256)


def test_scenes_lie_apart_in_utm_and_have_four_bands(scenes):
    assert sorted(path.name for path in scenes.iterdir()) == ["fields.gpkg", "fields.json", "test.tif", "train.tif"]
    bounds = []
    for name, size in (("train", 512), ("test", 256)):
        with rasterio.open(scenes / f"{name}.tif") as file:
            assert (file.shape, file.count, file.dtypes[0], file.nodata) == ((size, size), 4, "uint8", None)
            assert (file.crs.to_epsg(), file.res) == (32633, (0.5, 0.5))
            bounds.append(shapely.box(*file.bounds))
            assert 30 < file.read().std() < 90
    assert not bounds[0].intersects(bounds[1])


def test_parcels_are_valid_polygons_with_a_use_and_cover_what_is_drawn(scenes):
    data = pyogrio.raw.read(scenes / "fields.gpkg")
    fields, columns = shapely.from_wkb(data[2]), dict(zip(data[0]["fields"], data[3]))
    assert shapely.is_valid(fields).all()
    assert set(columns["use"]) == set(USES)
    assert len(fields) > 40
    _, numbers, uses = make_scene(np.random.default_rng((0, 0)), 512)
    with rasterio.open(scenes / "train.tif") as file:
        classes = [1 + USES.index(use) for use in columns["use"]]
        burnt = rasterize(zip(fields, classes), file.shape, transform=file.transform, dtype=np.uint8)
    drawn = np.array([-1, *uses[1:]])[numbers] + 1
    assert (burnt != drawn).mean() < 0.02  # outlines are smoothed
    assert [0.2 < (drawn == n).mean() < 0.6 for n in range(3)] == [True, True, False]


def test_a_scene_follows_from_its_seed():
    (image, numbers, uses), (same, *_), (other, *_) = (make_scene(np.random.default_rng(n), 256) for n in (0, 0, 1))
    np.testing.assert_array_equal(image, same)
    assert (image != other).mean() > 0.9
    assert numbers.max() < len(uses)


def test_scenes_made_earlier_are_kept_and_other_files_refused(scenes, tmp_path):
    before = (scenes / "train.tif").stat().st_mtime_ns
    assert make_scenes(scenes, size=512, test=256) == scenes
    assert (scenes / "train.tif").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="holds other crop fields"):
        make_scenes(scenes, size=256, test=256)
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(UserError, match="was not made by jaxseg"):
        make_scenes(tmp_path)
    with pytest.raises(UserError, match="train is 8; expected at least 256"):
        make_scenes(tmp_path / "new", size=8)


def test_a_made_up_scene_becomes_tiles_of_all_classes(scenes, tmp_path, capsys):
    arguments = ["--labels", str(scenes / "fields.gpkg"), "--class-field", "use", "-o", str(tmp_path / "tiles")]
    assert door.main([str(scenes / "train.tif"), *arguments, "--size", "128"]) == 0
    told = capsys.readouterr().out
    assert "16 of 128x128" in told
    assert "0 background " in told
    assert ", 1 arable " in told
    assert told.rstrip().endswith("--group-by auto")
    assert (tmp_path / "tiles/classes.txt").read_text() == "background\narable\norchard\n"


# Slow ones


@pytest.mark.full
def test_five_commands_lead_from_a_scene_to_a_scored_map(tmp_path, monkeypatch, capsys):
    from jaxseg import evaluate, predict, train

    monkeypatch.chdir(tmp_path)
    make_scenes(Path("scenes"), size=1024, test=256)
    commands = [
        (door, "scenes/train.tif --labels scenes/fields.gpkg --class-field use -o tiles --size 128"),
        (train, "--data tiles --group-by auto --epochs 2 --widths 8 16 32 --out runs/fields"),
        (predict, "runs/fields scenes/test.tif -o map --vector gpkg --simplify 2 --min-area 100"),
        (evaluate, "runs/fields scenes/test.tif --labels scenes/fields.gpkg --class-field use"),
    ]
    for command, words in commands:
        assert command.main(words.split()) == 0, capsys.readouterr().err
    with rasterio.open("map/test.tif") as drawn, rasterio.open("scenes/test.tif") as scene:
        assert (drawn.crs, drawn.transform, drawn.bounds) == (scene.crs, scene.transform, scene.bounds)
        assert set(np.unique(drawn.read())) <= {0, 1, 2, 255}
    assert pyogrio.read_info("map/test.gpkg")["crs"] == "EPSG:32633"
    assert "mIoU" in capsys.readouterr().out


@pytest.fixture
def large(tmp_path):
    """A scene of 12,000 x 12,000 pixels, 1.1 GiB decoded, with one field."""
    size = {"height": 12_000, "width": 12_000, "count": 4, "dtype": "uint16", "crs": "EPSG:32633"}
    transform = rasterio.Affine(0.5, 0, 451_000, 0, -0.5, 5_405_000)
    how = {"tiled": True, "sparse_ok": True, "compress": "deflate"}
    with rasterio.open(tmp_path / "scene.tif", "w", driver="GTiff", transform=transform, **size, **how):
        pass
    write_polygons(tmp_path / "fields.gpkg", [on_ground(shapely.box(0, 0, 6000, 9000))])
    return tmp_path


MEASURED = """
import resource, sys
from jaxseg.tile import main
status = main(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
sys.exit(status)
"""


@pytest.mark.full
@pytest.mark.skipif(sys.platform == "win32", reason="resource is not for Windows")
def test_memory_does_not_grow_with_the_scene(large):
    arguments = ["--labels", str(large / "fields.gpkg"), "-o", str(large / "tiles"), "--keep-empty", "0.01"]
    command = [sys.executable, "-c", MEASURED, str(large / "scene.tif"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[-1]) < 700


@pytest.mark.full
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_killed_call_leaves_nothing_that_passes_for_tiles(large):
    command = [sys.executable, "-m", "jaxseg.tile", str(large / "scene.tif"), "--labels", str(large / "fields.gpkg")]
    process = subprocess.Popen([*command, "-o", str(large / "tiles")], stdout=subprocess.DEVNULL)
    while not any(large.glob(".tiles.*/images/*")):
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (large / "tiles").exists()
    write_scene(large / "small.tif", np.ones((64, 64), np.uint8))
    command[3] = str(large / "small.tif")
    assert subprocess.run([*command, "-o", str(large / "tiles")], stdout=subprocess.DEVNULL).returncode == 0
