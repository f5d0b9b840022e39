"""The order of tiles, the batches they make, what is read from disk and what is kept in memory."""

import collections
import threading
import tracemalloc
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxseg.base.errors import DataError
from jaxseg.data.feed import pipeline
from jaxseg.data.feed.pipeline import Pipeline, to_device
from jaxseg.data.find.listing import Pair
from jaxseg.data.read.samples import Reading, read_sample
from jaxseg.learn.losses import IGNORE_INDEX

COUNT, HEIGHT, WIDTH = 13, 6, 8


def write_pairs(root: Path, count: int, height: int, width: int) -> list[Pair]:
    """Tiles of noise, no two alike."""
    root.mkdir(exist_ok=True)
    pairs = []
    for i in range(count):
        rng = np.random.default_rng(i)
        pair = Pair(root / f"{i:02}.png", root / f"{i:02}_mask.png")
        image = rng.integers(0, 256, (height, width, 3), np.uint8)
        mask = rng.integers(0, 2, (height, width), np.uint8) * 255
        for path, pixels in ((pair.image, image), (pair.mask, mask)):
            path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
        pairs.append(pair)
    return pairs


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXSEG_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> list[Pair]:
    return write_pairs(tmp_path_factory.mktemp("tiles"), COUNT, HEIGHT, WIDTH)


@pytest.fixture(scope="module")
def samples(pairs):
    return [read_sample(pair) for pair in pairs]


@pytest.fixture
def reads(monkeypatch) -> collections.Counter:
    """How often each pair has been read."""
    counts, lock = collections.Counter(), threading.Lock()

    def counted(pair, reading):
        with lock:
            counts[pair] += 1
        return read_sample(pair, reading)

    monkeypatch.setattr(pipeline, "read_sample", counted)
    return counts


def same(batches, others) -> bool:
    """Whether two lists of batches are equal in names, types, shapes and bytes."""
    batches, others = (
        [{k: (v.dtype, v.shape, v.tobytes()) for k, v in b.items()} for b in bs] for bs in (batches, others)
    )
    return batches == others


seeds = st.integers(0, 2**32)
epochs = st.integers(0, 1000)
host_caches = st.sampled_from(["none", "memory"])


# order


@given(seed=seeds, epoch=epochs, count=st.integers(1, COUNT))
def test_every_epoch_reads_every_tile_once(pairs, seed, epoch, count):
    data = Pipeline(pairs[:count], batch_size=2, shuffle=True, seed=seed)
    assert sorted(data.order(epoch).tolist()) == list(range(count))


@given(
    seed=seeds,
    epoch=epochs,
    size=st.integers(1, 20),
    workers=st.integers(0, 3),
    cache=host_caches,
)
def test_order_depends_only_on_seed_and_epoch(pairs, seed, epoch, size, workers, cache):
    data = Pipeline(pairs, batch_size=size, shuffle=True, seed=seed, workers=workers, cache=cache)
    for other in (epoch + 1, 0):  # whatever was asked before
        data.order(other)
    assert data.order(epoch).tolist() == Pipeline(pairs, batch_size=1, shuffle=True, seed=seed).order(epoch).tolist()


def test_epochs_and_seeds_give_different_orders(pairs):
    orders = [
        tuple(Pipeline(pairs, batch_size=1, shuffle=True, seed=seed).order(epoch).tolist())
        for seed in range(10)
        for epoch in range(10)
    ]
    assert len(set(orders)) == 100
    assert tuple(range(COUNT)) not in orders


def test_every_position_is_equally_likely_for_a_tile(pairs):
    data = Pipeline(pairs[:4], batch_size=1, shuffle=True)
    places = np.stack([data.order(epoch) for epoch in range(2000)])
    counts = np.stack([np.bincount(column, minlength=4) for column in places.T])
    assert abs(counts - 500).max() < 100  # 5 standard deviations of a binomial count


def test_without_shuffling_the_order_is_that_of_the_pairs(pairs):
    data = Pipeline(pairs, batch_size=4)
    assert all(data.order(epoch).tolist() == list(range(COUNT)) for epoch in range(3))


# batches


