import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxseg import losses, metrics
from jaxseg.config import Optimization
from jaxseg.losses import IGNORE_INDEX, one_hot

SHAPE, CLASSES = (2, 3, 4), 3  # the same everywhere, because compiling is what takes the time
LOSSES = ["cross_entropy", "dice", "dice_ce", "focal", "jaccard", "tversky"]


@functools.cache
def compiled(loss: str, **options):
    return jax.jit(jax.value_and_grad(functools.partial(getattr(losses, loss), **options)))


def example(seed: int, ignored: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """Logits float64 and labels uint8, a share of them ignored."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, SHAPE, np.uint8)
    labels[rng.random(SHAPE) < ignored] = IGNORE_INDEX
    return 5 * rng.standard_normal((*SHAPE, CLASSES)), labels


def ask(logits, labels, loss="cross_entropy", **options) -> tuple[float, np.ndarray]:
    traced = {name: jnp.asarray(options.pop(name)) for name in ("class_weights",) if name in options}
    value, grad = compiled(loss, **options)(jnp.asarray(logits), jnp.asarray(labels), **traced)
    return float(value), np.asarray(grad)


# Cross-entropy


@given(st.integers(0, 2**32 - 1), st.floats(0, 0.95), st.booleans(), st.sampled_from([0.0, 0.2]))
def test_value_and_gradient_are_what_the_definition_says(seed, ignored, weighted, smoothing):
    logits, labels = example(seed, ignored)
    labels[0, 0, 0] = 0  # something to average
    weights = np.random.default_rng(seed).random(CLASSES) + 0.1 if weighted else np.ones(CLASSES)
    total, count, grad = 0.0, 0.0, np.zeros_like(logits)
    for at in map(tuple, np.argwhere(labels != IGNORE_INDEX)):
        p = np.exp(logits[at])
        p /= p.sum()
        target = (1 - smoothing) * np.eye(CLASSES)[labels[at]] + smoothing / CLASSES
        total -= (weights * target * np.log(p)).sum()
        grad[at] = (weights * target).sum() * p - weights * target
        count += weights[labels[at]]
    options = {"class_weights": weights} if weighted else {}
    with jax.enable_x64(True):
        found, found_grad = ask(logits, labels, label_smoothing=smoothing, **options)
    assert found == pytest.approx(total / count, rel=1e-12)
    np.testing.assert_allclose(found_grad, grad / count, atol=1e-14)


@pytest.mark.parametrize(("ignore_index", "labels_dtype"), [(255, np.uint8), (-100, np.int32), (1, np.int32)])
@pytest.mark.parametrize("weights", [None, [0.5, 3.0, 1.0]])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_value_and_gradient_are_those_of_torch(ignore_index, labels_dtype, weights, smoothing):
    torch = pytest.importorskip("torch")
    logits, labels = example(1)
    labels = np.where(labels == IGNORE_INDEX, ignore_index, labels.astype(int)).astype(labels_dtype)
    theirs = torch.tensor(logits.transpose(0, 3, 1, 2).copy(), requires_grad=True)
    expected = torch.nn.functional.cross_entropy(
        theirs,
        torch.from_numpy(labels.astype(np.int64)),
        weights and torch.tensor(weights, dtype=torch.float64),
        ignore_index=ignore_index,
        label_smoothing=smoothing,
    )
    expected.backward()
    options = {"class_weights": weights} if weights else {}
    with jax.enable_x64(True):
        found, grad = ask(logits, labels, ignore_index=ignore_index, label_smoothing=smoothing, **options)
    assert found == pytest.approx(expected.item(), rel=1e-14)
    np.testing.assert_allclose(grad.transpose(0, 3, 1, 2), theirs.grad.numpy(), atol=1e-15)


@pytest.mark.parametrize("smoothing", [-0.1, 1.1, math.nan])
def test_a_smoothing_that_is_no_share_is_refused(smoothing):
    logits, labels = example(0)
    with pytest.raises(ValueError, match=r"`label_smoothing` is .*expected 0 to 1"):
        losses.cross_entropy(jnp.asarray(logits), jnp.asarray(labels), label_smoothing=smoothing)


def test_extreme_logits_neither_overflow_nor_lose_their_gradient():
    logits = np.broadcast_to(np.array([200, -200, -200], np.float32), (*SHAPE, CLASSES))
    labels = np.zeros(SHAPE, np.uint8)
    labels[0] = 1
    value, grad = ask(logits, labels)
    assert value == 200.0  # half the pixels lose 400, the others nothing
    n = labels.size
    np.testing.assert_allclose(grad[0], np.broadcast_to(np.float32([1 / n, -1 / n, 0]), grad[0].shape), rtol=1e-6)
    np.testing.assert_array_equal(grad[1], 0)


# Dice, Jaccard, Tversky


@given(st.integers(0, 2**32 - 1))
def test_for_certain_predictions_dice_and_jaccard_are_the_scores(seed):
    """Logits of 200 are probabilities of 0 and 1, so sums of them are counts; a class without labels loses nothing."""
    logits, labels = example(seed)
    predictions = logits.argmax(-1)
    certain = np.where(np.eye(CLASSES)[predictions] > 0, np.float32(200), np.float32(-200))
    confusion = np.zeros((CLASSES, CLASSES), int)
    np.add.at(confusion, (labels[labels != IGNORE_INDEX], predictions[labels != IGNORE_INDEX]), 1)
    for loss, score in (("dice", metrics.dice), ("jaccard", metrics.iou)):
        expected = np.where(confusion.sum(1) > 0, 1 - score(confusion), 0).mean()
        assert ask(certain, labels, loss)[0] == pytest.approx(expected, abs=1e-6)


def test_tversky_weighs_false_positives_with_alpha_and_false_negatives_with_beta():
    labels = np.array([[[1, 1, 1, 0, 0, 0]]], np.uint8)
    predictions = np.array([[[1, 1, 1, 1, 0, 0]]])
    logits = np.where(np.eye(2)[predictions] > 0, 200.0, -200.0)
    value, _ = ask(logits, labels, "tversky", alpha=0.3, beta=0.6)
    background, field = 2 / (2 + 0.6), 3 / (3 + 0.3)
    assert value == pytest.approx(1 - (background + field) / 2, rel=1e-6)
    powered, _ = ask(logits, labels, "tversky", alpha=0.3, beta=0.6, gamma=2.0)
    assert powered == pytest.approx(value**2, rel=1e-6)


# Focal


def test_focal_of_one_pixel_is_what_the_definition_says():
    logits, labels = np.array([[[[0.5, -1.0]]]]), np.array([[[1]]], np.uint8)
    p = 1 / (1 + np.exp(-logits.ravel()))
    losses_of_classes = [-0.75 * p[0] ** 3 * np.log(1 - p[0]), -0.25 * (1 - p[1]) ** 3 * np.log(p[1])]
    value, _ = ask(logits, labels, "focal", alpha=0.25, gamma=3.0)
    assert value == pytest.approx(np.mean(losses_of_classes), rel=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_focal_has_a_gradient_for_every_gamma_and_logit(gamma):
    """A power of 1 - p has none where that is 0 and gamma below 1."""
    logits = np.float32([-200, -30, 0, 30, 200]).reshape(1, 1, 5, 1).repeat(2, axis=-1)
    _, grad = ask(logits, np.zeros((1, 1, 5), np.uint8), "focal", gamma=gamma)
    assert np.isfinite(grad).all()


# All of them


@pytest.mark.parametrize("loss", LOSSES)
def test_all_pixels_ignored_is_zero_with_zero_gradient(loss):
    logits, labels = example(0, ignored=2)
    assert (labels == IGNORE_INDEX).all()
    value, grad = ask(np.float32(logits), labels, loss)
    assert value == 0
    np.testing.assert_array_equal(grad, 0)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("garbage", [1e30, -np.inf, np.inf, np.nan], ids=str)
def test_logits_under_ignored_pixels_change_nothing(garbage, loss):
    logits, labels = example(2)
    logits = np.float32(logits)
    value, grad = ask(logits, labels, loss)
    ignored = labels == IGNORE_INDEX
    assert 0 < ignored.sum() < ignored.size
    np.testing.assert_array_equal(grad[ignored], 0)

    logits[ignored] = garbage
    found, found_grad = ask(logits, labels, loss)
    assert found == value
    np.testing.assert_array_equal(found_grad[~ignored], grad[~ignored])
    if np.isfinite(garbage):
        np.testing.assert_array_equal(found_grad[ignored], 0)


@pytest.mark.parametrize("loss", LOSSES)
def test_samples_that_pad_a_batch_take_no_part(loss):
    """The loss of a sample and padding is that of the sample twice."""
    logits, labels = example(4)
    twice, padded = labels.copy(), labels.copy()
    logits[1], twice[1], padded[1] = logits[0], labels[0], IGNORE_INDEX
    value, grad = ask(logits, padded, loss)
    expected, expected_grad = ask(logits, twice, loss)
    assert value == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(grad[0], 2 * expected_grad[0], rtol=1e-4, atol=1e-7)
    np.testing.assert_array_equal(grad[1], 0)


@pytest.mark.parametrize("loss", LOSSES)
def test_it_is_of_no_matter_which_sample_has_a_pixel(loss, rng):
    logits, labels = example(3)
    order = rng.permutation(labels.size)
    moved = logits.reshape(-1, CLASSES)[order].reshape(logits.shape), labels.ravel()[order].reshape(SHAPE)
    assert ask(*moved, loss)[0] == pytest.approx(ask(logits, labels, loss)[0], rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_large_logits_in_float32_give_numbers(loss):
    logits, labels = example(5)
    value, grad = ask(200 * np.sign(logits).astype(np.float32), labels, loss)
    assert np.isfinite(value)
    assert np.isfinite(grad).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_a_step_downhill_is_downhill(loss):
    logits, labels = example(6)
    value, grad = ask(logits, labels, loss)
    assert ask(logits - 0.01 * grad / np.abs(grad).max(), labels, loss)[0] < value


@pytest.mark.parametrize("loss", LOSSES)
def test_class_weights_of_any_scale_are_the_same(loss):
    logits, labels = example(7)
    plain = ask(logits, labels, loss)[0]
    assert ask(logits, labels, loss, class_weights=[4.0, 4.0, 4.0])[0] == pytest.approx(plain, rel=1e-6)
    weighted, tenfold = (ask(logits, labels, loss, class_weights=scale * np.arange(1.0, 4))[0] for scale in (1, 10))
    assert weighted == pytest.approx(tenfold, rel=1e-6)
    assert abs(weighted - plain) > 1e-3


@pytest.mark.parametrize("loss", LOSSES)
def test_weights_for_other_than_k_classes_are_refused(loss):
    logits, labels = example(0)
    with pytest.raises(ValueError, match=r"`class_weights` has the shape \(2,\); expected 3 numbers"):
        jax.eval_shape(functools.partial(getattr(losses, loss), class_weights=[1.0, 2.0]), logits, labels)


def test_dice_ce_is_the_sum():
    logits, labels = example(8)
    weights = {"class_weights": [1.0, 2.0, 3.0]}
    expected = ask(logits, labels, "dice", **weights)[0] + ask(logits, labels, label_smoothing=0.1, **weights)[0]
    assert ask(logits, labels, "dice_ce", label_smoothing=0.1, **weights)[0] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("loss", Optimization.__annotations__["loss"].__args__)
def test_build_makes_what_the_settings_say(loss):
    smoothing = {"label_smoothing": 0.2} if loss in ("cross_entropy", "dice_ce") else {}
    built = functools.partial(losses.build(Optimization(loss=loss, **smoothing)))
    assert (built.func, built.keywords) == (getattr(losses, loss), smoothing)


def test_one_hot_is_true_at_the_label_and_nowhere_for_others():
    found = one_hot(jnp.asarray([[0, 2], [1, 255]], jnp.uint8), 3)
    assert found.dtype == bool
    np.testing.assert_array_equal(found, [[[1, 0, 0], [0, 0, 1]], [[0, 1, 0], [0, 0, 0]]])
