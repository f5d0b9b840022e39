import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxseg.base.config import IGNORE_INDEX, Augmentation
from jaxseg.learn.augment import augment_from, blur, brightness, contrast, dihedral, flips_and_turns, noise, zoom
from jaxseg.learn.step import normalize

augment = jax.jit(flips_and_turns)
augment_by_each = jax.jit(jax.vmap(flips_and_turns, in_axes=(0, None)))
turned = jax.jit(dihedral)
zoomed, noisy, blurred = (jax.jit(change, static_argnums=2) for change in (zoom, noise, blur))


def numbered(b: int, h: int, w: int) -> dict[str, jax.Array]:
    """A batch in which every pixel of a sample has its own value, the same in the mask and in each channel."""
    mask = np.broadcast_to(np.arange(h * w, dtype=np.uint8).reshape(h, w), (b, h, w))
    image = np.stack([mask, mask + 100, 255 - mask], axis=-1)
    return {"image": jnp.asarray(image), "mask": jnp.asarray(mask), "valid": jnp.arange(b) < b - 1}


def expected(x: np.ndarray, flip: bool, turns: int) -> np.ndarray:
    return np.rot90(np.fliplr(x) if flip else x, turns)


@pytest.mark.parametrize("channels", [(), (3,)], ids=["mask", "image"])
def test_dihedral_is_fliplr_then_rot90_for_all_eight(channels):
    x = np.random.default_rng(0).integers(0, 256, (8, 4, 4, *channels), np.uint8)
    flip, turns = np.arange(8) >= 4, np.arange(8) % 4
    found = turned(x, flip, turns)
    assert found.dtype == np.uint8
    for i in range(8):
        np.testing.assert_array_equal(found[i], expected(x[i], flip[i], turns[i]))


@pytest.mark.parametrize("size", [(3, 5), (6, 2), (1, 4)])
def test_dihedral_turns_by_halves_what_is_not_square(size):
    x = np.random.default_rng(0).integers(0, 256, (4, *size, 3), np.uint8)
    flip, turns = np.array([False, False, True, True]), np.array([0, 2, 0, 2])
    found = turned(x, flip, turns)
    assert found.shape == x.shape
    for i in range(4):
        np.testing.assert_array_equal(found[i], expected(x[i], flip[i], turns[i]))


@given(st.integers(0, 2**32 - 1), st.sampled_from([(4, 4), (3, 5)]))
def test_image_and_mask_move_together_and_nothing_else_changes(seed, size):
    batch = numbered(5, *size)
    found = augment(jax.random.key(seed), batch)
    assert found.keys() == batch.keys()
    for name in batch:
        assert (found[name].shape, found[name].dtype) == (batch[name].shape, batch[name].dtype)
    np.testing.assert_array_equal(found["valid"], batch["valid"])
    mask = np.asarray(found["mask"])
    np.testing.assert_array_equal(found["image"], np.stack([mask, mask + 100, 255 - mask], axis=-1))
    np.testing.assert_array_equal(np.sort(mask.reshape(5, -1)), np.sort(np.asarray(batch["mask"]).reshape(5, -1)))


@pytest.mark.parametrize("over", ["samples", "keys"])
@pytest.mark.parametrize(("size", "orders"), [((2, 2), 8), ((2, 3), 4)])
def test_all_positions_are_alike_probable(size, orders, over):
    n, key = 64 * orders, jax.random.key(0)
    if over == "samples":
        found = augment(key, numbered(n, *size))["mask"]
    else:
        found = augment_by_each(jax.random.split(key, n), numbered(1, *size))["mask"]
    positions, counts = np.unique(np.asarray(found).reshape(n, -1), axis=0, return_counts=True)
    tile = np.arange(size[0] * size[1]).reshape(size)
    turns = (0, 1, 2, 3) if orders == 8 else (0, 2)
    assert {tuple(p) for p in positions.tolist()} == {
        tuple(expected(tile, flip, turn).ravel().tolist()) for flip in (False, True) for turn in turns
    }
    assert (np.abs(counts - 64) < 5 * np.sqrt(64)).all()


def test_the_same_key_does_the_same_and_another_key_another():
    batch = numbered(16, 4, 4)
    masks = [np.asarray(augment(jax.random.key(seed), batch)["mask"]) for seed in (5, 5, 6)]
    np.testing.assert_array_equal(masks[0], masks[1])
    assert (masks[0] != masks[2]).any()


# what is not flips and turns


def smooth(b: int = 3, n: int = 32) -> dict[str, jax.Array]:
    """Images that are linear in both coordinates, and labels that are the quarter a pixel lies in."""
    y, x = np.mgrid[:n, :n] / n
    image = np.broadcast_to(np.stack([y, x, (y + x) / 2], -1), (b, n, n, 3)).astype(np.float32)
    mask = np.broadcast_to(2 * (y >= 0.5) + (x >= 0.5), (b, n, n)).astype(np.uint8)
    return {"image": jnp.asarray(image), "mask": jnp.asarray(mask), "valid": jnp.ones(b, bool)}


