"""What is kept of decoded samples, in memory and on disk, and what is done with files that are no longer good."""

import gc
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxseg.base.errors import UserError
from jaxseg.data.feed import store
from jaxseg.data.feed.store import DiskStore, Store
from jaxseg.data.find.listing import Pair
from jaxseg.data.read.samples import ARTICLE_READING, Reading

SIZES = [(4, 6), (1, 1), (7, 3)]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Where files are kept."""
    monkeypatch.setenv("JAXSEG_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def pairs(tmp_path) -> list[Pair]:
    pairs = [Pair(tmp_path / f"{i}.png", tmp_path / f"{i}_mask.png") for i in range(3)]
    for i, pair in enumerate(pairs):
        for path in (pair.image, pair.mask):
            path.write_bytes(bytes(5 + i))
    return pairs


def sample(i: int, reading: Reading, sizes=SIZES) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(i)
    image = rng.integers(0, 256, (*sizes[i], reading.channels), np.uint8).astype(reading.dtype)
    return {"image": image, "mask": rng.integers(0, 256, sizes[i], np.uint8)}


def fill(kept: Store, reading: Reading = ARTICLE_READING) -> None:
    for i in range(3):
        kept.write(i, sample(i, reading))
    kept.read([])


def holds(kept: Store, reading: Reading = ARTICLE_READING) -> bool:
    """Whether it has all samples as they were."""
    found = kept.read(range(3))
    wanted = [sample(i, reading) for i in range(3)]
    return kept.full and all(
        a[name].dtype == b[name].dtype and np.array_equal(a[name], b[name])
        for a, b in zip(found, wanted)
        for name in ("image", "mask")
    )


@given(
    order=st.permutations(range(3)),
    channels=st.integers(1, 5),
    dtype=st.sampled_from(["uint8", "uint16", "int16", "float32"]),
)
def test_samples_of_any_size_and_type_come_back_as_they_were(order, channels, dtype):
    reading = Reading(channels=channels, dtype=dtype)
    kept = Store(SIZES, reading)
    for count, i in enumerate(order):
        assert not kept.full
        assert [j in kept for j in range(3)] == [j in order[:count] for j in range(3)]
        kept.write(i, sample(i, reading))
    assert holds(kept, reading)
    assert kept.nbytes == sum(a.nbytes for i in range(3) for a in sample(i, reading).values())


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_a_later_run_finds_what_an_earlier_one_has_decoded(folder, pairs, dtype):
    reading = Reading(dtype=dtype)
    first = DiskStore(pairs, SIZES, reading)
    assert not first.full
    fill(first, reading)
    assert holds(first, reading)
    assert [path.name for path in folder.iterdir()] == [first.path.name]
    assert holds(DiskStore(pairs, SIZES, reading), reading)


def test_what_is_kept_cannot_be_changed_by_who_reads_it(folder, pairs):
    kept = DiskStore(pairs, SIZES, Reading())
    fill(kept)
    with pytest.raises(ValueError, match="read-only"):
        kept.read([0])[0]["image"][...] = 0


@pytest.mark.parametrize("change", ["content", "time", "reading", "size", "cut"])
def test_files_of_other_pictures_or_of_another_reading_are_not_taken(folder, pairs, change):
    first, reading, sizes = DiskStore(pairs, SIZES, Reading()), Reading(), SIZES
    fill(first)
    if change == "content":
        pairs[1].mask.write_bytes(bytes(99))
    elif change == "time":
        os.utime(pairs[1].image, ns=(1, 1))
    elif change == "reading":
        reading = Reading(nodata=3.0)
    elif change == "size":
        sizes = [(6, 4), *SIZES[1:]]
    else:
        first.path.write_bytes(first.path.read_bytes()[:-1])
    again = DiskStore(pairs, sizes, reading)
    assert not any(i in again for i in range(3))
    assert first.path.exists() == (change in ("reading", "cut"))  # what can never be right again is removed
    if change == "cut":
        fill(again)
        assert holds(DiskStore(pairs, SIZES, Reading()))


def test_a_run_that_ends_before_all_is_decoded_leaves_nothing(folder, pairs):
    kept = DiskStore(pairs, SIZES, Reading())
    kept.write(0, sample(0, Reading()))
    assert len(list(folder.iterdir())) == 1
    del kept
    gc.collect()
    assert list(folder.iterdir()) == []


def test_what_a_killed_run_leaves_is_not_taken_for_whole_and_removed(folder, pairs):
    program = f"""
import os, signal
from pathlib import Path
from tests.test_store import SIZES, sample
from jaxseg.data.feed.store import DiskStore
from jaxseg.data.find.listing import Pair
from jaxseg.data.read.samples import Reading
pairs = [Pair(*map(Path, paths)) for paths in {[(str(pair.image), str(pair.mask)) for pair in pairs]}]
kept = DiskStore(pairs, SIZES, Reading())
kept.write(0, sample(0, Reading()))
os._exit(9)
"""
    root = Path(__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", program], cwd=root, check=False).returncode == 9
    (left,) = folder.iterdir()
    kept = DiskStore(pairs, SIZES, Reading())
    assert not any(i in kept for i in range(3))
    assert not left.exists()
    fill(kept)
    assert [path.name for path in folder.iterdir()] == [kept.path.name]


def test_of_one_data_set_the_last_few_are_kept(folder, pairs):
    paths = []
    for number in range(store.KEPT + 2):
        kept = DiskStore(pairs, SIZES, Reading(nodata=float(number)))
        fill(kept)
        os.utime(kept.path, ns=(number, number))
        paths.append(kept.path)
        assert holds(kept)
    assert [path.exists() for path in paths] == [False] * 2 + [True] * store.KEPT


def test_a_run_goes_on_with_a_file_that_another_has_removed(folder, pairs):
    kept = DiskStore(pairs, SIZES, Reading())
    fill(kept)
    kept.path.unlink()
    assert holds(kept)


def test_two_runs_at_once_do_not_disturb_each_other(folder, pairs):
    one, other = (DiskStore(pairs, SIZES, Reading()) for _ in range(2))
    one.write(0, sample(0, Reading()))
    fill(other)
    assert not one.full
    fill(one)
    assert holds(one)
    assert holds(other)
    assert holds(DiskStore(pairs, SIZES, Reading()))


def test_a_disk_without_room_is_refused_with_the_figures(folder, pairs, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=3 * 2**20))
    with pytest.raises(UserError) as caught:
        DiskStore(pairs, SIZES, Reading())
    for part in ("--cache disk", "3 samples", str(folder), "3 are free", "JAXSEG_CACHE_DIR"):
        assert part in str(caught.value)
    assert list(folder.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, pairs, monkeypatch):
    monkeypatch.setenv("JAXSEG_CACHE_DIR", str(pairs[0].image / "below-a-file"))
    with pytest.raises(UserError, match="JAXSEG_CACHE_DIR"):
        DiskStore(pairs, SIZES, Reading())
