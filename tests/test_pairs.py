"""Which mask belongs to which image, and what is said about those that have no counterpart."""

import os
import re
import sys
import tempfile
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxseg.base.config import Data
from jaxseg.base.errors import DataError
from jaxseg.data.find.listing import Pair
from jaxseg.data.find.names import IMAGE_NAMES, MASK_NAMES, star
from jaxseg.data.find.pairs import find_pairs, match


def touch(folder: Path, *names: str) -> Path:
    """Empty files, for what is in them does not matter here."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def error(images: Path, masks: Path, settings: Data | None = None) -> DataError:
    """What is raised; each offender once, and each of the first 20 in the message."""
    with pytest.raises(DataError) as caught:
        find_pairs(images, masks, settings or Data())
    problems = caught.value.problems
    assert len(set(problems)) == len(problems)
    assert [problem for problem in problems[:20] if problem not in str(caught.value)] == []
    return caught.value


def offenders(found: DataError) -> list[str]:
    return sorted(line.split(": ")[0] for line in found.problems)


def names(pairs: list[Pair]) -> list[tuple[str, str]]:
    return [(pair.image.name, pair.mask.name) for pair in pairs]


# what pairs up


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


stems = st.from_regex(r"[a-z0-9]{1,3}([._-][a-z0-9]{1,2}){0,2}", fullmatch=True)


@given(
    stems=st.sets(stems, min_size=1, max_size=8),
    image=st.sampled_from(IMAGE_NAMES),
    mask=st.sampled_from(MASK_NAMES),
    deep=st.booleans(),
)
def test_each_image_gets_the_mask_made_from_its_stem(stems, image, mask, deep):
    with tempfile.TemporaryDirectory() as root:
        folder = "a/b/" if deep else ""
        made = {(folder + image.replace("*", s) + ".jpg", folder + mask.replace("*", s) + ".png") for s in stems}
        images = touch(Path(root, "i"), *(name for name, _ in made))
        masks = touch(Path(root, "m"), *(name for _, name in made))
        settings = Data(
            image_suffix=image[1:] if image.startswith("*") else None,
            mask_suffix=mask[1:] if mask.startswith("*") else None,
        )
        expected = [Pair(images / a, masks / b) for a, b in sorted(made)]
        assert find_pairs(images, masks, settings) == expected
        assert match(images, masks, settings).names == sorted(name for name, _ in made)


@pytest.mark.parametrize("image", IMAGE_NAMES)
@pytest.mark.parametrize("mask", MASK_NAMES)
def test_known_affixes_are_found_without_flags_and_reported(image, mask, tmp_path):
    made = [(image.replace("*", s) + ".png", mask.replace("*", s) + ".png") for s in ("field1", "field2", "wood.3")]
    images, masks = touch(tmp_path / "i", *(a for a, _ in made)), touch(tmp_path / "m", *(b for _, b in made))
    found = match(images, masks, Data())
    assert names(list(found.pairs)) == sorted(made)
    assert (found.rule.image, found.rule.mask) == (image, mask)
    assert str(found.rule) == f"image {image}, mask {mask}".replace("*", "x")


def test_equal_stems_come_before_affixes(tmp_path):
    both = ("a_mask.png", "b_mask.png")
    assert names(find_pairs(touch(tmp_path / "i", *both), touch(tmp_path / "m", *both))) == [(x, x) for x in both]


def test_19_of_20_are_enough_for_an_affix_and_18_are_not(tmp_path):
    images = touch(tmp_path / "i", *(f"{i:02}.png" for i in range(20)))
    masks = touch(tmp_path / "m", *(f"{i:02}_label.png" for i in range(19)))
    assert offenders(error(images, masks)) == [str(images / "19.png")]
    (masks / "18_label.png").unlink()
    found = error(images, masks)
    assert len(found.problems) == 20 + 18
    assert '18 masks end in "_label": try --mask-suffix _label' in str(found)
    assert offenders(error(images, masks, Data(mask_suffix="_label"))) == [str(images / f"{i}.png") for i in (18, 19)]


def test_flags_win_over_what_would_be_found(tmp_path):
    images = touch(tmp_path / "i", "a_sat.png", "a.png")
    masks = touch(tmp_path / "m", "a.png", "a_gt.png", "a_sat.png", "a_sat_gt.png")
    found = find_pairs(images, masks, Data(mask_suffix="_gt"))
    assert names(found) == [("a.png", "a_gt.png"), ("a_sat.png", "a_sat_gt.png")]
    found = find_pairs(images, masks, Data(mask_suffix=""))
    assert names(found) == [("a.png", "a.png"), ("a_sat.png", "a_sat.png")]
    (masks / "a_sat_gt.png").unlink()
    found = find_pairs(images, masks, Data(image_suffix="_sat", mask_suffix="_gt"))
    assert names(found) == [("a_sat.png", "a_gt.png")]


def test_images_and_masks_in_one_folder(tmp_path):
    folder = touch(tmp_path, *(f"{i}_{end}" for i in range(3) for end in ("sat.jpg", "mask.png")))
    assert names(find_pairs(folder, folder)) == [(f"{i}_sat.jpg", f"{i}_mask.png") for i in range(3)]
    touch(folder, "3_sat.jpg", "4_mask.png", "5.png")
    assert offenders(error(folder, folder)) == [str(folder / name) for name in ("3_sat.jpg", "4_mask.png", "5.png")]


def test_one_folder_with_stems_and_a_suffix_below_subfolders(tmp_path):
    folder = touch(tmp_path, "p1/x_1.tif", "p1/x_1_mask.tif", "p2/x_1.tif", "p2/x_1_mask.tif")
    found = match(folder, folder, Data())
    assert [pair.mask for pair in found.pairs] == [folder / f"p{i}/x_1_mask.tif" for i in (1, 2)]
    assert found.names == ["p1/x_1.tif", "p2/x_1.tif"]


def test_subfolders_pair_by_their_path(tmp_path):
    images = touch(tmp_path / "i", "b/1.png", "a/1.png", "a/x/1.png", "0.png")
    masks = touch(tmp_path / "m", "b/1.png", "a/1.png", "a/x/1.png", "0.png")
    assert match(images, masks, Data()).names == ["0.png", "a/1.png", "a/x/1.png", "b/1.png"]
    assert [p.mask.relative_to(masks) for p in find_pairs(images, masks)] == [
        p.image.relative_to(images) for p in find_pairs(images, masks)
    ]
    (masks / "b/1.png").rename(masks / "a/2.png")
    assert offenders(error(images, masks)) == [str(images / "b/1.png"), str(masks / "a/2.png")]


def test_subfolders_of_one_side_only_are_left_out_and_named(tmp_path):
    images, masks = touch(tmp_path / "i", "1.png", "more/2.png", "more/3.png"), touch(tmp_path / "m", "1.png")
    found = match(images, masks, Data())
    assert found.names == ["1.png"]
    assert found.notes == (f"{images / 'more'}: its 2 images are skipped because {masks} has no folder of that name",)


def test_a_test_folder_is_left_alone_and_named(tmp_path):
    images = touch(tmp_path / "i", "a/1.png", "Test/2.png")
    masks = touch(tmp_path / "m", "a/1.png", "Test/2.png")
    found = match(images, masks, Data())
    assert found.names == ["a/1.png"]
    assert found.notes == (f"{images / 'Test'}: skipped; test images are used for neither training nor validation",)


def test_dot_files_sidecars_and_empty_folders_are_skipped(tmp_path):
    images = touch(tmp_path / "i", "a.tif", ".b.png", "._c.png", "notes.txt", "Thumbs.db", "a.tif.aux.xml", "a.tfw")
    masks = touch(tmp_path / "m", "a.png", ".DS_Store", "._a.png", "a.json", "a.png.aux.xml")
    (images / "folder.png").mkdir()
    (masks / "more.png").mkdir()
    touch(images / ".cache", "a.png"), touch(masks / ".cache", "b.png")
    touch(images / "__MACOSX", "a.png"), touch(masks / "__MACOSX", "b.png")
    assert names(find_pairs(images, masks)) == [("a.tif", "a.png")]


def test_composed_and_decomposed_accents_are_the_same_name(tmp_path):
    composed, apart = (unicodedata.normalize(form, "é/Größe") for form in ("NFC", "NFD"))
    images = touch(tmp_path / "i", composed + ".png", "a.png")
    masks = touch(tmp_path / "m", apart + "_mäsk.png", "a_mäsk.png")
    suffix = unicodedata.normalize("NFC", "_mäsk")
    (masks / "a_mäsk.png").rename(masks / (unicodedata.normalize("NFD", "a_mäsk") + ".png"))
    (masks / (apart + "_mäsk.png")).rename(masks / (apart + unicodedata.normalize("NFD", "_mäsk") + ".png"))
    for form in ("NFC", "NFD"):
        settings = Data(mask_suffix=unicodedata.normalize(form, suffix))
        assert [pair.image.stem for pair in find_pairs(images, masks, settings)] == ["a", composed.split("/")[1]]


def test_links_are_followed_and_loops_end(tmp_path):
    images, masks = touch(tmp_path / "i", "a/1.png"), touch(tmp_path / "m", "a/1.png")
    try:
        for folder in (images, masks):
            (folder / "a/up").symlink_to(folder, target_is_directory=True)
            (folder / "self").symlink_to(folder / "self")
        (images / "a/2.png").symlink_to(images / "a/1.png")
    except OSError:
        pytest.skip("no symbolic links here")
    touch(masks, "a/2.png")
    assert match(images, masks, Data()).names == ["a/1.png", "a/2.png"]


# what does not


def test_every_image_without_mask_and_mask_without_image_is_listed(tmp_path):
    images = touch(tmp_path / "i", *(f"{i:02}.png" for i in range(40)), "b.png", "c.png")
    masks = touch(tmp_path / "m", *(f"{i:02}_mask.png" for i in range(40)), "d_mask.png", "e.png")
    found = error(images, masks)
    assert offenders(found) == [
        str(p) for p in (images / "b.png", images / "c.png", masks / "d_mask.png", masks / "e.png")
    ]
    assert f"2 of 42 images in {images} have no mask (42 masks in {masks}):" in str(found)
    assert f"{images / 'b.png'}: has no mask, expected {masks / 'b_mask'}.*" in found.problems
    assert "image x, mask x_mask" in str(found)


@pytest.mark.parametrize(
    ("image", "mask", "advice"),
    [
        ("{}", "{}_truth", '5 masks end in "_truth": try --mask-suffix _truth'),
        ("{}", "{}-gt", '5 masks end in "-gt": try --mask-suffix=-gt'),
        ("{}", "{} my mask", "try --mask-suffix ' my mask'"),
        ("{}.ortho", "{}.truth", '5 images end in ".ortho", 5 masks end in ".truth": try --image-suffix .ortho'),
        ("{}_nir", "{}", "try --image-suffix _nir"),
        ("{}_x", "{}_Mask", "try --image-suffix _x --mask-suffix _Mask"),
    ],
)
def test_a_suffix_that_is_not_known_is_proposed_and_then_works(image, mask, advice, tmp_path):
    images = touch(tmp_path / "i", *(image.format(f"tile{i}_0{i}") + ".png" for i in range(5)))
    masks = touch(tmp_path / "m", *(mask.format(f"tile{i}_0{i}") + ".png" for i in range(5)))
    found = error(images, masks)
    assert advice in str(found)
    assert len(found.problems) == 10
    settings = Data(image_suffix=image[2:], mask_suffix=mask[2:])
    assert len(find_pairs(images, masks, settings)) == 5


def test_other_suffixes_that_pair_as_many_are_named_too(tmp_path):
    images = touch(tmp_path / "i", *(f"{i}_leftImg8bit.png" for i in range(5)))
    masks = touch(tmp_path / "m", *(f"{i}_gtFine_{kind}.png" for i in range(5) for kind in ("color", "labelIds")))
    found = str(error(images, masks))
    assert "--image-suffix _leftImg8bit --mask-suffix _gtFine_color (or _gtFine_labelIds)" in found


def test_a_suffix_flag_that_fits_nothing_is_an_error_that_says_so(tmp_path):
    images, masks = touch(tmp_path / "i", "a.png", "b.png"), touch(tmp_path / "m", "a.png", "b.png")
    for settings in (Data(image_suffix="_x"), Data(mask_suffix="_x"), Data(image_suffix="_x", mask_suffix="_x")):
        found = error(images, masks, settings)
        assert set(offenders(found)) >= {str(images / "a.png"), str(images / "b.png")}
        assert "leave --image-suffix and --mask-suffix out" in str(found)


def test_images_without_the_suffix_of_a_flag_are_left_out_and_counted(tmp_path):
    images, masks = (
        touch(tmp_path / "i", "a_sat.png", "a_nir.png", "b_sat.png"),
        touch(tmp_path / "m", "a.png", "b.png"),
    )
    found = match(images, masks, Data(image_suffix="_sat"))
    assert found.names == ["a_sat.png", "b_sat.png"]
    assert found.notes == (f"{images}: 1 of 3 images skipped, not named *_sat",)


def test_names_that_differ_in_case_do_not_pair_and_the_case_is_named(tmp_path):
    images, masks = touch(tmp_path / "i", "Tile1.png", "b.png"), touch(tmp_path / "m", "tile1.png", "b.png")
    found = error(images, masks)
    assert f"expected {masks / 'Tile1'}.*; tile1.png differs in upper and lower case" in found.problems[0]


def test_two_masks_for_an_image_are_named_both(tmp_path):
    images = touch(tmp_path / "i", "a.png", "b.png")
    masks = touch(tmp_path / "m", "a_mask.png", "b_mask.png", "b_label.png")
    found = error(images, masks)
    assert found.problems == (f"{masks / 'b_label.png'}: may be the mask of b.png, but so may b_mask.png",)
    assert "--mask-suffix" in str(found)
    touch(masks, "a_label.png")
    assert names(find_pairs(images, masks, Data(mask_suffix="_label"))) == [
        ("a.png", "a_label.png"),
        ("b.png", "b_label.png"),
    ]


def test_stems_that_are_not_unique_are_refused_on_either_side(tmp_path):
    images = touch(tmp_path / "i", "a.jpg", "a.png", "b.png", "c.png")
    masks = touch(tmp_path / "m", "a.png", "b.bmp", "b.png", "c.png")
    found = error(images, masks)
    assert found.problems == (
        f"{images / 'a.png'}: has the same mask as a.jpg (a.png)",
        f"{masks / 'b.png'}: may be the mask of b.png, but so may b.bmp",
    )


def test_images_that_share_a_mask_by_the_articles_rule_are_refused(tmp_path):
    images, masks = touch(tmp_path / "i", "a.1.png", "a.2.png"), touch(tmp_path / "m", "a_mask.png")
    found = error(images, masks)
    assert str(images / "a.2.png") in offenders(found)


def test_an_image_is_not_its_own_mask(tmp_path):
    touch(tmp_path / "a", "x.png", "y.png")
    found = error(tmp_path / "a", tmp_path / "a")
    assert offenders(found) == [str(tmp_path / "a/x.png"), str(tmp_path / "a/y.png")]
    assert "own mask" in found.problems[0]


def test_a_mask_that_is_a_link_to_its_image_is_refused(tmp_path):
    images, masks = touch(tmp_path / "i", "x.png", "y.png"), touch(tmp_path / "m", "y.png")
    try:
        (masks / "x.png").symlink_to(images / "x.png")
    except OSError:
        pytest.skip("no symbolic links here")
    assert error(images, masks).problems == (f"{masks / 'x.png'}: is the same file as its image {images / 'x.png'}",)


def test_links_to_files_that_are_not_there_are_listed(tmp_path):
    images, masks = touch(tmp_path / "i", "x.png"), touch(tmp_path / "m", "x.png")
    try:
        (images / "y.png").symlink_to(tmp_path / "annex/y"), (masks / "y.png").symlink_to(tmp_path / "annex/z")
    except OSError:
        pytest.skip("no symbolic links here")
    found = error(images, masks)
    assert offenders(found) == [str(images / "y.png"), str(masks / "y.png")]
    assert "is a broken link" in found.problems[0]
    assert "git annex get" in str(found)


def test_folders_that_are_missing_are_both_named(tmp_path):
    (tmp_path / "file").touch()
    found = error(tmp_path / "nowhere", tmp_path / "file")
    assert found.problems == (f"{tmp_path / 'nowhere'}: no such folder", f"{tmp_path / 'file'}: not a folder")


def test_a_folder_without_images_is_named_with_what_is_in_it_and_the_extensions_looked_for(tmp_path):
    images = touch(tmp_path / "i", ".hidden.png", "a.mat", "b.mat", "sub/c.png")
    found = error(images, touch(tmp_path / "m", "a.png"))
    for part in (str(images), "2 of .mat", ".png", f"{images / 'sub'}: its 1 images"):
        assert part in str(found)


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="everything can be opened")
def test_a_folder_that_cannot_be_opened_is_named(tmp_path):
    images, masks = touch(tmp_path / "i", "x.png"), touch(tmp_path / "m", "x.png")
    masks.chmod(0)
    try:
        assert offenders(error(images, masks)) == [str(masks)]
    finally:
        masks.chmod(0o700)


def test_a_long_list_of_problems_is_cut_in_the_message_and_whole_in_the_error(tmp_path):
    images, masks = touch(tmp_path / "i", *(f"{i:02}.png" for i in range(30))), touch(tmp_path / "m", "00.png")
    found = error(images, masks)
    assert len(found.problems) == 29
    assert "and 9 more" in str(found)


@given(
    stem=st.text(st.characters(categories=("L", "N", "P")), min_size=1, max_size=6), name=st.sampled_from(MASK_NAMES)
)
def test_the_star_of_a_name_is_what_was_put_there(stem, name):
    assert star(name, name.replace("*", stem)) == stem
    assert star(name, name.replace("*", "")) is None


@given(
    images=st.sets(st.from_regex(r"[ab]{1,2}(_mask|_gt)?", fullmatch=True), max_size=6),
    masks=st.sets(st.from_regex(r"[ab]{1,2}(_mask|_gt)?", fullmatch=True), max_size=6),
)
def test_every_file_is_in_one_pair_or_named_in_the_error(images, masks):
    with tempfile.TemporaryDirectory() as root:
        folders = [
            touch(Path(root, side), "z.png", *(f"{x}.png" for x in of)) for side, of in (("i", images), ("m", masks))
        ]
        files = [file for folder in folders for file in folder.iterdir()]
        try:
            pairs = find_pairs(*folders)
        except DataError as found:
            named = {line.split(": ")[0] for line in found.problems}
            assert named
            assert named <= set(map(str, files))
        else:
            assert sorted([p.image for p in pairs] + [p.mask for p in pairs]) == sorted(files)
            assert all(re.sub("_mask|_gt", "", p.image.stem) == re.sub("_mask|_gt", "", p.mask.stem) for p in pairs)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_names_that_are_not_utf8_are_all_told(tmp_path):
    images, masks = (touch(tmp_path / sub, "a.png", os.fsdecode(b"stra\xdfe.png")) for sub in ("images", "masks"))
    found = error(images, masks)
    assert [line.rpartition(": ")[2] for line in found.problems] == ["its name is not UTF-8"] * 2
    assert "convmv" in found.advice
