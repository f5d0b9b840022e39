"""What a run makes of a folder: crops, what is kept in memory, and what it says."""

import dataclasses
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from image_files import write

from jaxseg.base import cli
from jaxseg.base.errors import DataError, UserError
from jaxseg.data.made import fields
from jaxseg.training import dataset


def write_pair(root: Path, name: str, height: int, width: int, values=(0, 255)) -> None:
    rng = np.random.default_rng(list(name.encode()))
    write(root / f"images/{name}.png", rng.integers(0, 256, (height, width, 3), np.uint8))
    mask = np.resize(np.array(values, np.uint8), height * width).reshape(height, width)
    write(root / f"masks/{name}.png", mask)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXSEG_CACHE_DIR", str(tmp_path / "cache"))


def opened(root: Path, *argv) -> dataset.Dataset:
    return dataset.open_data(cli.parse(["--data", str(root), "--widths", "2", "4", *map(str, argv)]))


@pytest.fixture
def mixed(tmp_path) -> Path:
    for i, size in enumerate([(20, 30), (40, 40), (34, 61), (33, 40), (64, 50)]):
        write_pair(tmp_path / "mixed", f"a{i}", *size)
    return tmp_path / "mixed"


def test_images_of_one_size_are_used_whole(tmp_path, capsys):
    for i in range(5):
        write_pair(tmp_path, f"a{i}", 16, 24)
    data = opened(tmp_path)
    assert (data.crop, data.tile) == (None, (16, 24))
    assert data.description["tile"] == [16, 24]
    out = capsys.readouterr().out
    assert "4 training images of 24x16" in out
    assert "crops" not in out


def test_images_of_many_sizes_are_cropped_for_training_and_whole_for_validation(mixed, capsys):
    data = opened(mixed)
    side = data.tile[0]
    assert data.tile == (side, side)
    assert side % 2 == 0
    assert min(min(size) for size in data.found.training.sizes) <= side <= 64
    training, validation = data.pipelines(seed=0, workers=0)
    assert {batch["image"].shape for batch in training.epoch()} == {(4, side, side, 3)}
    counted = sum(int((batch["mask"] != 255).sum()) for batch in validation.epoch())
    assert counted == sum(h * w for h, w in data.found.validation.sizes)
    out = capsys.readouterr().out
    assert f"crops of {side}x{side}" in out
    assert "sizes differ" in out


