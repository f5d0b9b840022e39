import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxseg.base.config import Optimization
from jaxseg.learn import losses, metrics
from jaxseg.learn.losses import IGNORE_INDEX, one_hot

SHAPE, CLASSES = (2, 3, 4), 3  # the same everywhere, because compiling is what takes the time
LOSSES = list(Optimization.__annotations__["loss"].__args__)
HARD = "hard examples"
ALL = [*LOSSES, HARD]
"""Every loss, and cross-entropy of the hardest pixels."""


@functools.cache
def compiled(loss: str, **options):
    loss, options = ("cross_entropy", {"ohem": 0.5, **options}) if loss == HARD else (loss, options)
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
def test_cross_entropy_and_its_gradient_match_the_definition(seed, ignored, weighted, smoothing):
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
def test_cross_entropy_and_its_gradient_match_torch(ignore_index, labels_dtype, weights, smoothing):
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
def test_label_smoothing_out_of_range_is_refused(smoothing):
    logits, labels = example(0)
    with pytest.raises(ValueError, match=r"`label_smoothing` is .*expected 0 to 1"):
        losses.cross_entropy(jnp.asarray(logits), jnp.asarray(labels), label_smoothing=smoothing)


def test_cross_entropy_of_extreme_logits_keeps_value_and_gradient():
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
def test_dice_and_jaccard_of_certain_predictions_equal_the_scores(seed):
    """Logits of 200 are probabilities of 0 and 1, so sums of them are counts; a class without labels loses nothing."""
    logits, labels = example(seed)
    predictions = logits.argmax(-1)
    certain = np.where(np.eye(CLASSES)[predictions] > 0, np.float32(200), np.float32(-200))
    confusion = np.zeros((CLASSES, CLASSES), int)
    np.add.at(confusion, (labels[labels != IGNORE_INDEX], predictions[labels != IGNORE_INDEX]), 1)
    for loss, score in (("dice", metrics.f1_score), ("jaccard", metrics.iou_score)):
        expected = np.where(confusion.sum(1) > 0, 1 - score(confusion, "none"), 0).mean()
        assert ask(certain, labels, loss)[0] == pytest.approx(expected, abs=1e-6)


def test_tversky_alpha_weights_false_positives_and_beta_false_negatives():
    labels = np.array([[[1, 1, 1, 0, 0, 0]]], np.uint8)
    predictions = np.array([[[1, 1, 1, 1, 0, 0]]])
    logits = np.where(np.eye(2)[predictions] > 0, 200.0, -200.0)
    value, _ = ask(logits, labels, "tversky", alpha=0.3, beta=0.6)
    background, field = 2 / (2 + 0.6), 3 / (3 + 0.3)
    assert value == pytest.approx(1 - (background + field) / 2, rel=1e-6)
    powered, _ = ask(logits, labels, "tversky", alpha=0.3, beta=0.6, gamma=2.0)
    assert powered == pytest.approx(value**2, rel=1e-6)


# Focal


