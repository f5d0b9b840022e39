"""What is measured of files, and that nothing is read twice."""

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from image_files import write
from PIL import Image

from jaxseg.base import files
from jaxseg.base.config import Data
from jaxseg.data.find.listing import Pair
from jaxseg.data.read.images import Pixels
from jaxseg.data.read.samples import FULL, Reading, read_tile
from jaxseg.doctor import facts
from jaxseg.doctor import survey as module
from jaxseg.doctor.facts import MOST_VALUES, image_facts, mask_facts
from jaxseg.doctor.survey import survey


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("JAXSEG_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def pairs_of(root: Path, number: int = 3, side: int = 16) -> list[Pair]:
    pairs = []
    for i in range(number):
        rng = np.random.default_rng(i)
        image = write(root / f"images/{i}.png", rng.integers(0, 256, (side, side, 3), np.uint8))
        pairs.append(Pair(image, write(root / f"masks/{i}.png", 255 * rng.integers(0, 2, (side, side), np.uint8))))
    return pairs


def facts_of_mask(values: np.ndarray, **changes):
    how = {"color": False, "jpeg": False, "image": None, "has_data": None} | changes
    return mask_facts(values, **how)


# images


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_sums_in_chunks_equal_sums_at_once(dtype, rng):
    values = rng.integers(0, 100, 1001).astype(dtype)
    np.testing.assert_allclose(facts._sums(values, part=100), facts._sums(values), rtol=1e-12)
    assert facts._sums(values, part=100)[0] == values.min()


ARRAYS = st.one_of(
    *(
        hnp.arrays(dtype, st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 5)), elements=elements)
        for dtype, elements in (
            (np.uint8, st.integers(0, 255)),
            (np.uint16, st.sampled_from([0, 1, 300, 65535])),
            (np.int16, st.sampled_from([-32768, -9999, 0, 5, 32767])),
            (np.float32, st.sampled_from([0.0, 0.5, -1.0, 7.0, np.nan, np.inf])),
        )
    )
)


@given(array=ARRAYS, nodata=st.sampled_from([None, 0.0, 5.0, -9999.0]), own=st.sampled_from([None, 255.0, 7.0]))
def test_sums_and_limits_cover_only_pixels_with_data(array, nodata, own):
    facts, has_data = image_facts(Pixels(array, own, color=False), Data(nodata=nodata))
    empty = own if nodata is None else nodata
    finite = np.isfinite(array.astype(np.float64))
    none = ~finite | (array == empty)
    assert has_data.tolist() == (~none.all(-1)).tolist()
    ignored = none if array.dtype.kind in "if" and empty != 0 else ~finite
    for c in range(array.shape[2]):
        values = array[..., c][has_data & ~ignored[..., c]].astype(np.float64)
        scaled = values / FULL[str(array.dtype)]
        assert facts.counts[c] == len(values)
        if len(values):
            assert (facts.low[c], facts.high[c]) == (values.min(), values.max())
        np.testing.assert_allclose(facts.total[c], scaled.sum(), rtol=1e-12)
        np.testing.assert_allclose(facts.squares[c], (scaled**2).sum(), rtol=1e-12)
    assert facts.pixels == has_data.sum()
    assert facts.nonfinite == (~finite.all(-1)).sum()
    assert (facts.height, facts.width, facts.channels) == array.shape


@pytest.mark.parametrize("bands", [None, (1, 2, 3), (2,), (4, 1)])
@pytest.mark.parametrize("photometric", ["rgb", "minisblack"])
def test_data_mask_matches_read_tile(bands, photometric, tmp_path, rng):
    array = rng.choice(np.array([0, 1, 2, np.nan, -9999], np.float32), (20, 20, 4), p=[0.3, 0.3, 0.2, 0.1, 0.1])
    array[:3] = -9999
    array[3:5] = 2
    path = tmp_path / "a.tif"
    extra = {"extrasamples": ["unassalpha"]} if photometric == "rgb" else {}
    tags = [(42113, "s", 0, "-9999", True)]
    tifffile.imwrite(path, array, photometric=photometric, planarconfig="contig", extratags=tags, **extra)
    for settings in (Data(channels=bands), Data(channels=bands, nodata=2.0)):
        reading = Reading(channels=len(bands or range(4)), bands=bands, dtype="float32", nodata=settings.nodata)
        expected = read_tile(path, reading)[1]
        _, has_data = image_facts(module.read_pixels(path), settings)
        assert 0 < expected.sum() < expected.size
        assert has_data.tolist() == expected.tolist()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_alpha_is_opaque_only_if_opaque_everywhere(dtype, rng):
    array = rng.integers(0, 200, (8, 8, 4)).astype(dtype)
    array[..., 3] = np.iinfo(dtype).max
    assert image_facts(Pixels(array, None, color=True), Data())[0].opaque
    array[5, 5, 3] -= 1
    assert not image_facts(Pixels(array, None, color=True), Data())[0].opaque


