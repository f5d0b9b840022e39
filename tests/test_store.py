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
from jaxseg.data.feed.store import DiskStore, SharedStore, Store
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
def test_stored_samples_round_trip(order, channels, dtype):
    reading = Reading(channels=channels, dtype=dtype)
    kept = Store(SIZES, reading)
    for count, i in enumerate(order):
        assert not kept.full
        assert [j in kept for j in range(3)] == [j in order[:count] for j in range(3)]
        kept.write(i, sample(i, reading))
    assert holds(kept, reading)
    assert kept.nbytes == sum(a.nbytes for i in range(3) for a in sample(i, reading).values())


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_later_run_reuses_the_cache_file(folder, pairs, dtype):
    reading = Reading(dtype=dtype)
    first = DiskStore(pairs, SIZES, reading)
    assert not first.full
    fill(first, reading)
    assert holds(first, reading)
    assert [path.name for path in folder.iterdir()] == [first.path.name]
    assert holds(DiskStore(pairs, SIZES, reading), reading)


def test_stored_samples_are_read_only(folder, pairs):
    kept = DiskStore(pairs, SIZES, Reading())
    fill(kept)
    with pytest.raises(ValueError, match="read-only"):
        kept.read([0])[0]["image"][...] = 0


@pytest.mark.parametrize("change", ["content", "content, size and time restored", "time", "reading", "size", "cut"])
def test_cache_of_other_images_or_reading_is_not_reused(folder, pairs, change):
    first, reading, sizes = DiskStore(pairs, SIZES, Reading()), Reading(), SIZES
    fill(first)
    if change == "content":
        pairs[1].mask.write_bytes(bytes(99))
    elif change == "content, size and time restored":
        times = pairs[1].mask.stat()
        pairs[1].mask.write_bytes(bytes(reversed(pairs[1].mask.read_bytes())))
        os.utime(pairs[1].mask, ns=(times.st_atime_ns, times.st_mtime_ns))
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