def test_focal_of_one_pixel_matches_the_definition():
    logits, labels = np.array([[[[0.5, -1.0]]]]), np.array([[[1]]], np.uint8)
    p = 1 / (1 + np.exp(-logits.ravel()))
    losses_of_classes = [-0.75 * p[0] ** 3 * np.log(1 - p[0]), -0.25 * (1 - p[1]) ** 3 * np.log(p[1])]
    value, _ = ask(logits, labels, "focal", alpha=0.25, gamma=3.0)
    assert value == pytest.approx(np.mean(losses_of_classes), rel=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_focal_gradient_is_finite_for_every_gamma_and_logit(gamma):
    """A power of 1 - p has none where that is 0 and gamma below 1."""
    logits = np.float32([-200, -30, 0, 30, 200]).reshape(1, 1, 5, 1).repeat(2, axis=-1)
    _, grad = ask(logits, np.zeros((1, 1, 5), np.uint8), "focal", gamma=gamma)
    assert np.isfinite(grad).all()


# Lovasz


def jaccard_loss(wrong: np.ndarray, target: np.ndarray) -> float:
    """Of a class with pixels `target`, when the pixels `wrong` are predicted wrongly."""
    predicted = target ^ wrong
    return 1 - (predicted & target).sum() / (predicted | target).sum()


@given(st.integers(0, 2**32 - 1), st.floats(0, 0.9), st.booleans())
def test_lovasz_equals_the_integral_of_jaccard_over_thresholds(seed, ignored, weighted):
    """Lovasz: f(e) is the integral over t of f({i: e_i >= t}); no sorting and no differences as in the formula."""
    logits, labels = example(seed, ignored)
    kept = labels != IGNORE_INDEX
    x, y = logits[kept], labels[kept]
    p = np.exp(x) / np.exp(x).sum(-1, keepdims=True)
    weights = np.random.default_rng(seed).random(CLASSES) + 0.1 if weighted else np.ones(CLASSES)
    total, present = 0.0, np.isin(np.arange(CLASSES), y)
    for c in np.flatnonzero(present):
        error = np.abs((y == c) - p[:, c])
        levels = np.unique(np.append(error, 0))
        total += weights[c] * sum((b - a) * jaccard_loss(error >= b, y == c) for a, b in itertools.pairwise(levels))
    with jax.enable_x64(True):
        found, _ = ask(logits, labels, "lovasz", **({"class_weights": weights} if weighted else {}))
    assert found == pytest.approx(total / weights[present].sum() if present.any() else 0, rel=1e-12)


@given(st.integers(0, 2**32 - 1))
def test_lovasz_of_certain_predictions_equals_jaccard_of_the_present_classes(seed):
    logits, labels = example(seed)
    predictions, kept = logits.argmax(-1), labels != IGNORE_INDEX
    certain = np.where(np.eye(CLASSES)[predictions] > 0, np.float32(200), np.float32(-200))
    expected = [
        jaccard_loss((predictions[kept] == c) ^ (labels[kept] == c), labels[kept] == c) for c in np.unique(labels[kept])
    ]
    assert ask(certain, labels, "lovasz")[0] == pytest.approx(np.mean(expected), abs=1e-6)


def test_lovasz_gradient_has_no_scatter_and_no_second_sort():
    """The one scatter is of unique places, and forward; the gradient of a sort would add another, with collisions."""
    logits, labels = example(0)
    program = jax.jit(jax.value_and_grad(losses.lovasz)).lower(jnp.float32(logits), jnp.asarray(labels)).as_text()
    assert program.count("stablehlo.sort") == 1
    assert program.count('"stablehlo.scatter"') == 1
    assert "unique_indices = true" in program


def test_lovasz_is_accurate_in_float32_for_pixels_of_little_weight(rng):
    """Differences of Jaccard losses next to 1 would be off by 3e-4."""
    logits = rng.standard_normal((1, 128, 128, 2)).astype(np.float32)
    labels = (rng.random((1, 128, 128)) < 0.5).astype(np.uint8)
    _, grad = ask(logits, labels, "lovasz")
    with jax.enable_x64(True):
        _, exact = ask(logits.astype(float), labels, "lovasz")
    assert np.linalg.norm(grad - exact) < 2e-5 * np.linalg.norm(exact)


# Squared error and hinge


@given(st.integers(0, 2**32 - 1), st.floats(0, 0.9), st.booleans())
def test_mse_and_hinge_match_their_definitions(seed, ignored, weighted):
    logits, labels = example(seed, ignored)
    labels[0, 0, 0] = 0
    weights = np.random.default_rng(seed).random(CLASSES) + 0.1 if weighted else np.ones(CLASSES)
    squares, margins, count, pixels = 0.0, 0.0, 0.0, 0
    for at in map(tuple, np.argwhere(labels != IGNORE_INDEX)):
        x, y = logits[at], labels[at]
        p = np.exp(x) / np.exp(x).sum()
        squares += weights[y] * sum((p[j] - (j == y)) ** 2 for j in range(CLASSES)) / CLASSES
        margins += weights[y] * sum(max(0, 1 - x[y] + x[j]) for j in range(CLASSES) if j != y) / CLASSES
        count, pixels = count + weights[y], pixels + 1
    options = {"class_weights": weights} if weighted else {}
    with jax.enable_x64(True):
        assert ask(logits, labels, "mse", **options)[0] == pytest.approx(squares / count, rel=1e-12)
        assert ask(logits, labels, "hinge", **options)[0] == pytest.approx(margins / pixels, rel=1e-12)


def test_hinge_gradient_is_zero_beyond_the_margin():
    logits = np.broadcast_to(np.float32([2, 1, 0.5]), (*SHAPE, CLASSES))  # by exactly 1, and by more
    value, grad = ask(logits, np.zeros(SHAPE, np.uint8), "hinge")
    assert value == 0
    np.testing.assert_array_equal(grad, 0)


# Hard examples


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 1.0])
def test_ohem_matches_torch_topk(share):
    torch = pytest.importorskip("torch")
    logits, labels = example(9)
    theirs = torch.tensor(logits.transpose(0, 3, 1, 2).copy(), requires_grad=True)
    kept = torch.from_numpy(labels != IGNORE_INDEX)
    each = torch.nn.functional.cross_entropy(
        theirs, torch.from_numpy(labels.astype(np.int64)), reduction="none", ignore_index=IGNORE_INDEX
    )[kept]
    expected = each.topk(math.ceil(share * len(each))).values.mean()
    expected.backward()
    with jax.enable_x64(True):
        found, grad = ask(logits, labels, ohem=share)
    assert found == pytest.approx(expected.item(), rel=1e-14)
    np.testing.assert_allclose(grad.transpose(0, 3, 1, 2), theirs.grad.numpy(), atol=1e-15)