@given(
    count=st.integers(1, COUNT),
    size=st.integers(1, COUNT + 2),
    workers=st.integers(0, 3),
    shuffle=st.booleans(),
    cache=host_caches,
    epoch=epochs,
)
def test_batches_hold_the_tiles_in_order_and_the_last_is_padded(
    pairs, samples, count, size, workers, shuffle, cache, epoch
):
    data = Pipeline(pairs[:count], batch_size=size, shuffle=shuffle, workers=workers, cache=cache)
    batches = list(data.epoch(epoch))
    assert len(batches) == len(data) == -(-count // size)
    for batch in batches:
        assert {name: (a.dtype, a.shape) for name, a in batch.items()} == {
            "image": (np.uint8, (size, HEIGHT, WIDTH, 3)),
            "mask": (np.uint8, (size, HEIGHT, WIDTH)),
            "valid": (np.bool_, (size,)),
        }
    image, mask, valid = (np.concatenate([batch[name] for batch in batches]) for name in ("image", "mask", "valid"))
    expected = [samples[index] for index in data.order(epoch)]
    assert valid.tolist() == [True] * count + [False] * (len(valid) - count)
    assert image[:count].tobytes() == np.stack([sample["image"] for sample in expected]).tobytes()
    assert mask[:count].tobytes() == np.stack([sample["mask"] for sample in expected]).tobytes()
    assert (image[count:] == 0).all()
    assert (mask[count:] == IGNORE_INDEX).all()


@given(size=st.integers(1, COUNT + 1), epoch=epochs, start=st.integers(0, COUNT + 2), workers=st.integers(0, 3))
def test_epoch_resumes_at_any_batch(pairs, size, epoch, start, workers):
    data = Pipeline(pairs, batch_size=size, shuffle=True, seed=3, workers=workers)
    whole = Pipeline(pairs, batch_size=size, shuffle=True, seed=3)
    assert same(data.epoch(epoch, start=start), list(whole.epoch(epoch))[start:])


@pytest.mark.parametrize("workers", [0, 2])
def test_concurrent_epochs_are_independent(pairs, workers):
    data = Pipeline(pairs, batch_size=4, shuffle=True, workers=workers, cache="memory")
    together = list(zip(data.epoch(0), data.epoch(1)))
    assert same([a for a, _ in together], data.epoch(0))
    assert same([b for _, b in together], data.epoch(1))


def test_no_pairs_raise_value_error():
    with pytest.raises(ValueError, match="empty"):
        Pipeline([], batch_size=4)


# where samples are kept


@settings(max_examples=12)
@given(
    count=st.integers(1, COUNT),
    size=st.integers(1, COUNT + 1),
    workers=st.integers(0, 2),
    epoch=epochs,
    start=st.integers(0, 4),
    crop=st.sampled_from([None, (4, 4), (6, 11), (9, 5)]),  # smaller and larger than the tiles
    crops=st.integers(1, 2),
    shuffle=st.booleans(),
)
def test_batches_do_not_depend_on_the_cache(pairs, count, size, workers, epoch, start, crop, crops, shuffle):
    how = {"batch_size": size, "shuffle": shuffle, "workers": workers, "crop": crop, "crops": crops if crop else 1}
    expected = list(Pipeline(pairs[:count], **how).epoch(epoch, start=start))
    for cache in ("memory", "disk", "device"):
        data = Pipeline(pairs[:count], cache=cache, **how)
        for _ in range(2):  # as it is filled, and filled
            batches = data.epoch(epoch, start=start)
            assert same([jax.device_get(batch) for batch in to_device(batches)], expected), cache


@pytest.mark.parametrize("cache", ["memory", "disk", "device"])
def test_windows_of_large_images_do_not_depend_on_the_cache(mixed, cache):
    how = {"batch_size": 3, "sizes": SIZES, "largest": 64}
    data, expected = Pipeline(mixed, cache=cache, **how), list(Pipeline(mixed, **how).epoch())
    for _ in range(2):
        assert same([jax.device_get(batch) for batch in data.epoch()], expected)


def test_crops_from_different_sizes_on_device_are_refused(mixed):
    with pytest.raises(ValueError, match="`sizes` differ"):
        Pipeline(mixed, batch_size=1, cache="device", sizes=SIZES, crop=(32, 32))


def test_device_cache_transfers_no_pixels(pairs, monkeypatch):
    data = Pipeline(pairs, batch_size=4, shuffle=True, cache="device", crop=(4, 4))
    list(data.epoch(0))
    crossed, put = [], jax.device_put

    def counted(what, *args):
        crossed.extend(leaf.nbytes for leaf in jax.tree.leaves(what) if isinstance(leaf, np.ndarray))
        return put(what, *args)

    monkeypatch.setattr(jax, "device_put", counted)
    with jax.transfer_guard_host_to_device("disallow"):  # of what is not put there
        batches = list(to_device(data.epoch(1)))
    assert len(batches) == 4
    assert sum(crossed) == 4 * (4 + 2 * 4) * 4  # for each batch of 4: rows, and corners


def test_batch_memory_is_not_reused(pairs):
    data = Pipeline(pairs, batch_size=2, shuffle=True, workers=2, cache="memory")
    expected = [list(Pipeline(pairs, batch_size=2, shuffle=True).epoch(epoch)) for epoch in range(4)]
    kept = [list(to_device(data.epoch(epoch))) for epoch in range(4)]
    parts = [[batch["image"][0, 1:] for batch in data.epoch(epoch)] for epoch in range(4)]
    for epoch in range(4):
        assert same([jax.device_get(batch) for batch in kept[epoch]], expected[epoch])
        assert all((part == batch["image"][0, 1:]).all() for part, batch in zip(parts[epoch], expected[epoch]))


@pytest.mark.parametrize("cache", ["none", "memory", "disk", "device"])
@pytest.mark.parametrize("size", [(1, 1), (HEIGHT, WIDTH + 1)])
def test_tile_of_other_size_is_named_not_broadcast(tmp_path, cache, size):
    pairs = write_pairs(tmp_path, 3, HEIGHT, WIDTH)
    odd = write_pairs(tmp_path / "odd", 1, *size)
    with pytest.raises(DataError) as caught:
        list(Pipeline([*pairs, *odd], batch_size=4, cache=cache).epoch())
    assert f"{odd[0].image}: is {size[1]}x{size[0]}; expected {WIDTH}x{HEIGHT}" in str(caught.value)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("cache", ["none", "memory", "disk", "device"])
def test_device_batches_keep_the_files_dtype(tmp_path, cache, dtype, monkeypatch):
    pairs = write_pairs(tmp_path, 5, HEIGHT, WIDTH)
    for i, pair in enumerate(pairs):
        image = np.random.default_rng(i).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8).astype(dtype) * 7
        pair.image.write_bytes(cv2.imencode(".png", image)[1].tobytes())
    put, seen = jax.device_put, set()

    def watched(what, *args):
        seen.update(str(leaf.dtype) for leaf in jax.tree.leaves(what))
        return put(what, *args)

    monkeypatch.setattr(jax, "device_put", watched)
    data = Pipeline(pairs, batch_size=2, reading=Reading(dtype=dtype), cache=cache, workers=2)
    batches = list(to_device(data.epoch()))
    assert {name: str(array.dtype) for name, array in batches[0].items()} == {
        "image": dtype,
        "mask": "uint8",
        "valid": "bool",
    }
    assert seen <= {dtype, "uint8", "bool", "int32"}  # int32: which tiles, where from