# masks


@given(values=hnp.arrays(np.int32, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(-2, 3)))
def test_mask_values_are_counted(values):
    facts = facts_of_mask(values)
    found, pixels = np.unique(values, return_counts=True)
    assert dict(zip(facts.values, facts.pixels)) == dict(zip(found.tolist(), pixels.tolist()))
    assert facts.pixels == tuple(sorted(facts.pixels, reverse=True))
    assert facts.with_data == facts.pixels
    assert facts.distinct == len(found)


def test_mask_values_are_counted_where_the_image_has_data():
    values = np.array([[1, 1, 2], [2, 2, 3]])
    has_data = np.array([[True, False, True], [False, True, False]])
    facts = facts_of_mask(values, image=np.zeros((2, 3, 1), np.uint8), has_data=has_data)
    assert dict(zip(facts.values, facts.with_data)) == {2: 2, 1: 1, 3: 0}


def test_photo_mask_keeps_common_values_and_pixel_total(rng):
    values = rng.integers(0, 2**24, (300, 300))
    values[:40] = 0x123456
    facts = facts_of_mask(values, color=True)
    assert facts.distinct > 50_000
    assert len(facts.values) <= MOST_VALUES + 2**15
    assert (facts.values[0], facts.pixels[0]) == (0x123456, 40 * 300)
    assert sum(facts.pixels) == values.size
    kept = set(np.unique(values).tolist())
    assert all(value in kept or value & 0x070707 == 0 for value in facts.values)


def test_seams_are_pixels_between_their_neighbors():
    values = np.zeros((8, 12), np.uint8)
    values[:, 5], values[:, 6:] = 2, 5
    facts = facts_of_mask(values)
    between = dict(zip(facts.values, facts.between))
    assert between == {0: 0, 2: 8, 5: 0}
    assert dict(zip(*(lambda f: (f.values, f.between))(facts_of_mask(values.T)))) == between


@pytest.mark.parametrize("step", [2, 3, 4])
def test_enlarged_mask_has_borders_on_a_grid(step, rng):
    small = rng.integers(0, 2, (20, 20), np.uint8)
    enlarged = small.repeat(step, 0).repeat(step, 1)
    assert facts_of_mask(enlarged).block == step
    assert facts_of_mask(small).block == 1
    assert facts_of_mask(np.roll(enlarged, 1, 1)).block == 1
    assert facts_of_mask(np.zeros((40, 40), np.uint8)).block == 1


@pytest.mark.parametrize("shift", [(0, 0), (4, -3), (-5, 0)])
def test_shift_of_a_mask_is_measured(shift):
    yy, xx = np.mgrid[:96, :96]
    mask = (((yy - 40) ** 2 + (xx - 50) ** 2 < 500) | ((yy - 70) ** 2 + (xx - 30) ** 2 < 200)).astype(np.uint8)
    image = np.repeat((60 + 100 * mask)[..., None], 3, 2).astype(np.uint8)
    moved = np.roll(mask, shift, (0, 1))
    found = facts_of_mask(moved, image=image, has_data=np.ones(mask.shape, bool)).shift
    assert np.abs(np.array(found) + shift).max() <= 1
    flat = facts_of_mask(moved, image=np.full_like(image, 7), has_data=np.ones(mask.shape, bool))
    assert flat.shift == ()


# the pass, and its cache


@pytest.mark.parametrize("workers", [0, 3])
def test_facts_come_in_the_order_of_the_pairs(workers, tmp_path):
    pairs = pairs_of(tmp_path, 5)
    facts = survey(pairs, Data(), workers)
    assert [f.pair for f in facts] == pairs
    for f in facts:
        pixels = cv2.imread(str(f.pair.image))
        assert f.image.high == tuple(pixels.reshape(-1, 3).max(0))
        assert not f.image_error
        assert not f.mask_error


