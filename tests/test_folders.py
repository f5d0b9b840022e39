"""Layouts, and the split of the folders that users come with."""

import dataclasses
import re
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxseg.base.config import Data
from jaxseg.base.errors import DataError, UserError
from jaxseg.data.find import layouts
from jaxseg.data.find.folders import Split, find_pairs, find_split
from jaxseg.data.find.layouts import LAYOUTS, WORDS, Place
from jaxseg.data.find.listing import Pair
from jaxseg.data.made.fields import make_fields


def touch(folder: Path, *names: str) -> Path:
    """Empty files, for what is in them does not matter here."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def tree(root: Path, files: str) -> Path:
    """Makes the files named in `files`; x{1-3}.png stands for x1.png x2.png x3.png."""
    for name in files.split():
        span = re.search(r"\{(\d)-(\d)\}", name)
        numbers = range(int(span[1]), int(span[2]) + 1) if span else [0]
        touch(root, *(re.sub(r"\{.*\}", str(number), name) for number in numbers))
    return root


def found(root: Path, **changes) -> Split:
    return find_split(Data(data=root, **changes), seed=0)


def refused(settings: Data) -> DataError:
    with pytest.raises(DataError) as caught:
        find_split(settings, seed=0)
    return caught.value


def below(root: Path, pairs: tuple[Pair, ...]) -> list[tuple[str, str]]:
    return [(p.image.relative_to(root).as_posix(), p.mask.relative_to(root).as_posix()) for p in pairs]


# layouts

WITH_VALIDATION = {
    "the article's": (
        "train/{1-2}.png Ltrain/{1-2}_mask.png val/3.v2.png Lval/3_mask.png",
        [("train/1.png", "Ltrain/1_mask.png"), ("train/2.png", "Ltrain/2_mask.png")],
        [("val/3.v2.png", "Lval/3_mask.png")],
    ),
    "a folder for each split": (
        "Training/imgs/1.jpg Training/Labels/1.png valid/Image/2.jpg valid/gt/2.png",
        [("Training/imgs/1.jpg", "Training/Labels/1.png")],
        [("valid/Image/2.jpg", "valid/gt/2.png")],
    ),
    "splits in images and masks": (
        "images/train/1.png labels/train/1.png images/validation/2.png labels/validation/2.png",
        [("images/train/1.png", "labels/train/1.png")],
        [("images/validation/2.png", "labels/validation/2.png")],
    ),
    "mmsegmentation's": (
        "img_dir/train/1.jpg ann_dir/train/1.png img_dir/val/2.jpg ann_dir/val/2.png",
        [("img_dir/train/1.jpg", "ann_dir/train/1.png")],
        [("img_dir/val/2.jpg", "ann_dir/val/2.png")],
    ),
    "CamVid's": (
        "train/1.png trainannot/1.png val/2.png valannot/2.png",
        [("train/1.png", "trainannot/1.png")],
        [("val/2.png", "valannot/2.png")],
    ),
    "Massachusetts'": (
        "train/1.tiff train_labels/1.tif val/2.tiff val_labels/2.tif",
        [("train/1.tiff", "train_labels/1.tif")],
        [("val/2.tiff", "val_labels/2.tif")],
    ),
    "Cityscapes'": (
        "leftImg8bit/train/ulm/1_leftImg8bit.png leftImg8bit/val/bonn/2_leftImg8bit.png "
        "gtFine/train/ulm/1_gtFine_color.png gtFine/train/ulm/1_gtFine_labelTrainIds.png gtFine/train/ulm/1_x.json "
        "gtFine/val/bonn/2_gtFine_labelTrainIds.png gtFine/val/bonn/2_gtFine_color.png",
        [("leftImg8bit/train/ulm/1_leftImg8bit.png", "gtFine/train/ulm/1_gtFine_labelTrainIds.png")],
        [("leftImg8bit/val/bonn/2_leftImg8bit.png", "gtFine/val/bonn/2_gtFine_labelTrainIds.png")],
    ),
    "Pascal VOC's": (
        "JPEGImages/{1-4}.jpg SegmentationClass/{1-3}.png",
        [("JPEGImages/1.jpg", "SegmentationClass/1.png"), ("JPEGImages/3.jpg", "SegmentationClass/3.png")],
        [("JPEGImages/2.jpg", "SegmentationClass/2.png")],
    ),
    "DeepGlobe's": (
        "train/1_sat.jpg train/1_mask.png valid/2_sat.jpg valid/2_mask.png",
        [("train/1_sat.jpg", "train/1_mask.png")],
        [("valid/2_sat.jpg", "valid/2_mask.png")],
    ),
}
WITHOUT_VALIDATION = {
    "DRIVE's": "training/images/{1-5}_training.tif training/1st_manual/{1-5}_manual1.gif "
    "training/mask/{1-5}_training_mask.gif",
    "DRIVE's or HRF's": "images/{1-5}_test.tif 1st_manual/{1-5}_manual1.gif 2nd_manual/{1-5}_manual2.gif "
    "mask/{1-5}_test_mask.gif",
    "images and masks": "Images/{1-5}.png MASKS/{1-5}.png",
    "milesial's": "data/imgs/{1-5}.jpg data/masks/{1-5}_mask.png",
    "nnU-Net's": "imagesTr/{1-5}_0000.png labelsTr/{1-5}.png dataset.json",
    "Oxford Pets'": "images/{1-5}.jpg annotations/trimaps/{1-5}.png annotations/trimaps/._1.png annotations/list.txt",
    "images and masks together": "{1-5}_sat.jpg {1-5}_mask.png",
    "DeepGlobe's": "train/{1-5}_sat.jpg train/{1-5}_mask.png",
    "the article's": "train/{1-5}.jpg Ltrain/{1-5}_mask.png",
    "Massachusetts'": "train/{1-5}.jpg train_masks/{1-5}_mask.png",
    "a folder for each split": "train/image/{1-5}.png train/label/{1-5}.png",
}


@pytest.mark.parametrize("name", WITH_VALIDATION)
def test_layouts_with_a_validation_set(name, tmp_path):
    files, training, validation = WITH_VALIDATION[name]
    tree(tmp_path, files)
    if name == "Pascal VOC's":
        lists = touch(tmp_path, "ImageSets/Segmentation/train.txt") / "ImageSets/Segmentation"
        (lists / "train.txt").write_text("1\n3\n"), (lists / "val.txt").write_text("2\n")
    split = found(tmp_path)
    assert (below(tmp_path, split.training), below(tmp_path, split.validation)) == (training, validation)
    assert split.layout.startswith(name)
    assert split.notes == ()


@pytest.mark.parametrize(("name", "files"), WITHOUT_VALIDATION.items(), ids=WITHOUT_VALIDATION)
def test_layouts_without_one_are_split_by_percent(name, files, tmp_path):
    split = found(tree(tmp_path, files), validation=40.0)
    assert (len(split.training), len(split.validation)) == (3, 2)
    assert len({re.search(r"\d", p.image.name)[0] for p in split.training + split.validation}) == 5
    assert all(re.search(r"\d", p.image.name)[0] == re.search(r"\d", p.mask.name)[0] for p in split.training)
    assert split.layout.startswith(name)
    assert "40 percent" in split.layout
    assert split.notes == ()


def test_every_layout_of_the_table_is_tested():
    tested = {*WITH_VALIDATION, *WITHOUT_VALIDATION}
    assert [layout.name for layout in LAYOUTS if layout.name.split(",")[0] not in tested] == []


def test_the_layout_is_told_with_folders_names_and_how_it_was_split(tmp_path):
    tree(tmp_path, WITH_VALIDATION["the article's"][0])
    (tmp_path / "val/3.v2.png").rename(tmp_path / "val/3.png")
    layout = found(tmp_path).layout
    assert layout == "the article's: train/ Ltrain/ val/ Lval/; image x, mask x_mask; validation set as given"


def test_second_annotator_of_chasedb1_is_left_alone_and_named(tmp_path):
    tree(tmp_path, "Image_0{1-5}L.jpg Image_0{1-5}L_1stHO.png Image_0{1-5}L_2ndHO.png")
    split = found(tmp_path)
    assert {p.mask.name[-10:] for p in split.training + split.validation} == {"_1stHO.png"}
    assert len(split.training + split.validation) == 5
    assert "5 masks named *_2ndHO left alone: a second annotator's; *_1stHO are used" in split.notes


def test_other_folder_that_may_hold_the_masks_is_named_with_flags(tmp_path):
    tree(tmp_path, "images/{1-5}.png mask/{1-5}.png truth/{1-5}.png previews/{1-3}_x.png")
    assert found(tmp_path).notes == (
        f"{tmp_path / 'previews'}: 3 images left alone",
        f"{tmp_path / 'truth'}: 5 images left alone, though they pair with {tmp_path / 'images'}; {tmp_path / 'mask'} "
        f"is used. If these are the masks, give --images {tmp_path / 'images'} --masks {tmp_path / 'truth'}.",
    )


def test_folders_that_pair_by_name_are_proposed_as_two_flags(tmp_path):
    tree(tmp_path, "a/b/pictures/{1-5}.jpg a/b/groundtruth/{1-5}.png readme.txt")
    folder = tmp_path / "a/b"
    flags = f"--images {folder / 'pictures'} --masks {folder / 'groundtruth'}"
    assert f"Did you mean {flags} ?" in str(refused(Data(data=tmp_path)))
    for name in ("pictures", "groundtruth"):
        (folder / name).rename(folder / name[0])
    for path in (folder / "g").iterdir():
        path.write_bytes(b"long")
    flags = f"--images {folder / 'g'} --masks {folder / 'p'}"  # masks are the smaller files
    assert f"Did you mean {flags} ?" in str(refused(Data(data=tmp_path)))


def test_layout_three_levels_down_is_proposed(tmp_path):
    tree(tmp_path, "a/b/c/images/{1-3}.png a/b/c/masks/{1-3}.png")
    assert f"Did you mean --data {tmp_path / 'a/b/c'} ?" in str(refused(Data(data=tmp_path)))


@pytest.mark.parametrize("files", ["test/{1-3}.png testannot/{1-3}.png", "test/{1-3}.png Ltest/{1-3}_mask.png"])
def test_test_images_with_masks_are_recognized(files, tmp_path):
    place = layouts.recognize_test(tree(tmp_path, files))
    assert len(find_pairs(*place.training)) == 3
    assert "--split test" in str(refused(Data(data=tmp_path)))


def test_unpaired_skip_leaves_out_files_and_names_them(tmp_path):
    tree(tmp_path, "images/{1-9}.png masks/{2-9}.png masks/10.png")
    error = refused(Data(data=tmp_path))
    assert len(error.problems) == 2
    assert "--unpaired skip" in error.advice
    split = found(tmp_path, unpaired="skip")
    assert len(split.training + split.validation) == 8
    assert split.notes == (
        f"{tmp_path / 'images'}: 1 files without a mask left out (--unpaired skip): 1.png",
        f"{tmp_path / 'masks'}: 1 files that are masks without an image left out (--unpaired skip): 10.png",
    )


def test_empty_validation_folder_is_named(tmp_path):
    tree(tmp_path, "train/images/{1-5}.png train/masks/{1-5}.png")
    for name in ("images", "masks"):
        (tmp_path / "val" / name).mkdir(parents=True)
    error = refused(Data(data=tmp_path))
    assert f"{tmp_path / 'val/images'}: is empty; expected images." in str(error)
    assert "remove a validation set that is empty" in error.advice


def test_training_list_alone_draws_validation_from_the_list(tmp_path):
    tree(tmp_path, "images/{1-9}.png masks/{1-5}.png")
    (tmp_path / "t").write_text("1\n2\n3\n4\n5\n")
    split = found(tmp_path, train_list=tmp_path / "t", validation=40.0)
    assert sorted(split.training_names + split.validation_names) == [f"{i}.png" for i in range(1, 6)]
    assert len(split.validation) == 2
    assert "40 percent of t drawn for validation" in split.layout


def test_single_pair_is_enough_to_train_on_all(tmp_path):
    split = find_split(Data(data=tree(tmp_path, "images/1.png masks/1.png")), 0, all_train=True)
    assert (len(split.training), len(split.validation)) == (1, 0)


def test_two_layouts_that_fit_are_both_named(tmp_path):
    tree(tmp_path, "train/1.png Ltrain/1_mask.png train_labels/1.png images/1.png masks/1.png")
    error = refused(Data(data=tmp_path))
    assert "more than one layout" in str(error)
    assert error.problems == (
        "the article's: train/ Ltrain/",
        "Massachusetts': train/ train_labels/",
        "images and masks: images/ masks/",
    )
    assert "--images" in str(error)


def test_two_validation_folders_are_ambiguous(tmp_path):
    tree(
        tmp_path,
        "train/images/1.png train/masks/1.png val/images/2.png val/masks/2.png valid/imgs/3.png valid/gt/3.png",
    )
    assert len(refused(Data(data=tmp_path)).problems) == 2


def test_a_folder_without_images_is_no_rival(tmp_path):
    tree(tmp_path, "images/{1-3}.png masks/{1-3}.png labels/1.txt gt/.1.png")
    assert found(tmp_path).layout.startswith("images and masks: images/ masks/")


def test_a_folder_of_no_known_layout_is_told_what_is_there_and_what_was_looked_for(tmp_path):
    tree(tmp_path, "photos/{1-3}.jpg photos/1.xml truth/deep/{1-2}.png a.txt")
    error = refused(Data(data=tmp_path))
    assert error.problems == (
        f"{tmp_path}: 1 of .txt",
        f"{tmp_path / 'photos'}: 3 images, 1 of .xml",
        f"{tmp_path / 'truth/deep'}: 2 images",
    )
    shapes = ("train/ Ltrain/ val/ Lval/", "val/masks/", "images/ masks/", "JPEGImages/ SegmentationClass/", "imgs")
    for part in (f"--data {tmp_path}: no known layout fits", *shapes, "--val-masks"):
        assert part in str(error)


def test_an_empty_or_missing_folder_and_a_file_are_told_apart(tmp_path):
    assert "empty" in str(refused(Data(data=tmp_path)))
    (tmp_path / "a.png").touch()
    for name, why in (("nowhere", "no such folder"), ("a.png", "not a folder")):
        error = refused(Data(data=tmp_path / name))
        assert f"--data {tmp_path / name}: {why}" in str(error)
        assert "images/ masks/" in str(error)


def test_the_folder_below_that_has_a_layout_is_proposed(tmp_path):
    tree(tmp_path, "CamVid/train/1.png CamVid/trainannot/1.png readme.txt")
    assert f"Did you mean --data {tmp_path / 'CamVid'} ?" in str(refused(Data(data=tmp_path)))


@pytest.mark.parametrize(
    ("files", "there", "missing"),
    [
        ("train/1.png Ltrain/1_mask.png val/2.png", "val", "Lval"),
        ("train/1.png Ltrain/1_mask.png Lval/2.png", "Lval", "val"),
        ("train/images/1.png train/masks/1.png val/images/2.png val/truth/2.png", "val/images", "val/masks"),
        ("img_dir/train/1.png ann_dir/train/1.png img_dir/val/2.png", "img_dir/val", "ann_dir/val"),
    ],
)
def test_half_a_validation_set_is_an_error_that_names_the_other_half(files, there, missing, tmp_path):
    tree(tmp_path, files)
    error = refused(Data(data=tmp_path))
    assert error.problems == (f"{tmp_path / there}: is there", f"{tmp_path / missing}: no such folder")
    assert "half of the validation set is missing" in str(error)


def test_folders_of_test_images_and_odd_validation_folders_are_left_alone_and_named(tmp_path):
    tree(tmp_path, "train/{1-5}_sat.jpg train/{1-5}_mask.png valid/{6-8}_sat.jpg test/9_sat.jpg")
    split = found(tmp_path)
    assert len(split.training + split.validation) == 5
    assert split.notes == (
        f"{tmp_path / 'test'}: skipped; test images are used for neither training nor validation",
        f"{tmp_path / 'valid'}: ignored; it does not hold images and masks of this layout",
    )
    for name, files in (
        ("a", "images/{1-5}.png masks/{1-5}.png images/test/1.png"),
        ("b", "imagesTr/{1-5}.png labelsTr/{1-5}.png imagesTs/6.png"),
    ):
        (note,) = found(tree(tmp_path / name, files)).notes
        assert "skipped" in note


def test_what_is_wrong_in_training_and_in_validation_is_told_at_once(tmp_path):
    tree(tmp_path, "train/{1-3}.png Ltrain/{2-3}_mask.png val/1.png Lval/1_mask.png Lval/2_mask.png")
    error = refused(Data(data=tmp_path, mask_suffix="_mask"))
    assert [line.split(": ")[0] for line in error.problems] == [
        str(tmp_path / "train/1.png"),
        str(tmp_path / "Lval/2_mask.png"),
    ]
    for part in (f"1 of 3 images in {tmp_path / 'train'}", f"1 images in {tmp_path / 'val'}"):
        assert part in str(error)


@given(st.lists(st.sampled_from([*WITH_VALIDATION, *WITHOUT_VALIDATION]), min_size=1, max_size=3, unique=True))
def test_mixed_layouts_are_read_whole_or_refused(tmp_path_factory, names):
    """Whatever lies beside: never half of a layout, never an error without words."""
    root = tmp_path_factory.mktemp("mixed")
    for name in names:
        tree(root, WITH_VALIDATION[name][0] if name in WITH_VALIDATION else WITHOUT_VALIDATION[name])
    try:
        split = found(root)
    except DataError as error:
        said = error.problems
    else:
        said = split.layout
        assert not set(split.training) & set(split.validation)
        assert split.validation
    assert said


# flags


def test_given_folders_are_used_as_given(tmp_path):
    tree(tmp_path, "images/{1-9}.png masks/{1-9}.png pics/{1-5}.png truth/{1-5}.png vi/6.png vm/6_label.png")
    folders = {name: tmp_path / of for name, of in (("images", "pics"), ("masks", "truth"))}
    val = {"val_images": tmp_path / "vi", "val_masks": tmp_path / "vm"}
    split = find_split(Data(**folders, **val), seed=0)
    assert split.training == tuple(find_pairs(tmp_path / "pics", tmp_path / "truth"))
    assert split.validation == (Pair(tmp_path / "vi/6.png", tmp_path / "vm/6_label.png"),)
    assert "image x, mask x or image x, mask x_label" in split.layout
    split = find_split(Data(**folders, validation=40.0), seed=0)
    assert len(split.validation) == 2


def test_suffix_flags_win_over_the_layouts_own(tmp_path):
    root = tree(tmp_path, WITH_VALIDATION["Cityscapes'"][0])
    split = found(root, mask_suffix="_gtFine_color")
    assert [pair.mask.name for pair in split.training + split.validation] == [
        "1_gtFine_color.png",
        "2_gtFine_color.png",
    ]


def test_no_folder_at_all_is_a_mistake_of_the_user():
    with pytest.raises(UserError, match="--data, or --images and --masks"):
        find_split(Data(), seed=0)


def test_validation_images_that_are_training_images_are_listed(tmp_path):
    tree(tmp_path, "i/{1-4}.png m/{1-4}.png")
    folders = (tmp_path / "i", tmp_path / "m")
    error = refused(Data(images=folders[0], masks=folders[1], val_images=folders[0], val_masks=folders[1]))
    assert error.problems == tuple(f"{folders[0] / f'{i}.png'}: is on both sides" for i in range(1, 5))


# splits


@pytest.fixture(scope="module")
def folders_of(tmp_path_factory):
    """count -> settings for a folder with so many pairs, of scenes of four tiles."""
    made = {}

    def folder(count: int, **changes) -> Data:
        if count not in made:
            made[count] = tmp_path_factory.mktemp(f"pairs{count}_")
            for side in ("images", "masks"):
                touch(made[count], *(f"{side}/scene{i // 4:02}_{i % 4}.png" for i in range(count)))
        return dataclasses.replace(Data(data=made[count]), **changes)

    return folder


@given(
    count=st.sampled_from([2, 3, 5, 10, 31]),
    percent=st.integers(1, 90),
    seed=st.integers(0, 2**32 - 1),
    grouped=st.booleans(),
)
def test_every_pair_is_on_one_side_and_the_seed_says_which(folders_of, count, percent, seed, grouped):
    settings = folders_of(count, validation=float(percent), group_by=r"scene(\d+)_" if grouped else None)
    if (count <= 4 and grouped) or (not grouped and max(1, round(count * percent / 100)) == count):
        with pytest.raises(DataError, match=r"one group|too few"):
            find_split(settings, seed)
        return
    split = find_split(settings, seed)
    assert not set(split.training) & set(split.validation)
    assert sorted(split.training + split.validation) == find_pairs(settings.data / "images", settings.data / "masks")
    assert (split.training, split.validation) == (tuple(sorted(split.training)), tuple(sorted(split.validation)))
    assert find_split(settings, seed) == split
    scenes = [{pair.image.name[:7] for pair in side} for side in (split.training, split.validation)]
    assert not (grouped and scenes[0] & scenes[1])
    assert split.training_names == [pair.image.name for pair in split.training]


def test_a_plain_percentage_draws_what_it_always_drew(folders_of):
    split = find_split(folders_of(31), seed=3)
    assert [pair.image.stem[5:] for pair in split.validation] == ["00_3", "04_1", "04_2", "05_0", "06_3", "07_2"]


def test_one_pair_is_too_few_to_set_one_aside(folders_of):
    error = refused(folders_of(1))
    for part in ("1 image is too few", "20 percent", "--val-images"):
        assert part in str(error)


def test_tiles_of_a_scene_on_both_sides_are_a_note_that_grouping_ends(folders_of):
    (note,) = find_split(folders_of(31), seed=0).notes
    assert r"--group-by 'scene(\d+)_' keeps scenes whole" in note
    split = find_split(folders_of(31, group_by=r"scene(\d+)_"), seed=0)
    assert split.notes == ()
    assert r"2 of 8 groups of 'scene(\d+)_' drawn for validation, 22.6 percent of the pairs" in split.layout


def test_groups_on_both_sides_of_given_folders_are_a_note(tmp_path):
    tree(tmp_path, "train/s{1-3}_0.png Ltrain/s{1-3}_0_mask.png val/s{3-4}_1.png Lval/s{3-4}_1_mask.png")
    (note,) = found(tmp_path, group_by=r"s(\d)_").notes
    groups = r"1 of 4 groups of --group-by 's(\d)_'"
    assert note == groups + " are in both training and validation, such as '3': s3_0.png and s3_1.png"
    assert refused(Data(data=tmp_path, group_by=r"s(\d)_0")).problems == tuple(
        f"s{i}_1.png: does not match" for i in (3, 4)
    )


def test_lists_choose_among_all_images_and_others_need_no_mask(tmp_path):
    tree(tmp_path, "images/{1-9}.png masks/{1-6}_mask.png masks/8_mask.png")
    (tmp_path / "t").write_text("1\n5.png\n"), (tmp_path / "v").write_text("images/3\n")
    split = found(tmp_path, train_list=tmp_path / "t", val_list=tmp_path / "v")
    assert (split.training_names, split.validation_names) == (["1.png", "5.png"], ["3.png"])
    assert "split by t and v" in split.layout
    (tmp_path / "t").write_text("1\n5\n7\n")
    error = refused(Data(data=tmp_path, train_list=tmp_path / "t", val_list=tmp_path / "v"))
    assert [line.split(": ")[0] for line in error.problems] == [str(tmp_path / "images/7.png")]


def test_lists_win_over_validation_folders(tmp_path):
    root = tree(tmp_path, "train/{1-3}.png Ltrain/{1-3}_mask.png val/3.png val/4.png Lval/{3-4}_mask.png")
    (root / "t").write_text("1\nval/3\n"), (root / "v").write_text("2\n4\n")
    split = found(root, train_list=root / "t", val_list=root / "v")
    assert [pair.image for pair in split.training] == [root / "train/1.png", root / "val/3.png"]
    assert [pair.image for pair in split.validation] == [root / "train/2.png", root / "val/4.png"]


def test_validation_list_alone_is_refused(tmp_path):
    tree(tmp_path, "images/{1-3}.png masks/{1-3}.png")
    with pytest.raises(UserError, match="--val-list needs --train-list"):
        found(tmp_path, val_list=tmp_path / "t")


def test_names_below_subfolders_are_paths(tmp_path):
    tree(tmp_path, "images/{1-4}/a.png masks/{1-4}/a.png")
    split = found(tmp_path)
    assert len(split.training_names) == 3
    assert set(split.training_names) < {f"{i}/a.png" for i in range(1, 5)}


def test_the_made_up_fields_are_found(tmp_path):
    split = found(make_fields(tmp_path / "fields", train=3, val=2, size=32))
    assert (len(split.training), len(split.validation)) == (3, 2)
    shutil.move(tmp_path / "fields/Lval", tmp_path / "fields/masks_of_val")
    assert "half of the validation set" in str(refused(Data(data=tmp_path / "fields")))


def test_words_of_layouts_do_not_overlap():
    words = [word for names in WORDS.values() for word in names.split("|")]
    assert len(set(words)) == len(words)


def test_a_place_is_more_specific_if_its_folders_lie_in_the_others_and_it_has_validation_too(tmp_path):
    outer, inner = Place("a", (tmp_path, tmp_path)), Place("b", (tmp_path / "x", tmp_path / "y"))
    assert layouts._within(inner, outer)
    assert not layouts._within(outer, inner)
    assert not layouts._within(outer, outer)
    both = dataclasses.replace(outer, validation=(tmp_path / "v", tmp_path / "w"))
    assert not layouts._within(inner, both)  # it would lose the validation
    assert layouts._within(dataclasses.replace(inner, validation=both.validation), both)
    assert layouts._within(dataclasses.replace(inner, validation=both.validation), outer)
    elsewhere = dataclasses.replace(inner, validation=(tmp_path / "v2", tmp_path / "w"))
    assert not layouts._within(elsewhere, both)
