"""Which files make a pair, what a sample of them is, and what is said about files that are wrong."""

import dataclasses
import tempfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jaxseg.config import Data
from jaxseg.data import tiles
from jaxseg.data.tiles import DataError, Pair, find_pairs, find_splits, read_image, read_mask, survey, survey_splits


def write(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix.lower(), pixels)[1].tobytes())
    return path


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def picture(height=6, width=8, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def mask(height=6, width=8, value=255) -> np.ndarray:
    """Left half `value`, right half 0."""
    pixels = np.zeros((height, width), np.uint8)
    pixels[:, : width // 2] = value
    return pixels


def good_pairs(root: Path, count: int, **size) -> list[Pair]:
    return [
        Pair(write(root / f"images/t{i}.png", picture(**size, seed=i)), write(root / f"masks/t{i}.png", mask(**size)))
        for i in range(count)
    ]


def problems(call, *args) -> list[str]:
    """What the error lists, each offender once, and every one of them in the message."""
    with pytest.raises(DataError) as caught:
        call(*args)
    found = caught.value.problems
    assert len(set(found)) == len(found)
    assert [problem for problem in found[:20] if problem not in str(caught.value)] == []
    return list(found)


def named(found: list[str], *paths: Path) -> bool:
    """Whether `found` has one line about each of `paths`, which begins with it, and no other line."""
    return sorted(line.split(": ")[0] for line in found) == sorted(map(str, paths))


# which files make a pair


def test_the_articles_names_pair_up_to_the_first_dot(tmp_path):
    images = touch(tmp_path / "i", "b.png", "a.2.rgb.jpg", "a_mask.png", "c.PNG")
    masks = touch(tmp_path / "m", "a_mask.png", "b_mask.png", "c_mask.png", "a_mask_mask.png")
    assert find_pairs(images, masks) == [
        Pair(images / "a.2.rgb.jpg", masks / "a_mask.png"),
        Pair(images / "a_mask.png", masks / "a_mask_mask.png"),
        Pair(images / "b.png", masks / "b_mask.png"),
        Pair(images / "c.PNG", masks / "c_mask.png"),
    ]


def test_equal_stems_pair_whatever_the_extension(tmp_path):
    images = touch(tmp_path / "i", "tile.2.jpg", "tile.1.JPEG", "x.tif", "été.png", "田.png")
    masks = touch(tmp_path / "m", "tile.1.png", "tile.2.png", "x.TIFF", "été.bmp", "田.png")
    assert find_pairs(images, masks) == [
        Pair(images / "tile.1.JPEG", masks / "tile.1.png"),
        Pair(images / "tile.2.jpg", masks / "tile.2.png"),
        Pair(images / "x.tif", masks / "x.TIFF"),
        Pair(images / "été.png", masks / "été.bmp"),
        Pair(images / "田.png", masks / "田.png"),
    ]


@given(names=st.sets(st.from_regex(r"[a-z0-9]{1,3}(\.[a-z0-9]{1,2}){0,2}", fullmatch=True), min_size=1, max_size=8))
def test_pairs_are_sorted_and_complete_for_any_names(names):
    with tempfile.TemporaryDirectory() as root:
        images, masks = Path(root, "i"), Path(root, "m")
        touch(images, *(f"{name}.png" for name in names))
        touch(masks, *(f"{name}.png" for name in names))
        pairs = find_pairs(images, masks)
        assert [pair.image.name for pair in pairs] == sorted(f"{name}.png" for name in names)
        assert all(pair.image.name == pair.mask.name for pair in pairs)


def test_dot_files_folders_and_other_files_are_skipped(tmp_path):
    images = touch(tmp_path / "i", "a.png", ".a.png", "._b.png", "notes.txt", "Thumbs.db", "a.png.json", "a.npy")
    masks = touch(tmp_path / "m", "a.png", ".DS_Store", "._a.png", "a.txt")
    touch(images / "folder.png", "inside.png")
    touch(masks / "more.png", "inside.png")
    assert find_pairs(images, masks) == [Pair(images / "a.png", masks / "a.png")]


def test_every_image_without_mask_and_mask_without_image_is_listed(tmp_path):
    images = touch(tmp_path / "i", "a.png", "b.1.png", "c.png")
    masks = touch(tmp_path / "m", "a_mask.png", "d_mask.png", "e_mask.png")
    found = problems(find_pairs, images, masks)
    assert named(found, images / "b.1.png", images / "c.png", masks / "d_mask.png", masks / "e_mask.png")
    assert str(masks / "b_mask.png") in found[0]  # what was expected


def test_equal_stems_without_partner_are_listed_too(tmp_path):
    images, masks = touch(tmp_path / "i", "a.png", "b.png", "c.png"), touch(tmp_path / "m", "a.png", "d.png")
    found = problems(find_pairs, images, masks)
    assert named(found, images / "b.png", images / "c.png", masks / "d.png")
    assert str(masks / "b.*") in found[0]


def test_images_that_share_a_mask_are_refused(tmp_path):
    images, masks = touch(tmp_path / "i", "a.1.png", "a.2.png", "a.3.png"), touch(tmp_path / "m", "a_mask.png")
    found = problems(find_pairs, images, masks)
    assert named(found, images / "a.2.png", images / "a.3.png")
    assert "a.1.png" in found[0]
    assert "a_mask.png" in found[0]


def test_stems_that_are_not_unique_are_refused_on_either_side(tmp_path):
    images, masks = touch(tmp_path / "i", "a.jpg", "a.png", "b.png"), touch(tmp_path / "m", "a.png", "b.bmp", "b.png")
    found = problems(find_pairs, images, masks)
    assert named(found, images / "a.png", masks / "b.png")
    assert any("a.jpg" in line for line in found)
    assert any("b.bmp" in line for line in found)


def test_folders_that_are_missing_are_both_named(tmp_path):
    (tmp_path / "file").touch()
    found = problems(find_pairs, tmp_path / "nowhere", tmp_path / "file")
    assert named(found, tmp_path / "nowhere", tmp_path / "file")


def test_an_empty_folder_is_named_with_the_extensions_looked_for(tmp_path):
    with pytest.raises(DataError) as caught:
        find_pairs(touch(tmp_path / "i", ".hidden.png", "a.txt"), touch(tmp_path / "m", "a.png"))
    assert str(tmp_path / "i") in str(caught.value)
    assert ".png" in str(caught.value)


def test_a_long_list_of_problems_is_cut_in_the_message_and_whole_in_the_error(tmp_path):
    images, masks = touch(tmp_path / "i", *(f"{i}.png" for i in range(30))), touch(tmp_path / "m", "0.png")
    with pytest.raises(DataError) as caught:
        find_pairs(images, masks)
    assert len(caught.value.problems) == 29
    assert "and 9 more" in str(caught.value)
    assert "29.png" in caught.value.problems[-8]


# layouts and the split


LAYOUTS = {
    "the article's": ("train", "Ltrain", "val", "Lval"),
    "images and masks in each": ("train/images", "train/masks", "val/images", "val/masks"),
}


@pytest.mark.parametrize("folders", LAYOUTS.values(), ids=LAYOUTS)
def test_layouts_with_a_validation_folder(folders, tmp_path):
    train, train_masks, val, val_masks = (tmp_path / folder for folder in folders)
    touch(train, "b.png", "a.png"), touch(train_masks, "a_mask.png", "b_mask.png")
    touch(val, "c.png"), touch(val_masks, "c_mask.png")
    training, validation = find_splits(Data(data=tmp_path), seed=0)
    assert training == [Pair(train / f"{x}.png", train_masks / f"{x}_mask.png") for x in "ab"]
    assert validation == [Pair(val / "c.png", val_masks / "c_mask.png")]


def test_given_folders_are_used_as_given(tmp_path):
    i, m, vi, vm = (touch(tmp_path / name, "a.png", f"{name}.png") for name in ("i", "m", "vi", "vm"))
    for folder, other in ((i, m), (m, i), (vi, vm), (vm, vi)):
        touch(folder, f"{other.name}.png")
    training, validation = find_splits(Data(images=i, masks=m, val_images=vi, val_masks=vm), seed=0)
    assert [pair.image for pair in training] == [i / "a.png", i / "i.png", i / "m.png"]
    assert [pair.mask for pair in validation] == [vm / "a.png", vm / "vi.png", vm / "vm.png"]
    training, validation = find_splits(Data(images=i, masks=m, validation=34.0), seed=0)
    assert sorted(training + validation) == find_pairs(i, m)


def test_a_folder_of_no_known_layout_is_told_what_they_are(tmp_path):
    touch(tmp_path / "train", "a.png"), touch(tmp_path / "Ltrain", "a_mask.png")
    for root, why in ((tmp_path, "none of the known layouts"), (tmp_path / "nowhere", "no such folder")):
        with pytest.raises(DataError) as caught:
            find_splits(Data(data=root), seed=0)
        for part in (str(root), why, "train/ Ltrain/ val/ Lval/", "val/masks", "images/ masks/", "--val-masks"):
            assert part in str(caught.value)


def test_what_is_wrong_in_training_and_in_validation_is_told_at_once(tmp_path):
    touch(tmp_path / "train", "a.png", "b.png"), touch(tmp_path / "Ltrain", "a_mask.png")
    touch(tmp_path / "val", "c.png"), touch(tmp_path / "Lval", "c_mask.png", "d_mask.png")
    found = problems(find_splits, Data(data=tmp_path), 0)
    assert named(found, tmp_path / "train/b.png", tmp_path / "Lval/d_mask.png")


@pytest.fixture(scope="module")
def folders_of(tmp_path_factory):
    """count -> settings for a folder with so many pairs (of empty files)."""
    made = {}

    def folder(count, **changes) -> Data:
        if count not in made:
            root = made[count] = tmp_path_factory.mktemp(f"pairs{count}_")
            for side in ("images", "masks"):
                touch(root / side, *(f"{i:03}.png" for i in range(count)))
        return dataclasses.replace(Data(data=made[count]), **changes)

    for count in (1, 2, 3, 5, 10, 31):
        folder(count)
    return folder


@given(count=st.sampled_from([2, 3, 5, 10, 31]), percent=st.integers(1, 90), seed=st.integers(0, 2**40))
def test_a_percent_split_is_seeded_disjoint_complete_and_sorted(folders_of, count, percent, seed):
    settings = folders_of(count, validation=float(percent))
    aside = max(1, round(count * percent / 100))
    if aside == count:
        with pytest.raises(DataError, match="too few"):
            find_splits(settings, seed)
        return
    training, validation = find_splits(settings, seed)
    assert len(validation) == aside
    assert not set(training) & set(validation)
    assert sorted(training + validation) == find_pairs(settings.data / "images", settings.data / "masks")
    assert (training, validation) == (sorted(training), sorted(validation))
    assert find_splits(settings, seed) == (training, validation)


def test_another_seed_sets_others_aside(folders_of):
    chosen = {tuple(find_splits(folders_of(31), seed)[1]) for seed in range(10)}
    assert len(chosen) == 10


def test_one_pair_is_too_few_to_set_one_aside(folders_of):
    with pytest.raises(DataError) as caught:
        find_splits(folders_of(1), seed=0)
    for part in ("too few", "20 percent", "--val-images"):
        assert part in str(caught.value)


# pixels


@pytest.mark.parametrize("extension", sorted(tiles.EXTENSIONS))
def test_an_image_is_what_imread_gives(extension, tmp_path):
    path = tmp_path / f"a{extension}"
    Image.fromarray(picture(48, 64)).save(path)
    image = read_image(path)
    assert image.dtype == np.uint8
    assert image.shape == (48, 64, 3)
    assert image.tobytes() == cv2.imread(str(path)).tobytes()


@pytest.mark.parametrize(
    "pixels",
    [
        picture()[..., 0],
        np.dstack([picture(), picture(seed=1)[..., 0]]),
        picture().astype(np.uint16) * 257,
    ],
    ids=["gray", "with alpha", "16 bits"],
)
def test_other_kinds_of_png_become_three_bytes_as_with_imread(pixels, tmp_path):
    path = write(tmp_path / "a.png", pixels)
    assert read_image(path).shape == (6, 8, 3)
    assert read_image(path).tobytes() == cv2.imread(str(path)).tobytes()


def test_channels_come_as_blue_green_red(tmp_path):
    rgb = np.zeros((2, 2, 3), np.uint8)
    rgb[...] = (10, 20, 30)
    Image.fromarray(rgb).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png")[0, 0].tolist() == [30, 20, 10]


@pytest.mark.parametrize("name", ["Größe.png", "田んぼ.jpg", "поле 1.tif", "a b'c.png"])
def test_names_of_any_script_are_read(name, tmp_path):
    path = write(tmp_path / name, picture())
    assert read_image(path).shape == (6, 8, 3)


def gray(bgr: np.ndarray) -> np.ndarray:
    """OpenCV's fixed-point formula: weights of 15 bits that add up to 1, rounded."""
    b, g, r = np.moveaxis(bgr.astype(np.int64), -1, 0)
    return (3735 * b + 19235 * g + 9798 * r + 2**14) >> 15


colors = st.tuples(*[st.integers(0, 255) | st.integers(248, 255)] * 3)


@given(pixels=st.lists(colors, min_size=1, max_size=40))
def test_a_mask_is_1_where_the_gray_value_is_255(tmp_path_factory, pixels):
    path = tmp_path_factory.getbasetemp() / "mask.png"
    bgr = np.array([pixels], np.uint8)
    write(path, bgr)
    assert tiles.read_gray(path).tolist() == gray(bgr).tolist()
    assert read_mask(path).tolist() == (gray(bgr) // 255).tolist()
    assert read_mask(path).dtype == np.uint8


def test_a_mask_near_white_and_in_every_gray(tmp_path):
    near = 255 - np.stack(np.meshgrid(*[np.arange(8, dtype=np.uint8)] * 3, indexing="ij"), -1).reshape(8, 64, 3)
    found = read_mask(write(tmp_path / "near.png", near))
    assert found.tolist() == (gray(near) // 255).tolist()
    by_color = {tuple(color): int(value) for color, value in zip(near.reshape(-1, 3), found.ravel())}
    assert by_color[255, 255, 255] == 1
    assert by_color[255, 254, 255] == 0
    assert by_color[254, 254, 254] == 0
    assert by_color[254, 255, 255] == 1  # a little less blue still rounds to 255
    assert by_color[250, 255, 255] == 0
    grays = np.arange(256, dtype=np.uint8)[None]
    assert read_mask(write(tmp_path / "grays.png", grays)).tolist() == [[0] * 255 + [1]]


@pytest.mark.parametrize("bgr", [(0, 0, 255), (0, 255, 0), (255, 0, 0), (0, 255, 255)])
def test_a_colored_mask_pixel_is_background(bgr, tmp_path):
    path = write(tmp_path / "m.png", np.full((2, 2, 3), bgr, np.uint8))
    assert not read_mask(path).any()


def test_a_sample_has_image_and_mask(tmp_path):
    (pair,) = good_pairs(tmp_path, 1)
    sample = tiles.read_sample(pair)
    assert sample.keys() == {"image", "mask"}
    assert sample["image"].tobytes() == picture().tobytes()
    assert sample["mask"].tolist() == (mask() // 255).tolist()


# looking at every file


@pytest.mark.parametrize("workers", [0, 3])
def test_a_survey_counts_pairs_and_pixels(workers, tmp_path):
    pairs = good_pairs(tmp_path, 3)
    edges = mask()
    edges[0, :3], edges[1, 7] = (254, 128, 1), 7
    write(pairs[1].mask, edges)
    found = survey(pairs, workers)
    assert (found.pairs, found.height, found.width) == (3, 6, 8)
    assert found.class_pixels == (3 * 24 + 3, 3 * 24 - 3)
    assert found.lost_pixels == 4
    assert found.decoded_bytes == 3 * 6 * 8 * 4


@pytest.mark.parametrize("workers", [0, 3])
def test_every_file_that_is_wrong_is_listed_in_one_error(workers, tmp_path):
    pairs = good_pairs(tmp_path, 8)
    whole = pairs[0].image.read_bytes()
    pairs[0].image.write_bytes(whole[: len(whole) // 2])
    pairs[1].image.write_bytes(b"this is no PNG")
    pairs[2].mask.write_bytes(b"")
    write(pairs[3].mask, mask(width=10))
    write(pairs[4].image, picture(4, 4)), write(pairs[4].mask, mask(4, 4))
    pairs[5].mask.unlink()
    found = problems(survey, pairs, workers)
    paths = [pairs[0].image, pairs[1].image, pairs[2].mask, pairs[3].mask, pairs[4].image, pairs[5].mask]
    assert named(found, *paths)
    by_path = {line.split(": ")[0]: line for line in found}
    assert "(0 bytes)" in by_path[str(pairs[2].mask)]
    for part in ("10x6", "8x6", pairs[3].image.name):
        assert part in by_path[str(pairs[3].mask)]
    for part in ("4x4", "8x6", "3 of 8"):
        assert part in by_path[str(pairs[4].image)]


@given(cut=st.floats(0, 1, exclude_max=True))
def test_a_png_cut_anywhere_does_not_decode(tmp_path_factory, cut):
    path = tmp_path_factory.getbasetemp() / "cut.png"
    whole = write(path, picture()).read_bytes()
    path.write_bytes(whole[: int(cut * len(whole))])
    with pytest.raises(DataError, match=r"cut\.png"):
        read_image(path)


def test_a_jpeg_and_a_tiff_cut_short_do_not_decode(tmp_path):
    for name in ("a.jpg", "a.tif"):
        path = write(tmp_path / name, picture(64, 64))
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(DataError, match=name):
            read_image(path)


def test_when_every_file_is_wrong_every_one_is_listed(tmp_path):
    pairs = good_pairs(tmp_path, 2)
    for pair in pairs:
        pair.image.write_bytes(b"x"), pair.mask.write_bytes(b"")
    assert named(problems(survey, pairs), *(path for pair in pairs for path in (pair.image, pair.mask)))


def test_masks_of_0_and_1_are_refused_with_the_values_they_have(tmp_path):
    pairs = good_pairs(tmp_path, 2)
    for pair in pairs:
        write(pair.mask, mask(value=1))
    (line,) = problems(survey, pairs)
    for part in (str(tmp_path / "masks"), "0, 1,", "255"):
        assert part in line


def test_masks_of_many_values_but_255_are_refused_with_some_of_them(tmp_path):
    (pair,) = good_pairs(tmp_path, 1, height=2, width=100)
    write(pair.mask, np.arange(200, dtype=np.uint8).reshape(2, 100))
    (line,) = problems(survey, [pair])
    assert "0, 1, 2" in line
    assert "200 values" in line


def test_masks_without_any_field_are_a_survey_of_background(tmp_path):
    pairs = good_pairs(tmp_path, 2)
    for pair in pairs:
        write(pair.mask, mask(value=0))
    assert survey(pairs).class_pixels == (96, 0)


def test_a_survey_of_splits_lists_what_is_wrong_in_each(tmp_path):
    training, validation = good_pairs(tmp_path / "t", 3), good_pairs(tmp_path / "v", 3)
    assert [found.pairs for found in survey_splits([training, validation])] == [3, 3]
    training[1].image.write_bytes(b"x")
    write(validation[2].mask, mask(4, 4))
    assert named(problems(survey_splits, [training, validation]), training[1].image, validation[2].mask)


def test_the_made_up_fields_pass(tiles_root):
    training, validation = survey_splits(find_splits(Data(data=tiles_root), seed=0))
    assert (training.pairs, validation.pairs, training.height, training.width) == (10, 4, 32, 32)
    assert training.lost_pixels == 0


def test_an_image_is_not_its_own_mask(tmp_path):
    touch(tmp_path / "a", "x.png", "y.png")
    found = problems(find_pairs, tmp_path / "a", tmp_path / "a")
    assert named(found, tmp_path / "a/x.png", tmp_path / "a/y.png")
    assert "own mask" in found[0]