# files and memory


@pytest.mark.parametrize("cache", ["memory", "disk"])
@pytest.mark.parametrize("workers", [0, 2])
def test_the_cache_reads_each_file_once_and_gives_the_same_bytes(pairs, reads, workers, cache, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXSEG_CACHE_DIR", str(tmp_path))
    how = {"batch_size": 4, "shuffle": True, "workers": workers}
    plain = Pipeline(pairs, **how)
    fresh = [list(plain.epoch(epoch)) for epoch in range(3)]
    assert set(reads.values()) == {3}
    reads.clear()
    cached = Pipeline(pairs, cache=cache, **how)
    for epoch in range(3):
        assert same(cached.epoch(epoch), fresh[epoch])
    assert reads == dict.fromkeys(pairs, 1)


def test_changing_a_batch_does_not_change_the_cache(pairs):
    data = Pipeline(pairs, batch_size=1, cache="memory")
    for batch in data.epoch():
        for array in batch.values():
            array[...] = 77
    assert same(data.epoch(), Pipeline(pairs, batch_size=1).epoch())


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("part", ["image", "mask"])
def test_a_file_that_vanishes_during_a_run_is_named(tmp_path, workers, part):
    pairs = write_pairs(tmp_path, 16, 4, 4)
    batches = Pipeline(pairs, batch_size=1, workers=workers).epoch()
    next(batches)
    gone = getattr(pairs[-1], part)
    gone.unlink()
    with pytest.raises(DataError) as caught:
        list(batches)
    assert str(gone) in str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_file_damaged_during_a_run_is_named(tmp_path, workers):
    pairs = write_pairs(tmp_path, 16, 4, 4)
    batches = Pipeline(pairs, batch_size=1, workers=workers).epoch()
    next(batches)
    pairs[-1].image.write_bytes(b"no image")
    with pytest.raises(DataError) as caught:
        list(batches)
    assert str(pairs[-1].image) in str(caught.value)


@pytest.mark.parametrize("end", ["the rest is not asked for", "a file is gone"])
def test_reader_threads_end_with_their_consumer(tmp_path, end):
    def readers() -> set[str]:
        return {thread.name for thread in threading.enumerate() if thread.name.startswith("reader")}

    pairs = write_pairs(tmp_path, 12, 32, 32)
    if end == "a file is gone":
        pairs[6].image.unlink()
    batches = Pipeline(pairs, batch_size=1, workers=2).epoch()
    next(batches)
    assert len(readers()) == 2
    if end == "a file is gone":
        with pytest.raises(DataError, match="cannot be opened"):
            list(batches)
    else:
        batches.close()
    assert readers() == set()


def peak_memory(*args, **how) -> int:
    """Bytes allocated at most by a pipeline and an epoch of it, over what was there before."""
    tracemalloc.start()
    try:
        for _ in Pipeline(*args, **how).epoch():
            pass
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("cache", ["none", "disk"])
@pytest.mark.parametrize("workers", [0, 2])
def test_memory_grows_with_tiles_only_if_cached(tmp_path, workers, cache):
    few = write_pairs(tmp_path, 16, 64, 64)
    many, tile = few * 4, 64 * 64 * 4
    how = {"batch_size": 2, "workers": workers}
    list(Pipeline(few, **how).epoch())  # what grows once
    assert peak_memory(many, cache="memory", **how) > len(many) * tile  # it would be seen
    peaks = [peak_memory(pairs, cache=cache, **how) for pairs in (few, many)]
    assert peaks[1] - peaks[0] < 0.2 * (len(many) - len(few)) * tile
    assert peaks[1] < 0.5 * len(many) * tile


# to the device


@given(count=st.integers(0, 6), ahead=st.integers(0, 8))
def test_batches_on_the_device_are_the_same_in_the_same_order(count, ahead):
    batches = [{"image": np.full((2, 3), i, np.uint8), "valid": np.array([True, i % 2 == 0])} for i in range(count)]
    moved = list(to_device(iter(batches), ahead=ahead))
    assert all(isinstance(array, jax.Array) for batch in moved for array in batch.values())
    assert same([jax.device_get(batch) for batch in moved], batches)


def test_to_device_takes_at_most_ahead_batches():
    taken = []

    def source():
        for i in range(6):
            taken.append(i)
            yield {"image": np.full(1, i, np.uint8)}

    moved = to_device(source(), ahead=2)
    assert taken == []
    assert next(moved)["image"].tolist() == [0]
    assert taken == [0, 1, 2]
    assert next(moved)["image"].tolist() == [1]
    assert taken == [0, 1, 2, 3]


def test_a_batch_of_tiles_goes_to_the_device_unchanged(pairs):
    data = Pipeline(pairs, batch_size=4, shuffle=True, workers=2)
    moved = list(to_device(data.epoch(5)))
    assert {str(array.dtype) for batch in moved for array in batch.values()} == {"uint8", "bool"}
    assert same([jax.device_get(batch) for batch in moved], data.epoch(5))


# images of many sizes

SIZES = [(40, 50), (64, 64), (70, 33), (40, 50), (300, 90), (64, 60), (32, 32)]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> list[Pair]:
    root = tmp_path_factory.mktemp("mixed")
    return [write_pairs(root / str(i), 1, h, w)[0] for i, (h, w) in enumerate(SIZES)]


def counted(batches) -> int:
    """Pixels that count in all batches."""
    return sum(int((batch["mask"] != IGNORE_INDEX).sum()) for batch in batches)


@given(size=st.integers(1, 9), workers=st.integers(0, 2), largest=st.sampled_from([None, 32, 64, 100]))
def test_mixed_sizes_are_read_whole_in_few_shapes(mixed, size, workers, largest):
    data = Pipeline(mixed, batch_size=size, workers=workers, sizes=SIZES, largest=largest)
    batches = list(data.epoch())
    assert len(batches) == len(data)
    assert len({batch["image"].shape for batch in batches}) <= 4
    assert {batch["image"].shape[0] for batch in batches} == {size}
    assert all(batch["valid"].any() for batch in batches)
    assert counted(batches) == sum(h * w for h, w in SIZES)
    expected = sum((np.bincount(read_sample(pair)["mask"].ravel(), minlength=2) for pair in mixed), np.zeros(2, int))
    found = sum((np.bincount(b["mask"].ravel(), minlength=256)[:2] for b in batches), np.zeros(2, int))
    assert found.tolist() == expected.tolist()
    assert same(batches[len(batches) // 2 :], list(data.epoch(start=len(batches) // 2)))


def test_a_large_image_is_decoded_once_for_all_its_windows(mixed, reads):
    data = Pipeline(mixed, batch_size=2, sizes=SIZES, largest=32)
    list(data.epoch())
    assert reads[mixed[4]] <= 2  # its windows of another shape come in other batches


def test_equal_sizes_are_not_padded(pairs):
    plain, told = Pipeline(pairs, batch_size=4), Pipeline(pairs, batch_size=4, sizes=[(HEIGHT, WIDTH)] * COUNT)
    assert same(list(plain.epoch()), list(told.epoch()))


# crops


@given(
    seed=seeds,
    epoch=epochs,
    workers=st.integers(0, 2),
    cache=host_caches,
    crops=st.integers(1, 3),
)
def test_crops_are_image_parts_drawn_from_seed_and_epoch(mixed, seed, epoch, workers, cache, crops):
    how = {"batch_size": 3, "shuffle": True, "seed": seed, "crop": (32, 32), "crops": crops}
    data = Pipeline(mixed, workers=workers, cache=cache, sizes=SIZES, **how)
    batches = list(data.epoch(epoch))
    assert same(batches, list(Pipeline(mixed, **how).epoch(epoch)))
    assert same(batches[1:], list(data.epoch(epoch, start=1)))
    assert sum(int(batch["valid"].sum()) for batch in batches) == crops * len(mixed)
    wholes = [read_sample(pair) for pair in mixed]
    order = data.order(epoch) % len(mixed)
    crop_of = [(b["image"][i], b["mask"][i]) for b in batches for i in range(3) if b["valid"][i]]
    for index, (image, mask) in zip(order, crop_of, strict=True):
        whole = wholes[index]
        places = np.argwhere((whole["image"] == image[0, 0]).all(-1))
        assert any(
            (whole["image"][y : y + 32, x : x + 32].shape == image.shape)
            and (whole["image"][y : y + 32, x : x + 32] == image).all()
            and (whole["mask"][y : y + 32, x : x + 32] == mask).all()
            for y, x in places
        )


def test_crops_cover_the_whole_image(mixed):
    data = Pipeline(mixed[4:5], batch_size=1, shuffle=True, crop=(32, 32))
    whole = read_sample(mixed[4])["image"]
    rows = set()
    for epoch in range(60):
        (batch,) = data.epoch(epoch)
        rows.add(int(np.argwhere((whole == batch["image"][0, 0, 0]).all(-1))[0][0]))
    assert len(rows) > 30
    assert min(rows) < 40
    assert max(rows) > 228


def test_images_smaller_than_the_crop_are_padded_and_ignored(mixed):
    (batch,) = Pipeline(mixed[6:], batch_size=1, crop=(40, 48)).epoch()
    assert batch["image"].shape == (1, 40, 48, 3)
    assert counted([batch]) == 32 * 32