def test_unreadable_file_says_why_and_its_partner_is_measured(tmp_path):
    pairs = pairs_of(tmp_path)
    pairs[0].image.write_bytes(b"")
    pairs[1].mask.write_bytes(b"no picture")
    pairs[2].mask.unlink()
    first, second, third = survey(pairs, Data(), 2)
    assert (first.image, first.image_error) == (None, "is empty (0 bytes)")
    assert first.mask is not None
    assert "not a picture" in second.mask_error
    assert second.image is not None
    assert "cannot be opened" in third.mask_error
    assert str(tmp_path) not in third.mask_error


@pytest.fixture
def reads(monkeypatch) -> list[Path]:
    """Images that are decoded."""
    seen, read = [], module.read_pixels

    def noting(path, **how):
        seen.extend([path] * (path.parent.name == "images"))
        return read(path, **how)

    monkeypatch.setattr(module, "read_pixels", noting)
    return seen


def test_second_survey_reads_nothing_and_gives_equal_facts(tmp_path, reads):
    pairs = pairs_of(tmp_path)
    first = survey(pairs, Data(), 2)
    assert sorted(reads) == [pair.image for pair in pairs]
    assert survey(pairs, Data(), 2) == first
    assert len(reads) == 3


def test_only_a_changed_file_is_read_again(tmp_path, reads):
    pairs = pairs_of(tmp_path)
    survey(pairs, Data(), 0)
    write(pairs[1].image, np.zeros((16, 16, 3), np.uint8))
    os.utime(pairs[2].mask, ns=(1, 1))
    reads.clear()
    facts = survey(pairs, Data(), 0)
    assert reads == [pairs[1].image, pairs[2].image]
    assert facts[1].image.high == (0, 0, 0)


@pytest.mark.parametrize("name", ["1.pgw", "1.PGW", "1.wld"])
def test_a_world_file_that_is_added_later_is_seen(name, tmp_path, reads):
    pairs = pairs_of(tmp_path)
    assert [found.image.corners for found in survey(pairs, Data(), 0)] == [()] * 3
    (pairs[1].image.parent / name).write_text("2\n0\n0\n-2\n101\n899\n")
    reads.clear()
    assert [found.image.corners for found in survey(pairs, Data(), 0)] == [(), (100, 900, 100, 868, 132, 900), ()]
    assert reads == [pairs[1].image]


def test_settings_that_change_facts_are_cached_separately(tmp_path, reads):
    pairs = pairs_of(tmp_path, 1)
    settings = [(Data(), False), (Data(nodata=0.0), False), (Data(channels=(1,)), False), (Data(), True)]
    for given_, colors in settings * 2:
        survey(pairs, given_, 0, colors)
    assert len(reads) == len(settings)


def test_palettes_are_read_as_indices_or_colors(tmp_path):
    (pair,) = pairs_of(tmp_path, 1)
    image = Image.fromarray(np.tile(np.uint8([0, 1]), (16, 8)))
    image.putpalette([10, 20, 30, 255, 0, 0])
    image.save(pair.mask)
    assert set(survey([pair], Data(), 0)[0].mask.values) == {0, 1}
    assert set(survey([pair], Data(), 0, colors=True)[0].mask.values) == {0x0A141E, 0xFF0000}


def test_failed_file_is_read_again(tmp_path, reads, monkeypatch):
    pairs = pairs_of(tmp_path)
    content = pairs[1].image.read_bytes()
    os.utime(pairs[1].image, ns=(5, 5))
    pairs[1].image.write_bytes(bytes(len(content)))
    os.utime(pairs[1].image, ns=(5, 5))
    assert survey(pairs, Data(), 0)[1].image is None
    pairs[1].image.write_bytes(content)
    os.utime(pairs[1].image, ns=(5, 5))  # as a network share that was away leaves it
    assert survey(pairs, Data(), 0)[1].image is not None


@given(cut=st.floats(0, 1), garbage=st.binary(max_size=20))
def test_damaged_cache_is_ignored(tmp_path_factory, cut, garbage):
    root = tmp_path_factory.mktemp("damaged")
    os.environ["JAXSEG_CACHE_DIR"] = str(root / "cache")
    pairs = pairs_of(root, 1)
    first = survey(pairs, Data(), 0)
    (store,) = (root / "cache").iterdir()
    content = store.read_bytes()
    store.write_bytes(content[: int(cut * len(content))] + garbage)
    assert survey(pairs, Data(), 0) == first