@pytest.mark.parametrize("seed", range(5))
def test_zoom_moves_image_and_mask_alike_and_ignores_what_lies_outside(seed):
    batch = smooth(8)
    found = jax.device_get(zoomed(jax.random.key(seed), batch, 1.0))
    shares, spans = [], []
    for image, mask in zip(found["image"], found["mask"]):
        seen = mask != IGNORE_INDEX
        shares.append(seen.mean())
        spans.append(np.ptp(image[seen][:, 0]))
        # the image's values are coordinates: they must name the quarter that the label is, but for pixels on its border
        y, x = image[..., 0], image[..., 1]
        quarter = 2 * (y >= 0.5 - 1 / 64) + (x >= 0.5 - 1 / 64)
        inner = seen & (np.abs(y - 0.5 + 1 / 64) > 1 / 32) & (np.abs(x - 0.5 + 1 / 64) > 1 / 32)
        inner &= (y > 0.02) & (x > 0.02)  # the interpolation fades at the very border
        assert (quarter == mask)[inner].all()
        np.testing.assert_allclose(
            image[~seen], np.broadcast_to(batch["image"][0].mean((0, 1)), image[~seen].shape), 1e-5
        )
    assert min(shares) < 0.95  # some are made smaller
    assert min(spans) < 0.9  # some larger
    assert found["image"].shape == batch["image"].shape


def test_zoom_of_none_is_the_sample_itself():
    batch = smooth()
    found = zoomed(jax.random.key(0), batch, 1e-9)
    np.testing.assert_allclose(found["image"], batch["image"], atol=1e-5)
    np.testing.assert_array_equal(found["mask"], batch["mask"])


@jax.jit
def light(key: jax.Array, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Images of another brightness, and of another contrast; asserts that all such changes leave masks."""
    for change in (brightness, contrast, noise, blur):
        assert change(key, batch, 0.5)["mask"] is batch["mask"]
    return brightness(key, batch, 0.25)["image"], contrast(key, batch, 0.25)["image"]


@given(seed=st.integers(0, 2**32 - 1))
def test_light_changes_as_far_as_it_is_told_and_leaves_masks(seed):
    batch = smooth()
    image = np.asarray(batch["image"])
    brighter, changed = map(np.asarray, light(jax.random.key(seed), batch))
    added = brighter - image
    assert np.ptp(added, axis=(1, 2, 3)).max() < 1e-6
    assert np.abs(added).max() <= 0.25 + 1e-6
    np.testing.assert_allclose(changed.mean((1, 2, 3)), image.mean((1, 2, 3)), rtol=1e-5)
    factor = changed.std((1, 2, 3)) / image.std((1, 2, 3))
    assert (factor >= 0.75 - 1e-5).all()
    assert (factor <= 1.25 + 1e-5).all()


def test_noise_is_white_and_of_another_strength_for_every_sample():
    batch = smooth(4, 64)
    added = np.asarray(noisy(jax.random.key(0), batch, 0.2)["image"]) - np.asarray(batch["image"])
    stds = added.std((1, 2, 3))
    assert (stds < 0.205).all()
    assert len(np.unique(stds.round(3))) == 4
    assert abs(np.corrcoef(added[0, :, :-1].ravel(), added[0, :, 1:].ravel())[0, 1]) < 0.05


def test_blur_is_a_gaussian_that_keeps_the_mean_and_constants():
    point = np.zeros((2, 33, 33, 1), np.float32)
    point[0, 16, 16], point[1] = 1, 3
    found = np.asarray(blurred(jax.random.key(1), {"image": point}, 2.0)["image"])
    np.testing.assert_allclose(found[1], 3, rtol=1e-5)
    assert found[0].sum() == pytest.approx(1, rel=1e-5)
    row = found[0, 16, :, 0]
    sigma2 = 0.5 / np.log(row[16] / row[17])
    assert 0 < sigma2 <= 4
    expected = np.exp(-0.5 * (np.arange(33) - 16) ** 2 / sigma2)
    reached = np.abs(np.arange(33) - 16) <= 6
    np.testing.assert_allclose(row[reached] / row[16], expected[reached], rtol=1e-3)
    np.testing.assert_allclose(found[0], np.swapaxes(found[0], 0, 1), atol=1e-7)


def test_what_is_asked_for_is_built_and_nothing_is_nothing():
    batch = numbered(2, 4, 4)
    assert augment_from(Augmentation(augment=False, noise=1.0), normalize) is None
    assert augment_from(Augmentation(flips=False), normalize) is None
    flips = jax.jit(augment_from(Augmentation(), normalize))(jax.random.key(0), batch)
    assert flips["image"].dtype == np.uint8
    everything = Augmentation(zoom=0.5, brightness=0.1, contrast=0.1, noise=0.1, blur=1.0)
    step = jax.jit(augment_from(everything, normalize))
    first, again, other = (jax.device_get(step(jax.random.key(seed), batch)) for seed in (0, 0, 1))
    assert first["image"].dtype == np.float32
    assert first["image"].shape == batch["image"].shape
    np.testing.assert_array_equal(first["image"], again["image"])
    assert (first["image"] != other["image"]).any()
