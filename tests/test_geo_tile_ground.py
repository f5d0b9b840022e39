"""Where tiles lie on the ground, splits by blocks, and what `check` says of tiles that touch."""

import dataclasses

import numpy as np
import pytest

pytest.importorskip("rasterio")

import pyproj
import rasterio
from geo_tile_files import LONLAT, NORTH_UP, ROTATED, SOUTH_UP, UTM32, UTM33, write_scene
from hypothesis import given
from hypothesis import strategies as st

from jaxseg.base.config import Data
from jaxseg.base.errors import DataError, UserError
from jaxseg.data.find import blocks
from jaxseg.data.find.blocks import draw, number_blocks
from jaxseg.data.find.folders import find_split
from jaxseg.data.find.ground import Ground, boxes_of, in_one_crs, neighbors, read_ground, touching
from jaxseg.doctor.examine import examine
from jaxseg.runs.record import of_split

FLAT = np.zeros((6, 8, 1), np.uint8)


def grid(rows, columns, side=1.0):
    """Boxes of tiles that cover a rectangle."""
    y, x = np.mgrid[:rows, :columns].reshape(2, -1) * side
    return np.stack([x, y, x + side, y + side], 1)


# Footprints


@pytest.mark.parametrize("transform", [NORTH_UP, SOUTH_UP, ROTATED], ids=["north-up", "south-up", "rotated"])
@pytest.mark.parametrize("crs", [UTM33, LONLAT, "+proj=laea +lat_0=10 +lon_0=20 +ellps=WGS84", None])
def test_footprints_equal_rasterios(tmp_path, transform, crs):
    path = write_scene(tmp_path / "a.tif", FLAT, crs, transform)
    with rasterio.open(path) as file:
        corners = [c for at in ((0, 0), (6, 0), (0, 8)) for c in file.xy(*at, offset="ul")]
    found = read_ground(path)
    np.testing.assert_allclose(found.corners, corners, rtol=1e-15)
    assert (found.crs == crs) if crs in (UTM33, LONLAT) else (bool(found.crs) == (crs is not None))


def test_world_files_count(tmp_path):
    (tmp_path / "a.pgw").write_text("0.5\n0\n0\n-0.5\n451000.25\n5404999.75\n")
    found = read_ground(tmp_path / "a.png", height=6, width=8)
    assert found == Ground("", (451000.0, 5405000.0, 451000.0, 5404997.0, 451004.0, 5405000.0))


def test_images_without_coordinates_have_no_footprint(tmp_path):
    (tmp_path / "a.tif").write_bytes(b"II*\0 damaged")
    assert read_ground(tmp_path / "a.tif") is None
    assert read_ground(tmp_path / "b.png", 6, 8) is None


def test_tiles_of_a_rotated_scene_are_boxes_that_only_touch():
    corners = [(0.0, 0.0, 0.3, -0.4, 0.4, 0.3), (0.4, 0.3, 0.7, -0.1, 0.8, 0.6), (0.9, 0.7, 1.2, 0.3, 1.3, 1.0)]
    boxes = boxes_of([Ground("", of) for of in corners])
    np.testing.assert_allclose(boxes[:2], [[0, 0, 0.5, 0.5], [0.5, 0, 1, 0.5]], atol=1e-12)
    ((near, shared),) = neighbors(boxes[1:2], boxes[:1])
    assert (near.tolist(), shared.round(12).tolist()) == ([0], [0])
    assert touching(boxes, boxes[2:]).tolist() == [False, False, True]


def test_footprints_of_several_crs_come_into_the_first():
    there = Ground(UTM32, (891_000.0, 5_420_000.0, 891_000.0, 5_419_900.0, 891_100.0, 5_420_000.0))
    found = in_one_crs([Ground(UTM33, (0.0,) * 6), there])
    assert [g.crs for g in found] == [UTM33, UTM33]
    x, y = found[1].corners[:2]
    assert 440_000 < x < 460_000
    assert 5_380_000 < y < 5_430_000
    with pytest.raises(ValueError, match="several coordinate reference systems"):
        boxes_of([Ground(UTM33, (0.0,) * 6), there])