@pytest.mark.parametrize("options", [{}, {"class_weights": [0.5, 3.0, 1.0], "label_smoothing": 0.2}], ids=str)
def test_ohem_of_all_pixels_equals_no_ohem(options):
    logits, labels = example(10)
    expected, expected_grad = ask(logits, labels, **options)
    found, grad = ask(logits, labels, ohem=1.0, **options)
    assert found == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(grad, expected_grad, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(("share", "pixels"), [(0.3, 3), (0.7, 7), (0.31, 4), (0.01, 1), (0.001, 1), (1.0, 10)])
def test_ohem_share_is_rounded_up_exactly(share, pixels):
    """0.7 * 10 is more than 7 in float32; each pixel with a gradient of its own is one that was taken."""
    logits = np.zeros((1, 2, 10, 2), np.float32)
    logits[..., 0] = np.arange(20).reshape(2, 10)
    labels = np.stack([np.ones(10, np.uint8), np.full(10, IGNORE_INDEX, np.uint8)])[None]
    _, grad = ask(logits, labels, ohem=share)
    np.testing.assert_array_equal((grad[0, 0] != 0).any(-1), np.arange(10) >= 10 - pixels)


def test_ohem_ties_share_the_remaining_count():
    """Three of the five wanted are certain, and four are equal: each counts a half."""
    logits = np.zeros((1, 1, 10, 2), np.float32)
    logits[0, 0, :, 0] = [9, 1, 1, 7, 1, 1, 8, -3, -3, -3]
    value, grad = ask(logits, np.ones((1, 1, 10), np.uint8), ohem=0.5)
    share, x = np.array([1, 0.5, 0.5, 1, 0.5, 0.5, 1, 0, 0, 0]), logits[0, 0, :, 0].astype(float)
    p = 1 / (1 + np.exp(-x))
    assert value == pytest.approx((share * np.logaddexp(0, x)).sum() / 5, rel=1e-6)
    np.testing.assert_allclose(grad[0, 0, :, 0], share * p / 5, rtol=1e-5)


def test_ohem_ranks_by_weighted_loss_and_divides_by_the_weights():
    logits, labels = np.zeros((1, 1, 4, 2), np.float32), np.array([[[0, 0, 1, 1]]], np.uint8)
    logits[0, 0, :, 1] = [1, 2, -0.5, 0]
    nll = np.log(1 + np.exp([1, 2, 0.5, 0]))
    value, grad = ask(logits, labels, ohem=0.5, class_weights=[1.0, 10.0])
    assert value == pytest.approx((10 * nll[2] + 10 * nll[3]) / 20, rel=1e-6)
    np.testing.assert_array_equal(grad[0, 0, :2], 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_ohem_does_not_hide_a_nonfinite_loss(bad):
    logits, labels = example(11, ignored=0)
    logits[0, 0, 0], labels[0, 0, 0] = bad, 0
    assert not np.isfinite(ask(np.float32(logits), labels, ohem=0.1)[0])


@pytest.mark.parametrize("share", [0, -0.1, 1.1, math.nan])
def test_ohem_out_of_range_is_refused(share):
    logits, labels = example(0)
    with pytest.raises(ValueError, match=r"`ohem` is .*expected above 0 and at most 1"):
        losses.cross_entropy(jnp.asarray(logits), jnp.asarray(labels), ohem=float(share))


# All of them


@pytest.mark.parametrize("loss", ALL)
def test_loss_and_gradient_are_zero_if_all_pixels_are_ignored(loss):
    logits, labels = example(0, ignored=2)
    assert (labels == IGNORE_INDEX).all()
    value, grad = ask(np.float32(logits), labels, loss)
    assert value == 0
    np.testing.assert_array_equal(grad, 0)


@pytest.mark.parametrize("loss", ALL)
@pytest.mark.parametrize("garbage", [1e30, -np.inf, np.inf, np.nan], ids=str)
def test_logits_of_ignored_pixels_have_no_effect(garbage, loss):
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


@pytest.mark.parametrize("loss", ALL)
def test_padding_samples_have_no_effect(loss):
    """The loss of a sample and padding is that of the sample twice."""
    logits, labels = example(4)
    twice, padded = labels.copy(), labels.copy()
    logits[1], twice[1], padded[1] = logits[0], labels[0], IGNORE_INDEX
    value, grad = ask(logits, padded, loss)
    expected, expected_grad = ask(logits, twice, loss)
    assert value == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(grad[0], expected_grad.sum(0), rtol=1e-4, atol=1e-7)
    np.testing.assert_array_equal(grad[1], 0)


@pytest.mark.parametrize("loss", ALL)
def test_loss_does_not_depend_on_which_sample_has_a_pixel(loss, rng):
    logits, labels = example(3)
    order = rng.permutation(labels.size)
    moved = logits.reshape(-1, CLASSES)[order].reshape(logits.shape), labels.ravel()[order].reshape(SHAPE)
    assert ask(*moved, loss)[0] == pytest.approx(ask(logits, labels, loss)[0], rel=1e-5)


@pytest.mark.parametrize("loss", ALL)
def test_loss_of_large_float32_logits_is_finite(loss):
    logits, labels = example(5)
    value, grad = ask(200 * np.sign(logits).astype(np.float32), labels, loss)
    assert np.isfinite(value)
    assert np.isfinite(grad).all()


@pytest.mark.parametrize("loss", ALL)
def test_gradient_step_lowers_the_loss(loss):
    logits, labels = example(6)
    value, grad = ask(logits, labels, loss)
    assert ask(logits - 0.01 * grad / np.abs(grad).max(), labels, loss)[0] < value


@pytest.mark.parametrize("loss", ALL)
def test_class_weight_scale_matters_only_to_hinge(loss):
    logits, labels = example(7)
    plain = ask(logits, labels, loss)[0]
    scale = 4 if loss == "hinge" else 1
    assert ask(logits, labels, loss, class_weights=[4.0, 4.0, 4.0])[0] == pytest.approx(scale * plain, rel=1e-6)
    weighted, fourfold = (ask(logits, labels, loss, class_weights=factor * np.arange(1.0, 4))[0] for factor in (1, 4))
    assert fourfold == pytest.approx(scale * weighted, rel=1e-6)
    assert abs(weighted - plain) > 1e-3


@pytest.mark.parametrize("loss", ALL)
def test_class_of_weight_0_has_no_effect(loss):
    """Where a pixel counts by its label, it is as if ignored; else as if its class's own loss were not there."""
    logits, labels = example(12)
    value, grad = ask(logits, labels, loss, class_weights=[1.0, 0.0, 0.0])
    ignored = np.where(labels == 0, 0, IGNORE_INDEX).astype(np.uint8)
    if loss in ("cross_entropy", "mse"):
        expected, expected_grad = ask(logits, ignored, loss)
        assert value == pytest.approx(expected, rel=1e-6)
        np.testing.assert_allclose(grad, expected_grad, rtol=1e-5, atol=1e-8)
    elif loss == "hinge":
        share = (labels == 0).sum() / (labels != IGNORE_INDEX).sum()
        assert value == pytest.approx(share * ask(logits, ignored, loss)[0], rel=1e-6)
    assert np.isfinite(grad).all()
    nothing, no_grad = ask(logits, labels, loss, class_weights=[0.0, 0.0, 0.0])
    assert nothing == 0
    np.testing.assert_array_equal(no_grad, 0)


@pytest.mark.parametrize("loss", LOSSES)
def test_class_weights_of_another_count_are_refused(loss):
    logits, labels = example(0)
    with pytest.raises(ValueError, match=r"`class_weights` has the shape \(2,\); expected 3 numbers"):
        jax.eval_shape(functools.partial(getattr(losses, loss), class_weights=[1.0, 2.0]), logits, labels)


def test_dice_ce_is_the_sum_of_dice_and_cross_entropy():
    logits, labels = example(8)
    weights = {"class_weights": [1.0, 2.0, 3.0]}
    expected = ask(logits, labels, "dice", **weights)[0] + ask(logits, labels, label_smoothing=0.1, **weights)[0]
    assert ask(logits, labels, "dice_ce", label_smoothing=0.1, **weights)[0] == pytest.approx(expected, rel=1e-6)


OPTIONS = {
    "cross_entropy": ({"label_smoothing": 0.2, "ohem": 0.4}, {"label_smoothing": 0.2, "ohem": 0.4}),
    "dice_ce": ({"label_smoothing": 0.2}, {"label_smoothing": 0.2}),
    "tversky": ({"tversky_alpha": 0.2, "tversky_beta": 0.9}, {"alpha": 0.2, "beta": 0.9}),
    "focal": ({"focal_gamma": 1.2}, {"gamma": 1.2}),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_loss_from_builds_what_the_settings_describe(loss):
    settings, options = OPTIONS.get(loss, ({}, {}))
    built = functools.partial(losses.loss_from(Optimization(loss=loss, **settings)))
    assert (built.func, built.keywords) == (getattr(losses, loss), options)


@pytest.mark.parametrize("loss", LOSSES)
def test_loss_from_default_settings_equal_the_loss_defaults(loss):
    logits, labels = map(jnp.asarray, example(13))
    assert losses.loss_from(Optimization(loss=loss))(logits, labels) == getattr(losses, loss)(logits, labels)


@pytest.mark.parametrize("loss", LOSSES)
def test_loss_from_binds_class_weights(loss):
    settings, options = OPTIONS.get(loss, ({}, {}))
    logits, labels = map(jnp.asarray, example(14))
    built = losses.loss_from(Optimization(loss=loss, **settings), class_weights=[1.0, 2.0, 0.5])
    expected = getattr(losses, loss)(logits, labels, class_weights=[1.0, 2.0, 0.5], **options)
    assert built(logits, labels) == expected != getattr(losses, loss)(logits, labels, **options)


def test_one_hot_is_true_only_at_the_label_and_false_for_others():
    found = one_hot(jnp.asarray([[0, 2], [1, 255]], jnp.uint8), 3)
    assert found.dtype == bool
    np.testing.assert_array_equal(found, [[[1, 0, 0], [0, 0, 1]], [[0, 1, 0], [0, 0, 0]]])
