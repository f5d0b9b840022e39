"""Scenes become data sets: `python -m jaxseg.tile`."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rasterio")

import pyogrio
import rasterio
import shapely
from geo_tile_files import LONLAT, NORTH_UP, ROTATED, SOUTH_UP, UTM32, UTM33, on_ground, read, some_fields
from geo_tile_files import write_polygons as polygons
from geo_tile_files import write_scene as scene
from rasterio.features import rasterize

from jaxseg import tile as door
from jaxseg.base.config import Data
from jaxseg.base.errors import DataError, UserError
from jaxseg.base.options import Tiling
from jaxseg.data.find.folders import find_split
from jaxseg.doctor.examine import examine
from jaxseg.geo import tile_folder
from jaxseg.geo.tile import tile
from jaxseg.geo.tile_source import starts, unique_names

HEIGHT, WIDTH = 90, 100


@pytest.fixture
def image(rng):
    return rng.integers(1, 255, (HEIGHT, WIDTH, 4), np.uint8)


@pytest.fixture
def source(tmp_path, rng, image):
    """A scene and its fields."""
    scene(tmp_path / "scene.tif", image)
    polygons(
        tmp_path / "fields.gpkg",
        [on_ground(field) for field in some_fields(rng)],
        use=["maize", "wheat"] * 12 + ["rye"],
    )
    return tmp_path


def cut(folder, scenes=("scene.tif",), labels=("fields.gpkg",), out="tiles", **options):
    options = {"size": 32} | options
    paths = {"scenes": tuple(folder / of for of in scenes), "labels": tuple(folder / of for of in labels)}
    tile(Tiling(out=folder / out, **paths, **options))
    return folder / out


def names(out, folder="images"):
    return sorted(path.name for path in (out / folder).iterdir())


def stitched(out, folder, like, fill):
    """Puts the first bands of a folder's tiles where their transforms say, on the pixels of a raster."""
    with rasterio.open(like) as file:
        result, transform = np.full(file.shape, fill, np.int64), file.transform
    for path in (out / folder).iterdir():
        with rasterio.open(path) as part:
            row, column = rasterio.transform.rowcol(transform, *part.xy(0, 0))
        place = result[row : row + part.height, column : column + part.width]
        place[:] = read(path)[: place.shape[0], : place.shape[1]]
    return result


@pytest.mark.parametrize("transform", [NORTH_UP, SOUTH_UP, ROTATED], ids=["north-up", "south-up", "rotated"])
@pytest.mark.parametrize("overlap", [0.0, 0.5])
def test_tiles_put_together_are_the_scene_and_its_polygons_rasterized_at_once(tmp_path, rng, image, transform, overlap):
    fields = [on_ground(field, transform) for field in some_fields(rng)]
    scene(tmp_path / "scene.tif", image, transform=transform)
    polygons(tmp_path / "fields.gpkg", fields)
    out = cut(tmp_path, overlap=overlap)
    whole = rasterize(fields, (HEIGHT, WIDTH), transform=transform, dtype=np.uint8)
    np.testing.assert_array_equal(stitched(out, "masks", tmp_path / "scene.tif", 77), whole)
    np.testing.assert_array_equal(stitched(out, "images", tmp_path / "scene.tif", 77), image[..., 0])
    assert len(names(out)) == (12 if overlap == 0 else 30)


def test_tiles_keep_crs_bands_and_type_and_are_named_by_scene_block_row_and_column(source):
    out = cut(source)
    assert names(out) == names(out, "masks")
    assert names(out)[0] == "scene_b000_r000_c000.tif"
    last = names(out)[-1]
    assert last == "scene_b001_r002_c003.tif"
    with rasterio.open(out / "images" / last) as file, rasterio.open(source / "scene.tif") as whole:
        assert (file.crs, file.count, file.dtypes, file.shape) == (whole.crs, 4, whole.dtypes, (32, 32))
        assert file.colorinterp == whole.colorinterp
        assert file.bounds[1:3] == whole.bounds[1:3]  # the last window is moved inward
        np.testing.assert_array_equal(file.read(), whole.read()[:, -32:, -32:])
    with rasterio.open(out / "masks" / last) as mask:
        assert (mask.nodata, mask.dtypes, mask.crs) == (255, ("uint8",), rasterio.CRS.from_string(UTM33))


