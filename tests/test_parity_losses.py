"""The check of losses passes on jaxseg as it is, and fails in the rows that are meant to where jaxseg is broken."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from jaxseg.base.config import Optimization
from jaxseg.learn import losses
from parity.checks import losses as check
from parity.judge.answer import Settings
from parity.reference import losses as reference
from parity.reference import training

CROSS_ENTROPY = {"cross_entropy": {"": {}, "weights": {"class_weights": check.WEIGHTS}}}


def failed(monkeypatch, cases: dict) -> set[str]:
    """Names of the rows that fail of these cases alone."""
    monkeypatch.setattr(check, "CASES", cases)
    monkeypatch.setattr(check, "share_row", lambda seed: check.unmatched_row())
    rows = check.run(Settings(quick=True)).rows[1:-1]  # the first and the last miss the losses left out
    assert len(rows) == sum(2 * len(options) + 2 for options in cases.values())
    return {row.name for row in rows if not row.passed}


@pytest.mark.full  # CI asks `python -m parity --quick`
def test_it_passes():
    answer = check.run(Settings(quick=True))
    assert [row.name for row in answer.rows if not row.passed] == []
    assert answer.passed
    assert set(json.loads(json.dumps(answer.evidence))["three_way"]) == set(check.CASES)
    float64 = [row.figure for row in answer.rows if row.gate == check.GATE]
    assert len(float64) == 47
    assert max(float64) < check.GATE / 3


def test_it_sees_a_weighted_mean_over_pixels_where_there_are_weights(monkeypatch):
    right = losses.cross_entropy

    def wrong(logits, labels, *, class_weights=None, **options):
        value = right(logits, labels, class_weights=class_weights, **options)
        if class_weights is None:
            return value
        target = losses.one_hot(labels, logits.shape[-1])
        weight = jnp.where(target, jnp.asarray(class_weights)[None, None, None], 0).sum()
        return value * weight / jnp.maximum((labels != losses.IGNORE_INDEX).sum(), 1)

    monkeypatch.setattr(losses, "cross_entropy", wrong)
    assert failed(monkeypatch, CROSS_ENTROPY) == {"cross_entropy, weights: value", "cross_entropy, weights: gradient"}


def test_it_sees_a_mean_over_the_classes_that_occur(monkeypatch):
    right = losses.dice

    def wrong(logits, labels, **options):
        present = losses.one_hot(labels, logits.shape[-1]).any((0, 1, 2)).sum()
        return right(logits, labels, **options) * logits.shape[-1] / jnp.maximum(present, 1)

    monkeypatch.setattr(losses, "dice", wrong)
    assert {"dice: value", "dice: gradient"} <= failed(monkeypatch, {"dice": {"": {}}})


def test_it_sees_nan_where_no_pixel_counts(monkeypatch):
    right = losses.cross_entropy

    def wrong(logits, labels, **options):
        return right(logits, labels, **options) * (labels != losses.IGNORE_INDEX).any() / (labels != 255).any()

    monkeypatch.setattr(losses, "cross_entropy", wrong)
    assert failed(monkeypatch, CROSS_ENTROPY) == {"cross_entropy: all ignored"}


def test_it_sees_gradients_that_lose_digits_in_float32(monkeypatch):
    right = losses.cross_entropy

    def wrong(logits, labels, **options):
        coarse = logits.astype(jnp.bfloat16).astype(logits.dtype) if logits.dtype == jnp.float32 else logits
        return right(coarse, labels, **options)

    monkeypatch.setattr(losses, "cross_entropy", wrong)
    assert failed(monkeypatch, CROSS_ENTROPY) == {"cross_entropy: float32"}


def test_it_sees_another_order_of_pixels_with_equal_errors(monkeypatch):
    right = losses._jaccard_growth
    back = (slice(None, None, -1),) * 3
    monkeypatch.setattr(losses, "_jaccard_growth", lambda error, target: right(error[back], target[back])[back])
    assert failed(monkeypatch, {"lovasz": {"": {}}}) == {"lovasz: gradient", "lovasz: float32"}


def test_it_sees_half_a_gradient_at_the_kink_of_the_hinge(monkeypatch):
    monkeypatch.setattr(jax.nn, "relu", lambda x: jnp.maximum(x, 0))
    assert failed(monkeypatch, {"hinge": {"": {}}}) == {"hinge: gradient", "hinge: float32"}


def test_it_sees_a_loss_with_options_that_is_not_0_where_no_pixel_counts(monkeypatch):
    right = losses.cross_entropy

    def wrong(logits, labels, *, ohem=None, **options):
        return right(logits, labels, ohem=ohem, **options) + (0 if ohem is None else 1e-300)

    monkeypatch.setattr(losses, "cross_entropy", wrong)
    assert failed(monkeypatch, {"cross_entropy": {"": {}, "ohem": {"ohem": 0.3}}}) == {"cross_entropy: all ignored"}


def test_a_loss_that_it_does_not_know_fails(monkeypatch):
    assert check.unmatched_row().passed
    monkeypatch.setattr(losses, "poly", lambda logits, labels: logits.sum(), raising=False)
    row = check.unmatched_row()
    assert not row.passed
    assert row.worst == "poly"


@pytest.mark.parametrize(("value", "passes"), [(np.nan, True), (0.0, False)])
def test_what_pytorch_does_with_nothing_is_pinned(value, passes):
    nothing = np.zeros(()), np.zeros((1, 1, 1, 2))
    assert check.nothing_row("focal", [nothing], (np.array(value), nothing[1])).passed == passes


def test_probabilities_that_tie_are_equal_to_the_bit_and_margins_meet_the_kink(rng):
    logits = check.tied(rng, (2, 20, 20))
    for p in (np.asarray(jax.nn.softmax(jnp.float32(logits))), torch.tensor(logits).softmax(-1).numpy()):
        assert set(np.unique(p[p > 1e-6])) == {0.25, 0.5, 1.0}
    labels = rng.integers(check.CLASSES, size=logits.shape[:-1])
    margins = 1 - np.take_along_axis(logits, labels[..., None], -1) + logits
    assert (margins == 0).sum() > 20


# The reference itself


def pixels(rng, n: int, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [1 k n 1] that want a gradient, and labels [1 n 1] of which all classes have some."""
    labels = torch.from_numpy(np.append(np.arange(classes), rng.integers(classes, size=n - classes)))
    return torch.tensor(rng.normal(0, 2, (1, classes, n, 1)), requires_grad=True), labels[None, :, None]


