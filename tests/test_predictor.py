import functools
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from jaxseg.base.config import Model
from jaxseg.base.errors import UserError
from jaxseg.data.read.samples import Reading
from jaxseg.inference import predictor as inference
from jaxseg.inference import tiles
from jaxseg.inference.predictor import Predictor
from jaxseg.learn.step import normalize
from jaxseg.nn import unet


@pytest.fixture(scope="module")
def net():
    """A network of two levels that was not trained; its receptive field reaches 9 pixels each way."""
    return nnx.view(unet.unet_from(Model(widths=(4, 8)), in_channels=3, classes=3, seed=3), use_running_average=True)


@nnx.jit
def at_once(net, images):
    return jax.nn.softmax(net(normalize(images)))


def whole(net, image):
    """What the network says of the image at once."""
    return np.asarray(at_once(net, image[None]))[0]


def noise(rng, *shape):
    return rng.integers(0, 256, shape, dtype=np.uint8)


class Pointwise(unet.UNet):
    """A network that sees nothing but the pixel itself, so that tiles change nothing."""

    least_side = 4

    def __init__(self):
        super().__init__((1, 1), rngs=nnx.Rngs(0))

    def __call__(self, x, valid=None, key=None):
        return jnp.stack([x[..., 0] * 5, x[..., 1] - x[..., 2], x.sum(-1)], -1)


@functools.cache
def pointwise():
    return Pointwise()


@pytest.fixture
def traced(monkeypatch):
    """Shapes for which Pointwise is compiled."""
    shapes, right = [], Pointwise.__call__
    monkeypatch.setattr(Pointwise, "__call__", lambda self, x, *rest: shapes.append(x.shape) or right(self, x))
    return shapes


@pytest.mark.parametrize("size", [(64, 64), (48, 64), (2, 24), (32, 6)])
def test_an_image_no_larger_than_a_tile_is_predicted_whole(net, rng, size):
    image = noise(rng, *size, 3)
    found = Predictor(net, Reading(), tile=64).probabilities(image)
    np.testing.assert_allclose(found, whole(net, image), atol=1e-6)
    assert found.dtype == np.float32


def test_sides_between_those_of_the_buckets_are_reflected(net, rng):
    image = noise(rng, 37, 50, 3)
    found = Predictor(net, Reading(), tile=64).probabilities(image)
    padded = np.pad(image, [(0, 48 - 37), (0, 64 - 50), (0, 0)], mode="reflect")
    np.testing.assert_allclose(found, whole(net, padded)[:37, :50], atol=1e-6)


def test_sides_of_the_training_tiles_are_not_padded(net, rng):
    image = noise(rng, 37, 50, 3)
    found = Predictor(net, Reading(), tile=64, sides=(50, 37)).probabilities(image)
    np.testing.assert_allclose(found, whole(net, image), atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (3, 1), (1, 200)])
def test_images_smaller_than_the_network_takes(net, rng, size):
    found = Predictor(net, Reading(), tile=64).probabilities(noise(rng, *size, 3))
    assert found.shape == (*size, 3)
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.5])
def test_tiles_say_what_the_whole_image_says_where_no_border_of_a_tile_is_seen(net, rng, overlap):
    """Inside the image a tile's border has zeros beyond it, and what they do reaches as far as the receptive field."""
    reach, image = 9, noise(rng, 64 + 3 * 22, 64 + 2 * 38, 3)
    predictor = Predictor(net, Reading(), tile=64, overlap=overlap, batch_size=3)
    unseen = []
    for n in image.shape[:2]:
        pixel, free = np.arange(n), np.ones(n, bool)
        for start in predictor._axis(n).starts:
            near = np.zeros(n, bool) if start == 0 else abs(pixel - start + 0.5) < reach
            near |= False if start + 64 == n else abs(pixel - start - 64 + 0.5) < reach
            free &= ~(near & (pixel >= start) & (pixel < start + 64))
        unseen.append(free)
    where = np.outer(*unseen)
    difference = abs(predictor.probabilities(image) - whole(net, image)).max(-1)
    assert where.mean() > 0.15
    assert difference[where].max() < 1e-6
    assert difference[~where].max() > 1e-4, "borders of tiles differ, or this test sees nothing"


@given(
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    tile=st.sampled_from([8, 16, 20, 32]),
    overlap=st.floats(0, 0.9),
    batch_size=st.integers(1, 5),
    tta=st.booleans(),
)
def test_any_size_tile_and_overlap_covers_every_pixel_once(size, tile, overlap, batch_size, tta):
    image = noise(np.random.default_rng(size), *size, 3)
    predictor = Predictor(pointwise(), Reading(), tile=tile, overlap=overlap, batch_size=batch_size, tta=tta)
    b, g, r = np.moveaxis(image / 255, -1, 0)
    e = np.exp(np.stack([b * 5, g - r, b + g + r], -1))
    expected, next_row = e / e.sum(-1, keepdims=True), 0
    for top, p in predictor.bands(image):
        assert top == next_row
        np.testing.assert_allclose(p, expected[top : top + len(p)], atol=1e-6)
        next_row = top + len(p)
    assert next_row == size[0]
    np.testing.assert_array_equal(predictor.classes(image), predictor.probabilities(image).argmax(-1))