def test_windows_cover_a_side_without_reaching_over_it():
    assert starts(100, 32, 0.0) == [0, 32, 64, 68]
    assert starts(96, 32, 0.0) == [0, 32, 64]
    assert starts(64, 32, 0.5) == [0, 16, 32]
    assert starts(20, 32, 0.0) == [0]


def test_scenes_of_one_name_get_numbers():
    assert unique_names(["a", "b", "a", "A", "a-2"]) == ["a", "b", "a-2", "A-3", "a-2-2"]


def test_the_data_set_is_trained_on_without_other_flags(source):
    polygons(source / "area.gpkg", [on_ground(shapely.box(0, 0, 70, 90))])
    out = cut(source, class_field="use", aoi=source / "area.gpkg")
    data = Data(data=out)
    found = examine(find_split(data, seed=0), data, workers=0)
    assert found.errors == ()
    assert found.labels.names == ("background", "maize", "rye", "wheat")
    assert found.labels.ignored == (255,)
    assert found.training.ignored_pixels > 0
    assert (found.reading.channels, found.reading.dtype) == (4, "uint8")


def test_footprints_show_the_split_that_training_draws(source):
    out = cut(source, size=16, class_field="use")
    data = pyogrio.raw.read(out / "tiles.gpkg")
    columns = dict(zip(data[0]["fields"], data[3]))
    split = find_split(Data(data=out, group_by="auto"), seed=0)
    shown = {side: set(columns["tile"][columns["split"] == side]) for side in ("training", "validation", "left out")}
    assert shown["training"] == set(split.training_names)
    assert shown["validation"] == set(split.validation_names)
    assert shown["left out"] == set(names(out)) - set(split.training_names) - set(split.validation_names)
    assert len(shown["left out"]) > 0
    assert data[0]["crs"] == UTM33
    name, outline, share = columns["tile"][3], shapely.from_wkb(data[2][3]), columns["share_1_maize"][3]
    with rasterio.open(out / "masks" / name) as mask:
        assert outline.bounds == tuple(mask.bounds)
        assert share == (mask.read() == 1).mean()


def test_the_record_says_how_the_tiles_were_made(source):
    out = source / "tiles"
    arguments = [str(source / "scene.tif"), "--labels", str(source / "fields.gpkg"), "-o", str(out), "--size", "32"]
    assert door.main(arguments) == 0
    saved = json.loads((out / "tiles.json").read_text())
    assert saved["command"].startswith("python -m jaxseg.tile ")
    assert saved["command"].endswith("--size 32")
    assert saved["classes"] == ["background", "fields"]
    assert saved["scenes"][0]["crs"] == UTM33
    assert len(saved["files"]) == 2 * 12 + 2


# What is ignored


def test_pixels_without_data_are_ignored_never_class_0(tmp_path, image):
    image[:40] = 0
    image[40:50, :10, :3] = 0  # a pixel has no data where all bands have none
    scene(tmp_path / "scene.tif", image, nodata=0, alpha="UNSPECIFIED", photometric="MINISBLACK")
    polygons(tmp_path / "fields.gpkg", [on_ground(shapely.box(0, 0, 100, 90))])
    mask = stitched(cut(tmp_path), "masks", tmp_path / "scene.tif", 77)
    assert (mask[:32] == 77).all()  # tiles without data are left out
    assert (mask[32:40] == 255).all()
    assert (mask[40:] == 1).all()


def test_nodata_of_labels_becomes_ignored_tiles_or_pixels(tmp_path, image):
    values = np.zeros((HEIGHT, WIDTH), np.uint8)
    values[:, 50:], values[45:] = 7, 2
    scene(tmp_path / "scene.tif", image)
    scene(tmp_path / "labels.tif", values, nodata=7)
    mask = stitched(cut(tmp_path, labels=("labels.tif",)), "masks", tmp_path / "scene.tif", 77)
    np.testing.assert_array_equal(mask[:45, :50], 0)
    np.testing.assert_array_equal(mask[45:], 2)
    assert set(np.unique(mask[:45, 50:])) == {77, 255}


