import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxseg.data.augment import dihedral, flips_and_turns

augment = jax.jit(flips_and_turns)
augment_by_each = jax.jit(jax.vmap(flips_and_turns, in_axes=(0, None)))


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
    found = dihedral(jnp.asarray(x), jnp.asarray(flip), jnp.asarray(turns))
    assert found.dtype == np.uint8
    for i in range(8):
        np.testing.assert_array_equal(found[i], expected(x[i], flip[i], turns[i]))


@pytest.mark.parametrize("size", [(3, 5), (6, 2), (1, 4)])
def test_dihedral_turns_by_halves_what_is_not_square(size):
    x = np.random.default_rng(0).integers(0, 256, (4, *size, 3), np.uint8)
    flip, turns = np.array([False, False, True, True]), np.array([0, 2, 0, 2])
    found = dihedral(jnp.asarray(x), jnp.asarray(flip), jnp.asarray(turns))
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