def test_random_sizes_compile_few_shapes(rng, traced):
    predictor = Predictor(pointwise(), Reading(), tile=64)
    for h, w in rng.integers(20, 65, (30, 2)):
        predictor.classes(noise(rng, h, w, 3))
    assert len(traced) == len(set(traced)), "a shape was compiled twice"
    assert set(traced) <= {(1, h, w, 3) for h in (24, 32, 48, 64) for w in (24, 32, 48, 64)}
    before = len(traced)
    for h, w in rng.integers(65, 300, (30, 2)):
        predictor.classes(noise(rng, h, w, 3))
    assert set(traced[before:]) <= {(2, 64, 64, 3), (4, 64, 64, 3)}


def test_the_last_batch_of_tiles_is_padded(rng, traced):
    predictor = Predictor(pointwise(), Reading(), tile=32, batch_size=4)
    predictor.classes(noise(rng, 64, 96, 3))  # 3 x 5 tiles
    assert traced == [(4, 32, 32, 3)]


def test_tta_is_the_mean_over_the_eight_symmetries(net, rng):
    image = noise(rng, 32, 32, 3)
    expected = np.zeros((32, 32, 3))
    for turns in range(4):
        for flip in (False, True):
            view = np.rot90(image, turns)[:, ::-1] if flip else np.rot90(image, turns)
            p = whole(net, np.ascontiguousarray(view))
            expected += np.rot90(p[:, ::-1] if flip else p, -turns) / 8
    found = Predictor(net, Reading(), tile=32, tta=True).probabilities(image)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert abs(found - whole(net, image)).max() > 1e-3


def test_tta_of_a_rectangle_is_the_mean_over_the_four_that_keep_it(net, rng):
    image = noise(rng, 16, 32, 3)
    expected = sum(whole(net, np.ascontiguousarray(image[::a, ::b]))[::a, ::b] for a in (1, -1) for b in (1, -1)) / 4
    found = Predictor(net, Reading(), tile=32, tta=True).probabilities(image)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_what_tta_says_turns_with_the_image(net, rng):
    image, predictor = noise(rng, 96, 96, 3), Predictor(net, Reading(), tile=32, tta=True)
    turned = predictor.probabilities(np.ascontiguousarray(np.rot90(image)))
    np.testing.assert_allclose(np.rot90(turned, -1), predictor.probabilities(image), atol=1e-6)


def test_memory_does_not_grow_with_the_images_height(rng):
    peaks = {}
    for h in (512, 4096):
        image, predictor = noise(rng, h, 256, 3), Predictor(pointwise(), Reading(), tile=64)
        sum(len(p) for _, p in predictor.bands(image[:200]))  # compiles
        tracemalloc.start()
        assert sum(len(p) for _, p in predictor.bands(image)) == h
        peaks[h] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peaks[4096] < 1.3 * peaks[512]
    assert peaks[4096] < 4096 * 256 * 3 * 4 / 4, "a quarter of the probabilities of the whole image"


@pytest.mark.parametrize("overlap", [0.0, 0.5])
def test_bands_of_a_wide_image_are_small_and_equal_larger_ones(overlap, monkeypatch, rng):
    image, predictor = noise(rng, 150, 300, 3), Predictor(pointwise(), Reading(), tile=64, overlap=overlap)
    whole = predictor.probabilities(image)
    monkeypatch.setattr(inference, "BAND", 5 * whole[0].nbytes + 1)
    bands = list(predictor.bands(image))
    assert [top for top, _ in bands] == np.cumsum([0, *(len(p) for _, p in bands[:-1])]).tolist()
    assert max(len(p) for _, p in bands) == 5
    np.testing.assert_array_equal(np.concatenate([p for _, p in bands]), whole)
    monkeypatch.setattr(inference, "BAND", 1)
    assert {len(p) for _, p in predictor.bands(image)} == {1}


def test_images_are_read_a_tile_at_a_time(rng):
    """So that a memory map is never in memory."""

    class Map:
        shape, dtype = (500, 300, 3), np.dtype(np.uint8)

        def __getitem__(self, key):
            rows, columns = key
            assert rows.stop - rows.start == columns.stop - columns.start == 64
            return pixels[key]

    pixels, predictor = noise(rng, 500, 300, 3), Predictor(pointwise(), Reading(), tile=64)
    np.testing.assert_array_equal(predictor.classes(Map()), predictor.classes(pixels))


def test_a_band_is_the_callers_to_keep(net, rng):
    image, predictor = noise(rng, 200, 70, 3), Predictor(net, Reading(), tile=32)
    kept = [p for _, p in predictor.bands(image)]
    copies = [p.copy() for _, p in predictor.bands(image)]
    assert len(kept) > 3
    for a, b in zip(kept, copies):
        np.testing.assert_array_equal(a, b)


def test_weights_are_gaussian_with_an_eighth_of_the_tile_and_add_up_to_one():
    first, second = tiles.axis([0, 32], 64).weights
    np.testing.assert_allclose(first[32:] + second[:32], 1, atol=1e-6)
    np.testing.assert_array_equal(first[:32], 1)
    # 8.5 and 23.5 pixels from the middle, deviation 8
    np.testing.assert_allclose(first[40] / second[8], np.exp((23.5**2 - 8.5**2) / (2 * 8**2)), rtol=1e-5)
    assert (first > 0).all()
    assert (second > 0).all()


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"tile": 63}, "`tile` is 63; this network needs a multiple of 2, such as 64"),
        ({"tile": 0}, "`tile` is 0"),
        ({"overlap": 0.95}, "`overlap` is 0.95; expected 0 to 0.9"),
        ({"overlap": -0.1}, "`overlap` is -0.1"),
        ({"batch_size": 0}, "`batch_size` is 0"),
    ],
)
def test_what_cannot_be_names_the_flag(net, how, says):
    with pytest.raises(UserError, match=says):
        Predictor(net, Reading(), **how)