def test_area_of_interest_bounds_what_is_labeled(source):
    polygons(source / "area.gpkg", [on_ground(shapely.box(10, 10, 60, 60))])
    whole = stitched(cut(source), "masks", source / "scene.tif", 77)
    mask = stitched(cut(source, out="inside", aoi=source / "area.gpkg"), "masks", source / "scene.tif", 77)
    np.testing.assert_array_equal(mask[10:60, 10:60], whole[10:60, 10:60])
    raster = np.zeros((HEIGHT, WIDTH), np.uint8)
    raster[10:60, 10:60] = 1
    scene(source / "area.tif", raster)
    same = stitched(cut(source, out="raster", aoi=source / "area.tif"), "masks", source / "scene.tif", 77)
    np.testing.assert_array_equal(same, mask)
    mask[10:60, 10:60] = 255
    assert set(np.unique(mask)) <= {77, 255}
    with pytest.raises(DataError, match=r"none.gpkg: no such file"):
        cut(source, out="none", aoi=source / "none.gpkg")


def test_a_scene_smaller_than_a_tile_is_padded_with_ignored_pixels(source):
    out = cut(source, size=128)
    (name,) = names(out)
    mask = read(out / "masks" / name)
    assert mask.shape == (128, 128)
    assert (mask[HEIGHT:] == 255).all()
    assert (mask[:, WIDTH:] == 255).all()
    assert (mask[:HEIGHT, :WIDTH] != 255).all()


def test_nan_is_no_data(tmp_path, image):
    floats = image.astype(np.float32)
    floats[:45] = np.nan
    scene(tmp_path / "scene.tif", floats)
    polygons(tmp_path / "fields.gpkg", [on_ground(shapely.box(0, 0, 100, 90))])
    mask = stitched(cut(tmp_path), "masks", tmp_path / "scene.tif", 77)
    assert (mask[32:45] == 255).all()
    assert (mask[45:] == 1).all()


# Choices


def test_empty_tiles_are_thinned_by_seed(tmp_path, image):
    scene(tmp_path / "scene.tif", image)
    polygons(tmp_path / "fields.gpkg", [on_ground(shapely.box(0, 0, 20, 20))])
    kept = [names(cut(tmp_path, size=16, out=f"{n}", keep_empty=0.5, seed=n % 2)) for n in range(3)]
    assert kept[0] == kept[2] != kept[1]
    assert 10 < len(kept[0]) < 34
    only = cut(tmp_path, size=16, out="none", keep_empty=0.0)
    assert len(names(only)) == 4
    assert all((read(only / "masks" / name) == 1).any() for name in names(only))


def test_resolution_resamples_bands_and_burns_labels_on_the_new_pixels(tmp_path, rng):
    smooth = np.add.outer(np.arange(HEIGHT), np.arange(WIDTH)).astype(np.float32)[..., None]
    fields = [on_ground(field) for field in some_fields(rng)]
    scene(tmp_path / "scene.tif", smooth)
    polygons(tmp_path / "fields.gpkg", fields)
    out = cut(tmp_path, size=16, resolution=1.0)
    coarse = rasterio.Affine(1, 0, 451_000, 0, -1, 5_405_000)
    scene(tmp_path / "coarse.tif", np.zeros((45, 50), np.uint8), transform=coarse)
    whole = rasterize(fields, (45, 50), transform=coarse, dtype=np.uint8)
    np.testing.assert_array_equal(stitched(out, "masks", tmp_path / "coarse.tif", 77), whole)
    image = stitched(out, "images", tmp_path / "coarse.tif", -1)
    np.testing.assert_array_equal(image[5:-5, 5:-5], np.add.outer(np.arange(45), np.arange(50))[5:-5, 5:-5] * 2 + 1)


