"""Draws by percent and by group, and lists of images."""

import itertools
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jaxseg.base.errors import DataError
from jaxseg.data.find.listing import Pair
from jaxseg.data.find.splits import Split, by_group, by_percent, from_lists


@given(count=st.integers(2, 200), percent=st.floats(1, 90), seed=st.integers(0, 2**32 - 1))
def test_a_percentage_is_drawn_from_the_seed_as_ever(count, percent, seed):
    aside = max(1, round(count * percent / 100))
    if aside == count:
        with pytest.raises(DataError, match="too few"):
            by_percent(count, percent, seed, all_train=False)
        return
    drawn = by_percent(count, percent, seed, all_train=False)
    assert drawn == set(np.random.default_rng(seed).permutation(count)[:aside].tolist())
    assert len(drawn) == aside


def test_draws_that_must_never_change():
    assert sorted(by_percent(20, 20.0, seed=0, all_train=False)) == [2, 4, 6, 19]
    assert sorted(by_group([f"s{i // 3}" for i in range(30)], 20.0, seed=0)) == [12, 13, 14, 18, 19, 20]


def test_another_seed_draws_others():
    keys = [f"s{i // 4}" for i in range(60)]
    assert len({tuple(by_percent(60, 20.0, seed, all_train=False)) for seed in range(10)}) == 10
    assert len({tuple(by_group(keys, 20.0, seed)) for seed in range(10)}) > 5


@given(
    keys=st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=40).filter(lambda keys: len(set(keys)) > 1),
    percent=st.floats(1, 90),
    seed=st.integers(0, 2**32 - 1),
)
@example(keys=["a"] * 4 + ["b"] * 7 + ["c"] * 9, percent=25.0, seed=0)
@example(keys=["a"] * 2 + ["b"] * 7 + ["c"] * 9, percent=30.0, seed=0)
def test_groups_are_never_divided_and_no_choice_of_them_is_nearer_to_the_percentage(keys, percent, seed):
    drawn = by_group(keys, percent, seed)
    sizes = Counter(keys)
    chosen = {keys[index] for index in drawn}
    assert len(drawn) == sum(sizes[key] for key in chosen)
    assert 0 < len(chosen) < len(sizes)
    choices = itertools.chain.from_iterable(itertools.combinations(sizes, n) for n in range(1, len(sizes)))
    target = max(1, round(len(keys) * percent / 100))
    assert abs(len(drawn) - target) == min(abs(sum(sizes[key] for key in choice) - target) for choice in choices)
    assert by_group(keys, percent, seed) == drawn


def test_one_group_is_too_few():
    with pytest.raises(DataError, match="puts all 3 images into one group, 'a'"):
        by_group(["a", "a", "a"], 20.0, seed=0)


# lists

ROOT = Path("/data").absolute() / "images"
IMAGES = [ROOT / name for name in ("a.png", "b.1.jpg", "c_0000.png", "north/d.png", "south/d.png", "é.png")]


def listed(tmp_path: Path, training: str, validation: str, suffix: str | None = None) -> list[set[Path]]:
    for name, text in (("train.txt", training), ("val.txt", validation)):
        (tmp_path / name).write_text(text, encoding="utf-8")
    return from_lists([tmp_path / "train.txt", tmp_path / "val.txt"], IMAGES, suffix)


def problems(tmp_path: Path, training: str, validation: str) -> list[str]:
    with pytest.raises(DataError) as caught:
        listed(tmp_path, training, validation)
    return [problem.removeprefix(str(tmp_path)).strip("/\\") for problem in caught.value.problems]


def test_lists_name_stems_names_or_paths_and_have_comments(tmp_path):
    training = "\ufeff# ours\n\n a \nb.1 # the dotted one\r\nimages/north/d.png\ne\u0301\n"
    found = listed(tmp_path, training, "./c\nsouth\\d.jpg")
    assert found == [{IMAGES[0], IMAGES[1], IMAGES[3], IMAGES[5]}, {IMAGES[2], IMAGES[4]}]
    assert listed(tmp_path, "b.1.jpg\n" + str(IMAGES[0]), "c_0000") == [{IMAGES[0], IMAGES[1]}, {IMAGES[2]}]


def test_a_suffix_flag_says_what_stems_in_lists_lack(tmp_path):
    assert listed(tmp_path, "c", "a", suffix="_0000") == [{IMAGES[2]}, {IMAGES[0]}]
    with pytest.raises(DataError, match="'c' matches no image"):
        listed(tmp_path, "c", "a", suffix="_rgb")


def test_a_whole_stem_comes_before_one_whose_suffix_is_left_out(tmp_path):
    images = [tmp_path / name for name in ("x.png", "x_img.png", "y_img.png")]
    (tmp_path / "t").write_text("x\ny\n"), (tmp_path / "v").write_text("x_img\n")
    assert from_lists([tmp_path / "t", tmp_path / "v"], images) == [{images[0], images[2]}, {images[1]}]


def test_all_that_is_wrong_with_lists_is_listed_with_file_and_line(tmp_path):
    assert problems(tmp_path, "a\nx\na.png\nd\nwest/d\n", "# none\nnorth/d\na\nb\n") == [
        "train.txt:2: 'x' matches no image",
        f"train.txt:3: 'a.png' is already named at {tmp_path / 'train.txt'}:1",
        f"train.txt:4: 'd' matches both {IMAGES[3]} and {IMAGES[4]}",
        "train.txt:5: 'west/d' matches no image",
        f"val.txt:3: 'a' is already named at {tmp_path / 'train.txt'}:1",
        "val.txt:4: 'b' matches no image",
    ]


def test_an_empty_list_is_an_error(tmp_path):
    assert problems(tmp_path, "a", "# nothing\n\n") == ["val.txt: names no images"]


def test_lists_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "train.txt").write_bytes(b"\xff\xfe\x00a")
    for name, why in (("train.txt", "not UTF-8 text"), ("nowhere.txt", "No such file"), (".", "cannot be read")):
        with pytest.raises(DataError) as caught:
            from_lists([tmp_path / name, tmp_path / "val.txt"], IMAGES)
        assert caught.value.problems[0].startswith(f"{tmp_path / name}: ")
        assert why in caught.value.problems[0]
        assert "val.txt: cannot be read" in caught.value.problems[1]


@given(
    names=st.sets(st.from_regex(r"[a-z]{1,3}(\.[a-z]{1,2})?", fullmatch=True), min_size=2, max_size=10),
    data=st.data(),
)
def test_lists_of_any_names_give_back_those_images(names, data):
    training = data.draw(st.sets(st.sampled_from(sorted(names)), min_size=1, max_size=len(names) - 1))
    images = [Path("/x", f"{name}.png") for name in sorted(names)]
    with tempfile.TemporaryDirectory() as root:
        lists = [Path(root, "t"), Path(root, "v")]
        for file, of in zip(lists, (training, names - training)):
            file.write_text("\n".join(of))
        assert from_lists(lists, images) == [
            {Path("/x", f"{n}.png") for n in of} for of in (training, names - training)
        ]


# what is written to a run


def test_names_are_paths_where_names_alone_are_not_unique():
    pairs = [Pair(path, Path("m") / path.name) for path in IMAGES]
    split = Split(tuple(pairs), tuple(pairs[:4]), "")
    assert split.training_names == ["a.png", "b.1.jpg", "c_0000.png", "north/d.png", "south/d.png", "é.png"]
    assert split.validation_names == ["a.png", "b.1.jpg", "c_0000.png", "d.png"]
