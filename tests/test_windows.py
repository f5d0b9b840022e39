"""Images of many sizes in a few shapes: every pixel once, whatever the sizes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxseg.base.config import IGNORE_INDEX
from jaxseg.data.feed.windows import MOST, MULTIPLE, buckets, place, windows

sizes = st.lists(st.tuples(st.integers(1, 300), st.integers(1, 300)), min_size=1, max_size=30)


def sample(h: int, w: int, channels: int = 2) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(h * 1000 + w)
    return {
        "image": rng.integers(0, 60000, (h, w, channels), np.uint16),
        "mask": rng.integers(0, 5, (h, w), np.uint8),
    }


@given(sizes=sizes, most=st.integers(1, 5))
def test_buckets_are_few_and_contain_their_images(sizes, most):
    shapes = buckets(sizes, most)
    assert len(shapes) == len(sizes)
    assert len(set(shapes)) <= most
    for size, shape in zip(sizes, shapes):
        assert shape[0] >= size[0]
        assert shape[1] >= size[1]
        assert shape[0] % MULTIPLE == shape[1] % MULTIPLE == 0
        assert shapes[sizes.index(size)] == shape


def test_few_shapes_are_not_merged():
    found = buckets([(100, 100), (128, 96), (500, 20), (100, 101)])
    assert found == [(128, 128), (128, 96), (512, 32), (128, 128)]


def test_merged_shapes_add_the_fewest_pixels():
    many_small, one_large = [(64, 64)] * 100 + [(64, 96)] * 2, [(1024, 1024)]
    assert buckets(many_small + one_large, most=2) == [(64, 96)] * 102 + [(1024, 1024)]


def test_the_pair_that_adds_the_fewest_pixels_is_merged_whatever_its_order():
    assert buckets([(32, 320), (320, 32), (320, 64)], most=2) == [(32, 320), (320, 64), (320, 64)]
    assert buckets([(32, 64), (64, 320), (320, 320)], most=2) == [(64, 320), (64, 320), (320, 320)]


def test_a_merged_shape_has_the_larger_height_and_the_larger_width():
    assert set(buckets([(96, 32), (32, 64)], most=1)) == {(96, 64)}
    assert set(buckets([(32, 96), (64, 32)], most=1)) == {(64, 96)}
    assert set(buckets([(32, 160), (96, 64), (64, 128)], most=1)) == {(96, 160)}


@given(sizes=sizes, largest=st.none() | st.integers(16, 200))
def test_windows_cover_every_pixel_exactly_once(sizes, largest):
    parts = windows(sizes, largest)
    seen = [np.zeros(size, int) for size in sizes]
    for part in parts:
        (y, x), (h, w) = part.corner, part.size
        seen[part.index][y : y + h, x : x + w] += 1
        assert largest is None or max(h, w) <= largest
    assert all((count == 1).all() for count in seen)
    assert len({part.shape for part in parts}) <= MOST
    assert [part.index for part in parts] == sorted(part.index for part in parts)


@given(h=st.integers(1, 40), w=st.integers(1, 40), y=st.integers(0, 39), x=st.integers(0, 39))
def test_place_keeps_the_window_and_ignores_the_padding(h, w, y, x):
    whole, corner = sample(h, w), (min(y, h - 1), min(x, w - 1))
    found = place(whole, (50, 45), corner)
    rows, columns = h - corner[0], w - corner[1]
    for name in ("image", "mask"):
        part = whole[name][corner[0] :, corner[1] :]
        assert found[name].dtype == part.dtype
        np.testing.assert_array_equal(found[name][:rows, :columns], part)
    assert found["image"].shape == (50, 45, 2)
    assert (found["mask"][rows:] == IGNORE_INDEX).all()
    assert (found["mask"][:, columns:] == IGNORE_INDEX).all()
    assert np.isin(found["image"], whole["image"]).all()  # mirrored, not invented


def test_a_window_is_cut_at_its_size():
    whole = sample(64, 64)
    found = place(whole, (32, 32), (32, 0), (32, 20))
    np.testing.assert_array_equal(found["mask"][:, :20], whole["mask"][32:, :20])
    assert (found["mask"][:, 20:] == IGNORE_INDEX).all()


def test_place_without_padding_does_not_copy():
    whole = sample(8, 8)
    assert np.shares_memory(place(whole, (4, 4), (2, 2))["image"], whole["image"])


@pytest.mark.parametrize("shape", [(5, 9), (3, 3)])
def test_odd_shapes_are_padded(shape):
    assert place(sample(4, 4), shape)["mask"].shape == shape