def test_raster_labels_are_resampled_by_the_nearest(tmp_path, image, rng):
    values = rng.integers(0, 2, (HEIGHT, WIDTH)).astype(np.uint8) * 9
    scene(tmp_path / "scene.tif", image)
    scene(tmp_path / "labels.tif", values)
    out = cut(tmp_path, labels=("labels.tif",), resolution=0.75, size=16)
    assert set(np.unique(np.stack([read(out / "masks" / name) for name in names(out)]))) == {0, 9}


def test_scenes_of_several_crs_share_labels_in_a_third(tmp_path, image):
    x, y = rasterio.warp.transform(UTM33, UTM32, [451_000], [5_405_000])
    there = rasterio.Affine(0.5, 0, x[0], 0, -0.5, y[0])
    for folder, crs, transform in (("a", UTM33, NORTH_UP), ("b", UTM32, there)):
        (tmp_path / folder).mkdir()
        scene(tmp_path / folder / "scene.tif", image, crs, transform)
    field = shapely.transform(
        on_ground(shapely.box(10, 10, 90, 80)),
        lambda at: np.stack(rasterio.warp.transform(UTM33, LONLAT, *at.T), 1),
    )
    polygons(tmp_path / "fields.gpkg", [field], LONLAT)
    out = cut(tmp_path, scenes=("a/scene.tif", "b/scene.tif"))
    assert {name.split("_b")[0] for name in names(out)} == {"scene", "scene-2"}
    for crs, of in ((UTM33, "scene_"), (UTM32, "scene-2_")):
        parts = [path for path in (out / "masks").iterdir() if path.name.startswith(of)]
        assert all(rasterio.open(path).crs == rasterio.CRS.from_string(crs) for path in parts)
        assert 0.6 < np.mean([read(path) for path in parts]) < 0.7
    assert find_split(Data(data=out, group_by="auto"), seed=0).validation
    assert pyogrio.read_info(out / "tiles.gpkg")["crs"] == UTM33


def test_scenes_without_a_crs_are_cut(tmp_path, image):
    scene(tmp_path / "scene.tif", image, crs=None)
    polygons(tmp_path / "fields.fgb", [on_ground(shapely.box(0, 0, 50, 50))], None, "FlatGeobuf")
    out = cut(tmp_path, labels=("fields.fgb",))
    assert stitched(out, "masks", tmp_path / "scene.tif", 77).sum() == 2500
    assert find_split(Data(data=out, group_by="auto"), seed=0).validation


@pytest.mark.parametrize("photometric", ["RGB", "MINISBLACK"])
def test_tiles_are_read_in_the_order_of_bands_that_the_scene_is_read_in(tmp_path, image, photometric):
    from jaxseg.data.read.images import read_pixels

    scene(tmp_path / "scene.tif", image[..., :3], photometric=photometric)
    polygons(tmp_path / "fields.gpkg", [on_ground(shapely.box(0, 0, 50, 50))])
    out = cut(tmp_path)
    whole, part = read_pixels(tmp_path / "scene.tif"), read_pixels(out / "images" / names(out)[0])
    assert part.color == whole.color == (photometric == "RGB")
    np.testing.assert_array_equal(part.array, whole.array[:32, :32])


def test_scenes_with_a_file_of_labels_each_share_their_classes(tmp_path, image):
    moved = rasterio.Affine(0.5, 0, 460_000, 0, -0.5, 5_405_000)
    for name, transform, uses in (("a", NORTH_UP, ["rye", "maize"]), ("b", moved, ["wheat", "maize"])):
        scene(tmp_path / f"{name}.tif", image, transform=transform)
        boxes = [on_ground(shapely.box(x, 0, x + 30, 90), transform) for x in (0, 50)]
        polygons(tmp_path / f"{name}.gpkg", boxes, use=uses)
    out = cut(tmp_path, scenes=("a.tif", "b.tif"), labels=("a.gpkg", "b.gpkg"), class_field="use")
    assert (out / "classes.txt").read_text() == "background\nmaize\nrye\nwheat\n"
    first = {name[0]: read(out / "masks" / name)[0, 0] for name in names(out) if "r000_c000" in name}
    assert first == {"a": 2, "b": 3}
    with pytest.raises(DataError, match="use never is barley; found maize, rye, wheat"):
        cut(tmp_path, ("a.tif", "b.tif"), ("a.gpkg", "b.gpkg"), "other", class_field="use", class_values=("barley",))