def test_any_flipped_bit_of_the_cache_is_seen(tmp_path, cache, reads, capsys):
    pairs = pairs_of(tmp_path, 1)
    first = survey(pairs, Data(), 0)
    (store,) = cache.iterdir()
    content = store.read_bytes()
    for at in range(0, len(content), 41):
        store.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        reads.clear()
        assert survey(pairs, Data(), 0) == first
        assert reads == [pairs[0].image]
        assert store.read_bytes() == content
        assert capsys.readouterr().out.count("is damaged: all files are read again") == 1


def test_file_with_restored_size_and_time_is_read_again(tmp_path, reads):
    pairs = pairs_of(tmp_path)
    survey(pairs, Data(), 0)
    before = pairs[1].mask.stat()
    content = pairs[1].mask.read_bytes()
    pairs[1].mask.write_bytes(content)
    os.utime(pairs[1].mask, ns=(before.st_atime_ns, before.st_mtime_ns))
    (tmp_path / "new.png").write_bytes(pairs[2].image.read_bytes())
    times = pairs[2].image.stat()
    (tmp_path / "new.png").replace(pairs[2].image)
    os.utime(pairs[2].image, ns=(times.st_atime_ns, times.st_mtime_ns))
    reads.clear()
    survey(pairs, Data(), 0)
    assert reads == [pairs[1].image, pairs[2].image]


def test_mask_beside_that_appears_or_changes_is_read(tmp_path, reads):
    (pair,) = pairs_of(tmp_path, 1)
    assert survey([pair], Data(), 0)[0].image.pixels == 256
    for rows in (4, 7):
        shown = np.full((16, 16), 255, np.uint8)
        shown[:rows] = 0
        tifffile.imwrite(f"{pair.image}.msk", shown)
        assert survey([pair], Data(), 0)[0].image.pixels == 256 - 16 * rows


def test_facts_of_files_that_changed_just_now_are_not_reused(tmp_path, reads, monkeypatch):
    monkeypatch.setattr(files, "SETTLED", 60.0)
    pairs = pairs_of(tmp_path, 1)
    assert survey(pairs, Data(), 0) == survey(pairs, Data(), 0)
    assert len(reads) == 2


@pytest.mark.parametrize("content", ["[]", "3", "null", '{"x": 1}', '{"x": [1, {}, {}]}', '{"x": [[], {"a": 1}, 2]}'])
def test_foreign_cache_content_is_ignored(content, tmp_path, cache):
    pairs = pairs_of(tmp_path, 1)
    first = survey(pairs, Data(), 0)
    (store,) = cache.iterdir()
    store.write_text(content)
    assert survey(pairs, Data(), 0) == first
    assert len(json.loads(store.read_text().partition("\n")[2])) == 1


def test_unwritable_cache_is_ignored(tmp_path, cache):
    cache.write_text("a file where a folder should be")
    pairs = pairs_of(tmp_path)
    assert survey(pairs, Data(), 0) == survey(pairs, Data(), 0)
    assert cache.is_file()


def test_facts_read_before_ctrl_c_are_cached(tmp_path, reads):
    pairs = pairs_of(tmp_path)

    def stop(done, total):
        assert total == 3
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        survey(pairs, Data(), 0, tell=stop)
    reads.clear()
    told = []
    survey(pairs, Data(), 0, tell=lambda done, total: told.append((done, total)))
    assert reads == [pairs[2].image]
    assert told == [(1, 1)]


def test_cache_is_one_file_without_drafts(tmp_path, cache):
    pairs = pairs_of(tmp_path)
    survey(pairs[:2], Data(), 2)
    survey(pairs, Data(), 2)
    assert [file.suffix for file in cache.iterdir()] == [".json"]


def test_digests_of_unchanged_files_come_from_the_cache(tmp_path, monkeypatch):
    pairs = pairs_of(tmp_path)
    first = [found.digests for found in survey(pairs, Data(), 0)]
    assert len({digest for both in first for digest in both}) == 6
    monkeypatch.setattr(module, "of_content", lambda path: pytest.fail(f"{path} is read again"))
    assert [found.digests for found in survey(pairs, Data(), 0)] == first
