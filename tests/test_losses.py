import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxseg.losses import IGNORE_INDEX, cross_entropy, one_hot

value_and_grad = jax.jit(jax.value_and_grad(cross_entropy), static_argnums=2)
SHAPE = (2, 3, 4)


def example(seed: int, classes: int, ignored: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """Logits float64 and labels uint8, a share of them ignored."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, SHAPE, np.uint8)
    labels[rng.random(SHAPE) < ignored] = IGNORE_INDEX
    return 5 * rng.standard_normal((*SHAPE, classes)), labels


def ask(logits, labels, ignore_index=IGNORE_INDEX) -> tuple[float, np.ndarray]:
    value, grad = value_and_grad(jnp.asarray(logits), jnp.asarray(labels), ignore_index)
    return float(value), np.asarray(grad)


@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 3]), st.floats(0, 0.95))
def test_value_and_gradient_are_what_the_definition_says(seed, classes, ignored):
    logits, labels = example(seed, classes, ignored)
    labels[0, 0, 0] = 0  # something to average
    losses, grad = [], np.zeros_like(logits)
    for at in np.argwhere(labels != IGNORE_INDEX):
        b, h, w = at
        weights = np.exp(logits[b, h, w])
        losses.append(-math.log(weights[labels[b, h, w]] / weights.sum()))
        grad[b, h, w] = weights / weights.sum()
        grad[b, h, w, labels[b, h, w]] -= 1
    with jax.enable_x64(True):
        found, found_grad = ask(logits, labels)
    assert found == pytest.approx(np.mean(losses), rel=1e-12)
    np.testing.assert_allclose(found_grad, grad / len(losses), atol=1e-14)


@pytest.mark.parametrize(("ignore_index", "labels_dtype"), [(255, np.uint8), (-100, np.int32), (1, np.int32)])
def test_value_and_gradient_are_those_of_torch(ignore_index, labels_dtype):
    torch = pytest.importorskip("torch")
    logits, labels = example(1, 3)
    labels = np.where(labels == IGNORE_INDEX, ignore_index, labels.astype(int)).astype(labels_dtype)
    theirs = torch.tensor(logits.transpose(0, 3, 1, 2).copy(), requires_grad=True)
    targets = torch.from_numpy(labels.astype(np.int64))
    expected = torch.nn.functional.cross_entropy(theirs, targets, ignore_index=ignore_index)
    expected.backward()
    with jax.enable_x64(True):
        found, grad = ask(logits, labels, ignore_index)
    assert found == pytest.approx(expected.item(), rel=1e-14)
    np.testing.assert_allclose(grad.transpose(0, 3, 1, 2), theirs.grad.numpy(), atol=1e-15)


def test_extreme_logits_neither_overflow_nor_lose_their_gradient():
    logits = np.broadcast_to(np.array([200, -200], np.float32), (*SHAPE, 2)).copy()
    labels = np.zeros(SHAPE, np.uint8)
    labels[0] = 1
    value, grad = ask(logits, labels)
    assert value == 200.0  # half the pixels lose 400, the others nothing
    n = labels.size
    np.testing.assert_allclose(grad[0], np.broadcast_to(np.float32([1 / n, -1 / n]), grad[0].shape), rtol=1e-6)
    np.testing.assert_array_equal(grad[1], 0)


def test_all_pixels_ignored_is_zero_with_zero_gradient():
    logits, labels = example(0, 3, ignored=2)
    assert (labels == IGNORE_INDEX).all()
    value, grad = ask(np.float32(logits), labels)
    assert value == 0
    np.testing.assert_array_equal(grad, 0)


@pytest.mark.parametrize("garbage", [1e30, -np.inf, np.inf, np.nan], ids=str)
def test_logits_under_ignored_pixels_change_nothing(garbage):
    logits, labels = example(2, 2)
    logits = np.float32(logits)
    value, grad = ask(logits, labels)
    ignored = labels == IGNORE_INDEX
    assert 0 < ignored.sum() < ignored.size
    np.testing.assert_array_equal(grad[ignored], 0)

    logits[ignored] = garbage
    found, found_grad = ask(logits, labels)
    assert found == value
    np.testing.assert_array_equal(found_grad[~ignored], grad[~ignored])
    if np.isfinite(garbage):
        np.testing.assert_array_equal(found_grad[ignored], 0)


def test_one_hot_is_true_at_the_label_and_nowhere_for_others():
    found = one_hot(jnp.asarray([[0, 2], [1, 255]], jnp.uint8), 3)
    assert found.dtype == bool
    np.testing.assert_array_equal(found, [[[1, 0, 0], [0, 0, 1]], [[0, 1, 0], [0, 0, 0]]])