def damaged(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("at", [0, 80, 3 * 46 - 1, 3 * 46, 4 * 46 - 1, 4 * 46 + 1, 4 * 46 + 11], ids=str)
def test_flipped_bit_makes_its_sample_anew(folder, pairs, at, capsys):
    first = DiskStore(pairs, SIZES, Reading())
    fill(first)
    content = first.path.read_bytes()
    damaged(first.path, at)
    again = DiskStore(pairs, SIZES, Reading())
    missing = [i for i in range(3) if i not in again]
    assert len(missing) == 1
    for i in missing:
        again.write(i, sample(i, Reading()))
    assert holds(again)
    assert all(i in again for i in range(3))
    del again
    assert first.path.read_bytes() == content
    assert "is damaged: the samples concerned are read again" in capsys.readouterr().out
    assert all(i in DiskStore(pairs, SIZES, Reading()) for i in range(3))


def test_samples_are_compared_with_their_digests_once(folder, pairs, monkeypatch):
    fill(DiskStore(pairs, SIZES, Reading()))
    again, seen, crc = DiskStore(pairs, SIZES, Reading()), [], store._crc
    monkeypatch.setattr(store, "_crc", lambda sample: seen.append(sample["mask"].shape) or crc(sample))
    for _ in range(3):
        assert all(i in again for i in range(3))
    assert seen == SIZES


def test_damaged_cache_file_that_cannot_be_written_is_named(folder, pairs, monkeypatch):
    first = DiskStore(pairs, SIZES, Reading())
    fill(first)
    damaged(first.path, 5)
    again = DiskStore(pairs, SIZES, Reading())

    def refuse(path, mode):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(again, "_use", refuse)
    with pytest.raises(UserError, match=r"is damaged, and cannot be written \(Permission denied\)"):
        again.__contains__(0)


def test_incomplete_run_leaves_no_file(folder, pairs):
    kept = DiskStore(pairs, SIZES, Reading())
    kept.write(0, sample(0, Reading()))
    assert len(list(folder.iterdir())) == 1
    del kept
    gc.collect()
    assert list(folder.iterdir()) == []


def test_draft_of_a_killed_run_is_removed_not_reused(folder, pairs):
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


# several processes of a run


def sharing():
    """Stands for `processes.once_here` in two stores that are made one after the other."""
    made = []

    def share(make):
        if not made:
            made.append(make())
        return made[0]

    return share


def test_disk_stores_of_a_run_fill_one_file_together(folder, pairs):
    share = sharing()
    one, other = (DiskStore(pairs, SIZES, Reading(), share) for _ in range(2))
    (draft,) = folder.iterdir()
    one.write(0, sample(0, Reading()))
    assert [[i in kept for i in range(3)] for kept in (one, other)] == [[True, False, False]] * 2
    for i in (1, 2):
        other.write(i, sample(i, Reading()))
    assert holds(other), "the file is complete, and renamed"
    assert not draft.exists()
    assert all(i in one for i in range(3))
    assert holds(one)
    assert [path.name for path in folder.iterdir()] == [one.path.name]
    assert holds(DiskStore(pairs, SIZES, Reading()))


def test_complete_cache_file_is_opened_by_all_processes_of_a_run(folder, pairs):
    fill(DiskStore(pairs, SIZES, Reading()))
    share = sharing()
    for kept in [DiskStore(pairs, SIZES, Reading(), share) for _ in range(2)]:
        assert kept.full
        assert all(i in kept for i in range(3))
        assert holds(kept)


def test_disk_store_of_a_run_on_another_machine_of_that_name_makes_a_file_of_its_own(folder, pairs):
    kept = DiskStore(pairs, SIZES, Reading(), lambda make: folder / "not-here.tmp")
    fill(kept)
    assert holds(kept)


needs_memory_files = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs Linux")


@needs_memory_files
def test_sample_that_another_process_is_still_writing_is_not_there():
    share = sharing()
    one, other = (SharedStore(SIZES, Reading(), share) for _ in range(2))
    one._digests(one._buffer(writable=True))[1] = 12345
    assert 1 not in other
    other.write(1, sample(1, Reading()))
    assert 1 in one
    fill(one)
    assert all(i in other for i in range(3))
    assert holds(other)


@needs_memory_files
def test_processes_share_memory_that_ends_with_them():
    places = []

    def note(make):
        places.append(make())
        return places[0]

    kept = SharedStore(SIZES, Reading(), note)
    kept.write(0, sample(0, Reading()))
    program = f"""
from pathlib import Path
from tests.test_store import SIZES, sample
from jaxseg.data.feed.store import SharedStore
from jaxseg.data.read.samples import Reading
kept = SharedStore(SIZES, Reading(), lambda make: Path({str(places[0])!r}))
assert [i in kept for i in range(3)] == [True, False, False]
kept.write(1, sample(1, Reading()))
"""
    root = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-c", program], cwd=root, check=True)
    assert [i in kept for i in range(3)] == [True, True, False]
    del kept
    gc.collect()
    assert not places[0].exists()


def test_last_used_cache_files_of_a_data_set_are_kept(folder, pairs):
    paths = []
    for number in range(store.KEPT + 2):
        kept = DiskStore(pairs, SIZES, Reading(nodata=float(number)))
        fill(kept)
        os.utime(kept.path, ns=(number, number))
        paths.append(kept.path)
        assert holds(kept)
    assert [path.exists() for path in paths] == [False] * 2 + [True] * store.KEPT


def test_removed_cache_file_stays_readable_for_an_open_run(folder, pairs):
    kept = DiskStore(pairs, SIZES, Reading())
    fill(kept)
    kept.path.unlink()
    assert holds(kept)


def test_concurrent_runs_are_independent(folder, pairs):
    one, other = (DiskStore(pairs, SIZES, Reading()) for _ in range(2))
    one.write(0, sample(0, Reading()))
    fill(other)
    assert not one.full
    fill(one)
    assert holds(one)
    assert holds(other)
    assert holds(DiskStore(pairs, SIZES, Reading()))


def test_full_disk_is_refused_with_needed_and_free_mib(folder, pairs, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=3 * 2**20))
    with pytest.raises(UserError) as caught:
        DiskStore(pairs, SIZES, Reading())
    for part in ("--cache disk", "3 samples", str(folder), "3 MiB are free", "JAXSEG_CACHE_DIR"):
        assert part in str(caught.value)
    assert list(folder.iterdir()) == []


def test_unwritable_cache_folder_is_refused(tmp_path, pairs, monkeypatch):
    monkeypatch.setenv("JAXSEG_CACHE_DIR", str(pairs[0].image / "below-a-file"))
    with pytest.raises(UserError, match="JAXSEG_CACHE_DIR"):
        DiskStore(pairs, SIZES, Reading())