@given(st.integers(0, 99), st.integers(1, 30), st.integers(1, 30))
def test_neighbors_equal_those_of_all_pairs(seed, some, others):
    rng = np.random.default_rng(seed)
    low = rng.integers(0, 12, (some + others, 2)).astype(float)
    boxes = np.concatenate([low, low + rng.integers(1, 4, low.shape)], 1)
    mine, theirs = boxes[:some], boxes[some:]
    for box, (near, shared) in zip(mine, neighbors(mine, theirs)):
        size = np.minimum(theirs[:, 2:], box[2:]) - np.maximum(theirs[:, :2], box[:2])
        assert sorted(near) == np.flatnonzero((size >= 0).all(1)).tolist()
        np.testing.assert_array_equal(shared, np.maximum(size[near], 0).prod(1))


# Blocks


@pytest.mark.parametrize("rows", [4, 9, 16, 40])
@pytest.mark.parametrize("percent", [10.0, 20.0, 50.0])
def test_no_training_tile_touches_a_validation_tile(rows, percent):
    boxes = grid(rows, rows + 3, side=128.0)
    drawn = draw(boxes, percent, seed=3)
    training = set(range(len(boxes))) - drawn.validation - drawn.gap
    assert training
    assert not touching(boxes[sorted(training)], boxes[sorted(drawn.validation)]).any()
    assert abs(len(drawn.validation) / len(boxes) - percent / 100) < 0.08
    whole = set(drawn.blocks[list(drawn.validation)])
    assert {i for i, block in enumerate(drawn.blocks) if block in whole} == drawn.validation


def test_every_tile_left_out_touches_a_validation_tile():
    boxes = grid(12, 12)
    drawn = draw(boxes, 20.0, seed=0)
    assert drawn.gap
    assert touching(boxes[sorted(drawn.gap)], boxes[sorted(drawn.validation)]).all()


def test_blocks_are_drawn_by_seed_whatever_the_order_of_tiles():
    boxes = grid(12, 12)
    order = np.random.default_rng(0).permutation(len(boxes))
    one, same, other = draw(boxes, 20.0, 0), draw(boxes[order], 20.0, 0), draw(boxes, 20.0, 1)
    assert {int(order[i]) for i in same.validation} == one.validation
    assert other.validation != one.validation


def test_scenes_of_one_place_and_several_dates_share_their_blocks():
    boxes = np.concatenate([grid(8, 8), grid(8, 8), grid(8, 8) + 0.25])
    found = number_blocks(boxes).reshape(3, -1)
    np.testing.assert_array_equal(found[0], found[1])
    drawn = draw(boxes, 20.0, 0)
    training = sorted(set(range(len(boxes))) - drawn.validation - drawn.gap)
    assert not touching(boxes[training], boxes[sorted(drawn.validation)]).any()


def test_the_number_of_blocks_is_about_twenty_for_any_number_of_tiles():
    assert [number_blocks(grid(n, n)).max() + 1 for n in (4, 10, 30, 100)] == [4, 16, 16, 16]


def test_tiles_too_few_for_a_gap_are_refused():
    with pytest.raises(DataError, match="4 tiles make a single block of ground; a split needs two"):
        draw(grid(2, 2), 20.0, 0)
    x = np.arange(6) / 2
    overlapping = np.stack([x, 0 * x, x + 1, 0 * x + 1], 1)
    with pytest.raises(DataError, match="all of the other 2 tiles touch the 4 for validation, which leaves none"):
        draw(overlapping, 60.0, 0)


# --group-by auto, and what `check` says


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    """36 tiles of a scene, images and masks with coordinates."""
    root, rng = tmp_path_factory.mktemp("ground"), np.random.default_rng(0)
    for folder in ("images", "masks"):
        (root / folder).mkdir()
    for row, column in np.ndindex(6, 6):
        transform = rasterio.Affine(0.5, 0, 451_000 + 8 * column, 0, -0.5, 5_405_000 - 8 * row)
        name = f"t_r{row}_c{column}.tif"
        write_scene(root / "images" / name, rng.integers(0, 255, (16, 16, 3), np.uint8), transform=transform)
        write_scene(root / "masks" / name, rng.integers(0, 2, (16, 16), np.uint8), transform=transform)
    return root


