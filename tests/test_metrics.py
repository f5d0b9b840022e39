import json
import math
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxseg import metrics
from jaxseg.losses import IGNORE_INDEX

confusion_matrix = jax.jit(metrics.confusion_matrix, static_argnums=(2, 3))

PIXELS = 12
LABELS = st.lists(st.sampled_from([0, 1, 2, IGNORE_INDEX]), min_size=PIXELS, max_size=PIXELS)
PREDICTIONS = st.lists(st.integers(0, 2), min_size=PIXELS, max_size=PIXELS)
LOSSES = st.lists(st.floats(0, 100), min_size=PIXELS, max_size=PIXELS)
CONFUSION = np.array([[50, 3, 0], [7, 20, 0], [0, 0, 0]])  # class 2 does not occur


def confusion_of(labels, predictions, classes=3, ignore_index=IGNORE_INDEX) -> np.ndarray:
    labels, predictions = np.asarray(labels, np.uint8), np.asarray(predictions, np.int32)
    return np.asarray(confusion_matrix(jnp.asarray(labels), jnp.asarray(predictions), classes, ignore_index))


def divided(a: int, b: int) -> float:
    return a / b if b else math.nan


def slow_summary(labels: list[int], predictions: list[int], classes: int = 3) -> dict:
    """Scores by sets of pixels, as the names are defined in words."""
    counted = [i for i, label in enumerate(labels) if label != IGNORE_INDEX]
    scores = {"iou": [], "dice": [], "precision": [], "recall": []}
    for c in range(classes):
        true, found = {i for i in counted if labels[i] == c}, {i for i in counted if predictions[i] == c}
        scores["iou"].append(divided(len(true & found), len(true | found)))
        scores["dice"].append(divided(2 * len(true & found), len(true) + len(found)))
        scores["precision"].append(divided(len(true & found), len(found)))
        scores["recall"].append(divided(len(true & found), len(true)))
    out = {"accuracy": divided(sum(labels[i] == predictions[i] for i in counted), len(counted))} | scores
    for name, values in scores.items():
        present = [value for value in values if not math.isnan(value)]
        out[f"m{name}"] = divided(sum(present), len(present))
    return out


@given(LABELS, PREDICTIONS)
def test_scores_are_what_sets_of_pixels_say(labels, predictions):
    found, expected = metrics.summary(confusion_of(labels, predictions)), slow_summary(labels, predictions)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-12, nan_ok=True)


@given(LABELS, PREDICTIONS)
def test_confusion_counts_label_by_row_and_prediction_by_column(labels, predictions):
    expected = np.zeros((3, 3), int)
    for label, prediction in zip(labels, predictions):
        if label != IGNORE_INDEX:
            expected[label, prediction] += 1
    found = confusion_of(labels, predictions)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, expected)


def test_confusion_takes_images_and_another_ignored_label():
    labels = np.array([[[0, 1], [1, 1]], [[0, 0], [2, 1]]])
    found = confusion_of(labels, np.ones_like(labels), classes=3, ignore_index=0)
    np.testing.assert_array_equal(found, [[0, 0, 0], [0, 4, 0], [0, 1, 0]])


def test_a_large_image_is_counted_to_the_pixel():
    labels = np.zeros((5000, 3600), np.uint8)  # more than float32 can count one by one
    found = confusion_of(labels, labels, classes=2)
    np.testing.assert_array_equal(found, [[labels.size, 0], [0, 0]])


def test_an_absent_class_has_no_score_and_no_part_in_means():
    assert metrics.iou(CONFUSION).tolist() == pytest.approx([50 / 60, 20 / 30, math.nan], nan_ok=True)
    assert metrics.dice(CONFUSION).tolist() == pytest.approx([100 / 110, 40 / 50, math.nan], nan_ok=True)
    found = metrics.summary(CONFUSION)
    assert found["miou"] == pytest.approx((50 / 60 + 20 / 30) / 2)
    assert found["accuracy"] == 70 / 80


def test_precision_and_recall_are_absent_for_different_reasons():
    never_predicted = np.array([[5, 0], [3, 0]])
    assert metrics.precision(never_predicted).tolist() == pytest.approx([5 / 8, math.nan], nan_ok=True)
    assert metrics.recall(never_predicted).tolist() == [1, 0]
    assert metrics.iou(never_predicted).tolist() == [5 / 8, 0]  # it occurs, so it counts


def test_nothing_counted_has_no_score_and_raises_no_warning():
    found = metrics.summary(np.zeros((2, 2), int))
    assert all(math.isnan(found[name]) for name in ("accuracy", "miou", "mdice", "mprecision", "mrecall"))


def record(labels, predictions, losses) -> dict:
    """What a step returns of a batch: mean loss over the pixels that count, and the confusion matrix."""
    kept = [loss for label, loss in zip(labels, losses) if label != IGNORE_INDEX]
    confusion = np.zeros((3, 3), np.int32)
    for label, prediction in zip(labels, predictions):
        if label != IGNORE_INDEX:
            confusion[label, prediction] += 1
    return {"loss": np.float64(sum(kept) / max(len(kept), 1)), "confusion": confusion}


@given(LABELS, PREDICTIONS, LOSSES, st.sets(st.integers(1, PIXELS - 1)))
def test_totals_are_the_same_however_the_pixels_are_batched(labels, predictions, losses, cuts):
    whole, split = metrics.Totals(), metrics.Totals()
    whole.add(record(labels, predictions, losses))
    edges = [0, *sorted(cuts), PIXELS]
    for a, b in pairwise(edges):
        split.add(record(labels[a:b], predictions[a:b], losses[a:b]))
    assert split.state["confusion"] == whole.state["confusion"]
    found, expected = split.summary(), whole.summary()
    assert found.pop("loss") == pytest.approx(expected.pop("loss"), rel=1e-12, abs=1e-12)
    assert str(found) == str(expected)  # bit for bit, NaN included


@given(PREDICTIONS, st.lists(st.floats(0, 10), min_size=4, max_size=4), st.integers(0, 4))
def test_totals_go_on_exactly_from_a_state_written_as_json(predictions, losses, stop):
    batches = [record([0, 1, 2], predictions[3 * i : 3 * i + 3], [loss] * 3) for i, loss in enumerate(losses)]
    straight, resumed = metrics.Totals(), metrics.Totals()
    for batch in batches:
        straight.add(batch)
    for batch in batches[:stop]:
        resumed.add(batch)
    resumed = metrics.Totals(json.loads(json.dumps(resumed.state)))
    for batch in batches[stop:]:
        resumed.add(batch)
    assert resumed.state == straight.state
    assert str(resumed.summary()) == str(straight.summary())


def test_totals_do_not_overflow():
    totals, batch = metrics.Totals(), {"loss": np.float32(0.5), "confusion": np.full((2, 2), 2**30, np.int32)}
    for _ in range(8):
        totals.add(batch)
    assert totals.state["confusion"] == [[2**33] * 2] * 2
    assert totals.summary()["loss"] == pytest.approx(0.5)