def test_large_images_are_cropped_and_it_is_said_how_little_an_epoch_sees(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(dataset, "LARGEST", 64)
    monkeypatch.setattr(dataset, "CROP", 32)
    for i in range(3):
        write_pair(tmp_path, f"a{i}", 96, 96)
    data = opened(tmp_path)
    assert data.tile == (32, 32)
    assert "an epoch sees 11% of the pixels" in capsys.readouterr().out
    _, validation = data.pipelines(seed=0, workers=0)
    assert max(max(batch["mask"].shape[1:]) for batch in validation.epoch()) <= 64


def test_a_crop_that_is_given_is_taken(mixed):
    data = opened(mixed, "--crop", 10, "--crops", 3)
    training, _ = data.pipelines(seed=0, workers=0)
    assert data.tile == (10, 10)
    assert sum(int(batch["valid"].sum()) for batch in training.epoch()) == 3 * data.found.training.pairs


@pytest.mark.parametrize(
    ("argv", "cache", "said"),
    [
        ([], "memory", "kept in memory"),
        (["--cache", "none"], "none", "read from the files each epoch"),
        (["--cache", "memory"], "memory", "kept in memory"),
        (["--cache", "disk"], "disk", "cache, for later runs too"),
        (["--cache-mb", 0], "none", "more than --cache-mb 0: read from the files each epoch; --cache disk"),
        (["--cache-mb", 0, "--cache", "disk"], "disk", "for later runs too"),
    ],
)
def test_it_is_said_where_decoded_images_are_kept(mixed, argv, cache, said, capsys):
    data = opened(mixed, *argv)
    assert data.cache == cache
    assert {part.cache for part in data.pipelines(seed=0, workers=0)} == {cache}
    out = capsys.readouterr().out
    assert "5 images, 0 MiB decoded, " in out
    assert said in out


def test_images_are_kept_in_memory_only_while_some_is_free(mixed, monkeypatch, capsys):
    monkeypatch.setattr(dataset.psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    assert opened(mixed).cache == "none"
    assert "more than four fifths of the 0 MiB of memory that are free" in capsys.readouterr().out


@pytest.mark.parametrize("cache", ["memory", "device"])
def test_a_cache_that_would_not_fit_is_refused_with_the_figures(tmp_path, cache):
    for i in range(5):
        write_pair(tmp_path, f"a{i}", 256, 256)
    with pytest.raises(UserError) as caught:
        opened(tmp_path, "--cache", cache, "--cache-mb", 1)
    for part in (f"--cache {cache}", "5 images", "1 MiB decoded", "--cache-mb 1", "--cache disk", "--cache none"):
        assert part in str(caught.value)


def test_a_set_that_is_larger_than_half_the_device_is_refused(tmp_path, monkeypatch):
    for i in range(5):
        write_pair(tmp_path, f"a{i}", 16, 16)
    device = SimpleNamespace(memory_stats=lambda: {"bytes_limit": 2 * 5 * 16 * 16 * 4})
    monkeypatch.setattr(dataset.jax, "devices", lambda: [device])
    assert opened(tmp_path, "--cache", "device", "--cache-mb", 0).cache == "device"
    device.memory_stats = lambda: {"bytes_limit": 2 * 5 * 16 * 16 * 4 - 2}
    with pytest.raises(UserError, match="half of the device's 0 MiB"):
        opened(tmp_path, "--cache", "device", "--cache-mb", 0)


def test_images_of_many_sizes_are_not_put_on_the_device(mixed):
    with pytest.raises(UserError) as caught:
        opened(mixed, "--cache", "device")
    for part in ("--cache device", "one size", "30x20 to", "--cache memory"):
        assert part in str(caught.value)


def test_a_disk_without_room_ends_the_run_before_it_begins(mixed, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    with pytest.raises(UserError, match="JAXSEG_CACHE_DIR"):
        opened(mixed, "--cache", "disk").pipelines(seed=0, workers=0)


def test_overfitting_trains_and_validates_on_the_same_few(mixed):
    data = opened(mixed, "--overfit", 2)
    assert data.found.split.training == data.found.split.validation
    assert data.found.training.pairs == 2


def test_a_limit_spreads_over_both_sides(mixed):
    config = cli.parse(["--data", str(mixed), "--widths", "2", "4", "-v", "40"])
    data = dataset.open_data(config, limit=2)
    assert (data.found.training.pairs, data.found.validation.pairs) == (2, 1)


def test_what_is_wrong_with_the_files_ends_it_with_all_of_it(mixed):
    (mixed / "images/a0.png").write_bytes(b"no image")
    write(mixed / "masks/a1.png", np.zeros((3, 3), np.uint8))
    with pytest.raises(DataError) as caught:
        opened(mixed)
    assert "a0.png" in str(caught.value)
    assert "a1.png" in str(caught.value)


@pytest.mark.parametrize("size", [(3, 8), (8, 3)])
def test_images_too_small_for_the_network_are_refused_with_their_size(tmp_path, size):
    for i in range(4):
        write_pair(tmp_path, f"a{i}", *size)
    with pytest.raises(UserError) as caught:
        dataset.open_data(cli.parse(["--data", str(tmp_path), "--widths", "2", "2", "2"]))
    for part in (f"{size[1]}x{size[0]}", "3 --widths", "4 pixels"):
        assert part in str(caught.value)


def test_a_batch_of_one_value_per_channel_is_refused(tmp_path):
    for i in range(6):
        write_pair(tmp_path, f"a{i}", 4, 4)
    how = ["--data", str(tmp_path), "--widths", "2", "2", "2", "-v", "17"]  # 5 to train on
    for line in ("-b 1", "-b 4", "-b 2", "-b 3 --accumulate 3", "-b 8 --accumulate 4"):  # the last has 2, 2, 1 and 0
        with pytest.raises(UserError) as caught:
            dataset.open_data(cli.parse([*how, *line.split()]))
        assert "BatchNorm" in str(caught.value)
        assert "4x4" in str(caught.value)
    for line in ("-b 3", "-b 5", "-b 8", "-b 6 --accumulate 2"):
        assert dataset.open_data(cli.parse([*how, *line.split()])).found.training.pairs == 5


def test_without_data_fields_are_made_up_once_and_have_their_names(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = fields.make_fields
    monkeypatch.setattr(fields, "make_fields", lambda root, **_: small(root, train=3, val=2, size=32))
    config = cli.parse(["--widths", "4", "8"])
    data = dataset.open_data(config)
    assert (data.found.training.pairs, data.found.validation.pairs) == (3, 2)
    assert data.classes == ["background", "field"]
    assert "made-up" in capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    dataset.open_data(dataclasses.replace(config))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")} == before