def warned(split, data):
    return [f for f in examine(split, data, workers=0).findings if "on the ground" in f.what]


def test_group_by_auto_leaves_out_the_gap_and_check_is_content(tiles):
    data = Data(data=tiles, group_by="auto")
    split = find_split(data, seed=0)
    assert split == find_split(data, seed=0)
    assert split.notes == ()
    assert split.layout.endswith(
        "2 of 9 blocks on the ground drawn for validation, 22.2 percent of the tiles; 12 tiles around them left out"
    )
    assert (len(split.training), len(split.validation)) == (16, 8)
    assert warned(split, data) == []


def test_touching_tiles_of_a_random_split_are_a_warning_with_numbers_and_the_flag(tiles):
    data = Data(data=tiles)
    split = find_split(data, seed=0)
    (found,) = warned(split, data)
    assert found.what == "7 of 7 validation tiles touch training tiles on the ground"
    assert len(found.files) == 7
    assert found.flags == ("--group-by", "auto")
    assert split.notes == ()  # names are not compared where coordinates are


def with_another(tiles, folder, crs, x, y):
    """Settings of `tiles` for training, and a tile for validation whose first corner is at x and y."""
    for name in ("images", "masks"):
        (folder / name).mkdir()
        array = np.random.default_rng(1).integers(0, 2, (16, 16, 3 if name == "images" else 1), np.uint8)
        write_scene(folder / name / "t_new.tif", array, crs, rasterio.Affine(0.5, 0, x, 0, -0.5, y))
    data = Data(images=tiles / "images", masks=tiles / "masks")
    return dataclasses.replace(data, val_images=folder / "images", val_masks=folder / "masks")


def test_overlap_is_told_with_its_share(tiles, tmp_path):
    data = with_another(tiles, tmp_path, UTM33, 451_002, 5_405_000)
    (found,) = warned(find_split(data, seed=0), data)
    assert found.what.startswith("1 of 1 validation tiles touch training tiles on the ground; 1 of them overlap")
    assert "up to 75% of the area of one" in found.what
    assert "Leave out the training tiles that touch" in found.advice
    assert found.flags == ()


def test_overlap_with_tiles_in_another_crs_is_told_where_pyproj_is(tiles, tmp_path, monkeypatch):
    there = pyproj.Transformer.from_crs(UTM33, UTM32, always_xy=True).transform(451_010, 5_404_990)
    data = with_another(tiles, tmp_path, UTM32, *there)
    (found,) = warned(find_split(data, seed=0), data)
    assert found.what.startswith("1 of 1 validation tiles touch training tiles on the ground; 1 of them overlap")
    monkeypatch.setitem(__import__("sys").modules, "pyproj", None)
    assert warned(find_split(data, seed=0), data) == []


def test_images_without_coordinates_are_listed_with_another_way(tiles_root):
    with pytest.raises(DataError, match="14 of 14 images have none") as caught:
        blocks.of_files(sorted(tiles_root.glob("[tv]*/*.png")), 20.0, 0)
    assert "--group-by 'scene" in caught.value.advice


def test_several_crs_need_pyproj(tiles, tmp_path, monkeypatch):
    path = write_scene(tmp_path / "other.tif", FLAT, UTM32)
    monkeypatch.setitem(__import__("sys").modules, "pyproj", None)
    with pytest.raises(UserError, match=r"EPSG:32632, EPSG:32633\), which needs pyproj: pip install 'jaxseg\[geo\]'"):
        blocks.of_files([path, *sorted((tiles / "images").iterdir())], 20.0, 0)
    write_scene(path, FLAT, None)
    with pytest.raises(UserError, match=r"\(EPSG:32633, none\), not all of them known"):
        blocks.of_files([path, *sorted((tiles / "images").iterdir())], 20.0, 0)


def test_the_split_by_blocks_is_recorded_as_others_are(tiles):
    split = find_split(Data(data=tiles, group_by="auto"), seed=0)
    saved = of_split(split, examine(split, Data(), workers=0).facts.all)
    assert (len(saved["training"]), len(saved["validation"])) == (16, 8)
    assert saved["contents"]["validation"].keys() == set(split.validation_names)
