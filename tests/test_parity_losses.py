"""The check of losses passes on jaxseg as it is, and fails in the rows that are meant to where jaxseg is broken."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch")

from jaxseg import losses
from parity.answer import Settings
from parity.checks import losses as check

CROSS_ENTROPY = {"cross_entropy": {"": {}, "weights": {"class_weights": check.WEIGHTS}}}


def failed(monkeypatch, cases: dict) -> set[str]:
    """Names of the rows that fail of these cases alone."""
    monkeypatch.setattr(check, "CASES", cases)
    rows = check.run(Settings(quick=True)).rows[1:]  # the first misses the losses left out
    assert len(rows) == sum(2 * len(options) + 2 for options in cases.values())
    return {row.name for row in rows if not row.passed}


def test_it_passes():
    answer = check.run(Settings(quick=True))
    assert [row.name for row in answer.rows if not row.passed] == []
    assert answer.passed
    assert set(json.loads(json.dumps(answer.evidence))["three_way"]) == set(check.CASES)
    float64 = [row.figure for row in answer.rows if row.gate == check.GATE]
    assert len(float64) == 30
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


def test_a_loss_that_it_does_not_know_fails(monkeypatch):
    assert check.unmatched_row().passed
    monkeypatch.setattr(losses, "lovasz", lambda logits, labels: logits.sum(), raising=False)
    row = check.unmatched_row()
    assert not row.passed
    assert row.worst == "lovasz"


@pytest.mark.parametrize(("value", "passes"), [(np.nan, True), (0.0, False)])
def test_what_pytorch_does_with_nothing_is_pinned(value, passes):
    nothing = np.zeros(()), np.zeros((1, 1, 1, 2))
    assert check.nothing_row("focal", nothing, (np.array(value), nothing[1])).passed == passes
