"""Groups in names, and warnings of tiles of one scene on both sides of a split."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxseg.base.errors import DataError, UserError
from jaxseg.data.find.scenes import groups, leak, shared
from jaxseg.data.find.splits import by_group, by_percent

GRID = [(row, column) for row in range(4) for column in range(4)]
TILED = {
    "two digits": ([f"scene{s:02}_{r}{c}.png" for s in range(12) for r, c in GRID], "scenes", r"scene(\d+)_"),
    "pixels": ([f"{s}_{512 * r}_{512 * c}.tif" for s in "xyz" for r, c in GRID], "scenes", r"^(.+)_\d+_\d+"),
    "letters": ([f"a-{s}_r{r}c{c}.png" for s in range(3) for r, c in GRID], "scenes", r"a-(\d+)_r"),
    "folders": ([f"city{s}/{r}_{c}.png" for s in range(3) for r, c in GRID], "scenes", r"city(\d+)/"),
    "frames": ([f"{s}_f{30 * i:05}.png" for s in ("01TP", "16E5") for i in range(40)], "scenes", r"^(.+)_f\d+"),
    "one scene": ([f"tile_r{r}_c{c}.png" for r, c in GRID], "rows or scenes", r"tile_r(\d+)_c"),
    "numbers": ([f"scene_{s}_{i}.png" for s in range(9) for i in range(9)], "rows or scenes", r"scene_(\d+)_"),
}
NO_TILES = {
    "a running number": [f"IMG_{i:04}.png" for i in range(50)],
    "frames of one film": [f"film7_f{i:04}.png" for i in range(50)],
    "numbers only": [f"{i:04}.png" for i in range(50)],
    "Pascal VOC": [f"{year}_{(i * 7919 + year) % 10000:06}.jpg" for year in range(2007, 2012) for i in range(50)],
    "breeds": [f"{breed}_{i}.jpg" for breed in ("Abyssinian", "american_bulldog") for i in range(50)],
    "dates": [f"IMG_202001{d:02}_{(d * 7919 + i * 1013) % 240000:06}.jpg" for d in range(1, 29) for i in range(5)],
    "words": ["lake.png", "wood.png", "field.png", "town.png"],
}


@pytest.mark.parametrize(("names", "what", "pattern"), TILED.values(), ids=TILED)
def test_scene_tiles_on_both_sides_are_noticed_and_the_pattern_fixes_it(names, what, pattern):
    validation = by_percent(len(names), 20.0, seed=0, all_train=False)
    (note,) = leak(names, validation)
    assert f"--group-by '{pattern}' keeps {what} whole" in note
    keys = groups(names, pattern)
    sides = {}
    for index, key in enumerate(keys):
        sides.setdefault(key, set()).add(index in validation)
    both = [key for key, of in sides.items() if len(of) == 2]
    assert note.startswith(f"{len(both)} of {len(sides)} {what} have tiles in training and in validation, such as ")
    trains, validates = re.search(r"such as (\S+) and (\S+):", note).groups()
    assert (names.index(trains) in validation, names.index(validates) in validation) == (False, True)
    assert keys[names.index(trains)] == keys[names.index(validates)]
    assert leak(names, by_group(keys, 20.0, seed=0)) == []


@pytest.mark.parametrize("names", NO_TILES.values(), ids=NO_TILES)
def test_other_names_are_not_taken_for_tiles(names):
    assert leak(names, by_percent(len(names), 20.0, seed=0, all_train=False)) == []


def test_the_end_that_all_images_have_is_not_a_place():
    names = [f"x_{r}_{c}_0000.png" for r, c in GRID] + [f"y_{r}_{c}_0000.png" for r, c in GRID]
    (note,) = leak(names, {0}, ending="_0000")
    assert "1 of 2 scenes" in note
    assert r"--group-by '^(.+)_\d+_\d+_\d+' keeps" in note
    assert groups(names, r"^(.+)_\d+_\d+_\d+") == ["x"] * 16 + ["y"] * 16


def test_a_few_other_names_do_not_hide_tiles_but_no_pattern_is_proposed_that_misses_them():
    names = [*TILED["pixels"][0], "overview.tif"]
    (note,) = leak(names, by_percent(len(names), 20.0, seed=0, all_train=False))
    assert "Give --group-by a pattern of what must not be divided" in note


def test_a_row_that_cannot_be_kept_whole_gets_no_pattern():
    (note,) = leak([f"x_0_{512 * i}.png" for i in range(8)], {3})
    assert "Give --group-by" in note


@given(
    st.lists(st.from_regex(r"[a-c0-2_\-/.]{1,8}\.png", fullmatch=True), min_size=2, max_size=12, unique=True), st.data()
)
def test_a_proposed_pattern_matches_all_names_and_makes_groups(names, data):
    validation = set(data.draw(st.lists(st.integers(0, len(names) - 1), min_size=1, unique=True)))
    for note in leak(names, validation):
        if found := re.search(r"--group-by '(.*)' keeps", note):
            assert len(set(groups(names, found[1]))) > 1


# --group-by


def test_a_group_is_the_first_group_of_the_pattern_or_all_that_matches():
    names = ["a1/x_2.png", "a1/y_3.png", "a2/x_2.png"]
    assert groups(names, r"a(\d)/(.)") == ["1", "1", "2"]
    assert groups(names, r"a\d/.") == ["a1/x", "a1/y", "a2/x"]


def test_names_without_the_pattern_are_all_listed():
    with pytest.raises(DataError) as caught:
        groups(["scene1_2.png", "b.png", "c.png"], r"scene(\d+)_")
    assert caught.value.problems == ("b.png: does not match", "c.png: does not match")
    assert r"--group-by 'scene(\d+)_': 2 of 3 images do not match it" in str(caught.value)


def test_a_pattern_that_is_none_is_named_with_the_reason():
    with pytest.raises(UserError, match=r"--group-by '\(' is not a regular expression: missing \)"):
        groups(["a"], "(")


def test_a_group_on_both_given_sides_is_a_warning():
    assert shared(["s1_1.png", "s2_1.png"], ["s3_1.png"], r"s(\d)_") == []
    (note,) = shared(["s1_1.png", "s2_1.png"], ["s2_2.png", "s3_1.png"], r"s(\d)_")
    groups = r"1 of 3 groups of --group-by 's(\d)_'"
    assert note == groups + " are in both training and validation, such as '2': s2_1.png and s2_2.png"