# Faults


def test_labels_elsewhere_are_an_error_with_both_crs_and_extents_never_empty_masks(tmp_path, image):  # complaint 7
    scene(tmp_path / "scene.tif", image)
    polygons(tmp_path / "fields.gpkg", [shapely.box(5.0, 40.0, 5.1, 40.1)], LONLAT)
    with pytest.raises(DataError, match="do not overlap, so that masks would be empty") as caught:
        cut(tmp_path)
    (line,) = caught.value.problems
    assert "scene.tif: is in EPSG:32633, x 451,000.0 to 451,050.0, y 5,404,955.0 to 5,405,000.0" in line
    assert "(in that of the labels x 14.3" in line
    assert line.endswith("fields.gpkg is in EPSG:4326, x 5 to 5.1, y 40 to 40.1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fields.gpkg", "scene.tif"]


def test_every_scene_without_labels_is_named_unless_an_area_says_that_it_is_labeled(source, image):
    moved = rasterio.Affine(0.5, 0, 460_000, 0, -0.5, 5_405_000)
    scene(source / "other.tif", image, transform=moved)
    with pytest.raises(DataError) as caught:
        cut(source, scenes=("scene.tif", "other.tif"))
    assert [line.split(": is in")[0].rpartition(os.sep)[2] for line in caught.value.problems] == ["other.tif"]
    area = [on_ground(shapely.box(0, 0, 90, 90)), on_ground(shapely.box(0, 0, 90, 90), moved)]
    polygons(source / "area.gpkg", area)
    out = cut(source, scenes=("scene.tif", "other.tif"), aoi=source / "area.gpkg")
    assert sum(name.startswith("other") for name in names(out)) == 12


def test_an_area_does_not_make_up_for_labels_that_miss_all_scenes(tmp_path, image):
    scene(tmp_path / "scene.tif", image)
    polygons(tmp_path / "area.gpkg", [on_ground(shapely.box(0, 0, 90, 90))])
    polygons(tmp_path / "fields.gpkg", [on_ground(shapely.box(900, 0, 990, 90))])
    for labels, area in (("fields.gpkg", "area.gpkg"), ("area.gpkg", "fields.gpkg")):
        with pytest.raises(DataError, match=r"fields.gpkg is in EPSG:32633"):
            cut(tmp_path, labels=(labels,), aoi=tmp_path / area)


def test_raster_labels_elsewhere_are_an_error(tmp_path, image):
    scene(tmp_path / "scene.tif", image)
    scene(tmp_path / "labels.tif", image[..., 0], transform=rasterio.Affine(0.5, 0, 460_000, 0, -0.5, 5_405_000))
    with pytest.raises(DataError, match="do not overlap"):
        cut(tmp_path, labels=("labels.tif",))


def test_partly_covered_scenes_are_told_with_the_share(tmp_path, image, capsys):
    scene(tmp_path / "scene.tif", image)
    polygons(
        tmp_path / "fields.gpkg", [on_ground(shapely.box(-40, 0, 25, 90)), on_ground(shapely.box(-90, 0, -50, 90))]
    )
    cut(tmp_path)
    told = capsys.readouterr().out
    assert "1 of 2 polygons lie on it" in told
    assert "they extend over 25% of it; the rest is background, unless --aoi is given" in told


def test_scenes_that_differ_are_all_named(tmp_path, image):
    for name, array in {"a": image, "b": image, "c": image[..., :3], "d": image.astype(np.uint16)}.items():
        scene(tmp_path / f"{name}.tif", array)
    polygons(tmp_path / "fields.gpkg", [on_ground(shapely.box(0, 0, 50, 50))])
    with pytest.raises(DataError, match="2 of 4 scenes differ from the others, which have 4 bands of uint8") as caught:
        cut(tmp_path, scenes=("a.tif", "b.tif", "c.tif", "d.tif"))
    assert [line.rpartition(os.sep)[2] for line in caught.value.problems] == [
        "c.tif: 3 bands of uint8, color", "d.tif: 4 bands of uint16, plain",
    ]  # fmt: skip