def test_the_reference_lovasz_is_the_definition_with_sets(rng):
    """Theorem of Lovasz: the sum over falling errors of each error times the step of the set function."""
    logits, labels = pixels(rng, 30)
    p, y = logits.detach().softmax(1)[0, :, :, 0].T.numpy(), labels[0, :, 0].numpy()
    expected = []
    for c in range(3):
        error, wrong, before = np.abs((y == c) - p[:, c]), set(), 0.0
        own, total = set(np.flatnonzero(y == c)), 0.0
        for i in np.argsort(-error):
            wrong.add(i)
            loss = 1 - len(own - wrong) / len(own | wrong)
            total, before = total + error[i] * (loss - before), loss
        expected.append(total)
    assert reference.lovasz(logits, labels).item() == pytest.approx(np.mean(expected), rel=1e-13)


@pytest.mark.parametrize("share", [0.1, 0.3, 1.0])
def test_the_references_hard_examples_are_topks(share, rng):
    logits, labels = pixels(rng, 30)
    each = torch.nn.functional.cross_entropy(logits, labels, reduction="none").flatten()
    expected = torch.autograd.grad(each.topk(math.ceil(share * 30)).values.mean(), logits)[0]
    found = torch.autograd.grad(reference.cross_entropy(logits, labels, ohem=share), logits)[0]
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-16)


def test_the_reference_hinge_and_squared_error_are_pytorchs_modules(rng):
    logits, labels = pixels(rng, 30)
    flat, y = logits[0, :, :, 0].T, labels[0, :, 0]
    weights = [0.5, 2.0, 1.0]
    expected = torch.nn.MultiMarginLoss(weight=torch.tensor(weights, dtype=torch.float64))(flat, y)
    assert reference.hinge(logits, labels, class_weights=weights).item() == pytest.approx(expected.item(), rel=1e-14)
    expected = torch.nn.MSELoss()(flat.softmax(1), torch.eye(3, dtype=torch.float64)[y])
    assert reference.mse(logits, labels).item() == pytest.approx(expected.item(), rel=1e-14)


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": "cross_entropy", "label_smoothing": 0.2, "ohem": 0.3},
        {"loss": "dice_ce", "label_smoothing": 0.2},
        {"loss": "tversky", "tversky_alpha": 0.2, "tversky_beta": 0.9},
        {"loss": "focal", "focal_gamma": 1.2},
        *({"loss": loss} for loss in ("dice", "jaccard", "lovasz", "mse", "hinge")),
    ],
    ids=lambda settings: settings["loss"],
)
def test_a_recipes_options_mean_the_same_on_both_sides(settings, rng):
    recipe, weights = Optimization(**settings), [0.5, 2.0, 1.0]
    logits, labels = pixels(rng, 30)
    labels[0, -5:] = losses.IGNORE_INDEX
    found = losses.loss_from(recipe, weights)(jnp.float32(logits.detach().movedim(1, -1).numpy()), jnp.asarray(labels))
    expected = training.LOSSES[recipe.loss](recipe)(logits, labels, class_weights=weights)
    assert float(found) == pytest.approx(expected.item(), rel=1e-5)
    assert training.LOSSES[recipe.loss](Optimization(loss=recipe.loss))(logits, labels).item() != expected.item()