def test_scenes_without_coordinates_are_named(tmp_path, image):
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        scene(tmp_path / "scene.tif", image, None, rasterio.Affine.identity())
    polygons(tmp_path / "fields.gpkg", [on_ground(shapely.box(0, 0, 50, 50))])
    with pytest.raises(DataError, match=r"1 of 1 scenes cannot be cut:\n.*has no transform"):
        cut(tmp_path)


def test_every_setting_out_of_range_is_named():
    wrong = {"size": 8, "overlap": 1.0, "resolution": -1.0, "border": -1, "keep_empty": 2.0, "class_values": ("a",)}
    with pytest.raises(UserError) as caught:
        tile(Tiling(scenes=(), labels=(), out=Path("tiles"), **wrong))
    for flag in ("no scene", "--size", "--overlap", "--resolution", "--border", "--keep-empty", "--class-values"):
        assert flag in str(caught.value)


def test_without_the_extra_the_command_names_it(source, monkeypatch, capsys):
    monkeypatch.setattr("jaxseg.base.extra.find_spec", lambda name: None)
    arguments = [str(source / "scene.tif"), "--labels", str(source / "fields.gpkg"), "-o", str(source / "tiles")]
    assert door.main(arguments) == 2
    assert "pip install 'jaxseg[geo]'" in capsys.readouterr().err


# The folder


def test_folders_with_other_files_are_refused(source):
    (source / "tiles").mkdir()
    (source / "tiles/photo.jpg").write_bytes(b"mine")
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"holds other files, such as photo.jpg; expected a new or empty folder"):
            cut(source, overwrite=overwrite)
    assert (source / "tiles/photo.jpg").read_bytes() == b"mine"


def test_earlier_tiles_are_replaced_only_when_asked_and_alone(source):
    out = cut(source)
    with pytest.raises(UserError, match="holds tiles of an earlier call; give --overwrite to replace them"):
        cut(source, size=16)
    (out / "images" / f"{names(out)[0]}.aux.xml").write_text("statistics of QGIS")
    assert len(names(cut(source, size=64, overwrite=True))) == 4
    (out / "images/mine.tif").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"1 files that python -m jaxseg.tile did not write, such as images/mine\.tif"):
        cut(source, overwrite=True)
    assert not [path for path in source.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("fault", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_nothing_is_left_of_a_call_that_fails(source, monkeypatch, capsys, fault):
    cut(source, size=64)
    before = names(source / "tiles")
    write, count = tile_folder.write_tile, iter(range(99))

    def failing(folder, name, *arguments):
        write(folder, name, *arguments)
        if next(count) == 5:
            fault.filename = str(folder / name)
            raise fault

    monkeypatch.setattr("jaxseg.geo.tile.write_tile", failing)
    arguments = [str(source / "scene.tif"), "--labels", str(source / "fields.gpkg"), "-o", str(source / "tiles")]
    status = door.main([*arguments, "--size", "32", "--overwrite"])
    assert status == (2 if isinstance(fault, OSError) else 130)
    full = f"error: {source / 'tiles'}: No space left on device"
    assert (full if status == 2 else "stopped; nothing was written") in capsys.readouterr().err
    assert names(source / "tiles") == before
    assert not [path for path in source.iterdir() if path.name.startswith(".")]


def test_a_folder_that_cannot_be_written_is_named(source, monkeypatch, capsys):
    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("jaxseg.base.files.try_writing", refuse)
    arguments = [str(source / "scene.tif"), "--labels", str(source / "fields.gpkg"), "-o", str(source / "tiles")]
    assert door.main(arguments) == 2
    assert f"error: {source}: Permission denied" in capsys.readouterr().err
