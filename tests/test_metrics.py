import json
import math
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxseg.data.feed.pipeline import Pipeline
from jaxseg.learn import metrics
from jaxseg.learn.losses import IGNORE_INDEX
from jaxseg.training import steps

confusion_matrix = jax.jit(metrics.confusion_matrix, static_argnums=(2, 3))

PIXELS = 12
LABELS = st.lists(st.sampled_from([0, 1, 2, IGNORE_INDEX]), min_size=PIXELS, max_size=PIXELS)
PREDICTIONS = st.lists(st.integers(0, 2), min_size=PIXELS, max_size=PIXELS)
LOSSES = st.lists(st.floats(0, 100), min_size=PIXELS, max_size=PIXELS)
CONFUSION = np.array([[50, 3, 0], [7, 20, 0], [0, 0, 0]])  # class 2 does not occur


def confusion_of(labels, predictions, classes=3, ignore_index=IGNORE_INDEX) -> np.ndarray:
    labels, predictions = np.asarray(labels, np.uint8), np.asarray(predictions, np.int32)
    return np.asarray(confusion_matrix(jnp.asarray(predictions), jnp.asarray(labels), classes, ignore_index))


@given(st.lists(st.lists(st.integers(-2, 2), min_size=5, max_size=5), min_size=1, max_size=9))
def test_most_probable_is_the_first_of_the_largest_logits(logits):
    logits = np.asarray(logits, np.float32)
    found = jax.jit(metrics.most_probable)(logits)
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, logits.argmax(-1))


def test_most_probable_is_a_class_even_for_nan_logits():
    logits = np.array([[np.nan, 1, 2], [1, np.nan, 2], [np.nan] * 3, [-np.inf] * 3, [0, np.inf, np.inf]], np.float32)
    np.testing.assert_array_equal(metrics.most_probable(jnp.asarray(logits)), [0, 0, 0, 0, 1])


def divided(a: int, b: int) -> float:
    return a / b if b else math.nan


def slow_scores(labels: list[int], predictions: list[int], classes: int = 3) -> dict[str, list[tuple[int, int]]]:
    """Scores by sets of pixels, as the names are defined in words: numerator and denominator for each class."""
    counted = {i for i, label in enumerate(labels) if label != IGNORE_INDEX}
    scores = {name: [] for name in ("iou", "f1", "f2", "precision", "recall", "specificity", "accuracy")}
    for c in range(classes):
        true, found = {i for i in counted if labels[i] == c}, {i for i in counted if predictions[i] == c}
        hits, misses, rest = len(true & found), len(true - found), counted - true
        scores["iou"].append((hits, len(true | found)))
        scores["f1"].append((2 * hits, len(true) + len(found)))
        scores["f2"].append((5 * hits, 5 * hits + 4 * misses + len(found - true)))
        scores["precision"].append((hits, len(found)))
        scores["recall"].append((hits, len(true)))
        scores["specificity"].append((len(rest - found), len(rest)))
        scores["accuracy"].append((hits + len(rest - found), len(counted)))
    return scores


def mean_of(values: list[float], weights: list[int] | None = None) -> float:
    pairs = [(v, w) for v, w in zip(values, weights or [1] * len(values)) if not math.isnan(v)]
    return divided(sum(v * w for v, w in pairs), sum(w for _, w in pairs))


def slow_summary(labels: list[int], predictions: list[int], classes: int = 3) -> dict:
    counted = [i for i, label in enumerate(labels) if label != IGNORE_INDEX]
    support = [labels.count(c) for c in range(classes)]
    per_class = {name: [divided(*pair) for pair in pairs] for name, pairs in slow_scores(labels, predictions).items()}
    out = {name: per_class[name] for name in ("iou", "f1", "precision", "recall", "specificity")}
    out["dice"] = out["f1"]
    out |= {f"m{name}": mean_of(values) for name, values in out.items()}
    out["accuracy"] = divided(sum(labels[i] == predictions[i] for i in counted), len(counted))
    both = [(a + b) / 2 for a, b in zip(out["recall"], out["specificity"])]
    return out | {
        "balanced_accuracy": mean_of(both),
        "fwiou": mean_of(out["iou"], support),
        "miou_fg": mean_of(out["iou"][1:]),
    }


@given(LABELS, PREDICTIONS)
def test_scores_match_sets_of_pixels(labels, predictions):
    found, expected = metrics.summary(confusion_of(labels, predictions)), slow_summary(labels, predictions)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-12, nan_ok=True)


BY_NAME = {
    "iou": metrics.iou_score,
    "f1": metrics.f1_score,
    "f2": lambda confusion, reduction: metrics.fbeta_score(confusion, 2.0, reduction),
    "precision": metrics.precision,
    "recall": metrics.recall,
    "specificity": metrics.specificity,
    "accuracy": metrics.accuracy,
}


@given(LABELS, PREDICTIONS)
def test_reductions_average_classes_and_micro_sums_counts(labels, predictions):
    confusion, support = confusion_of(labels, predictions), [labels.count(c) for c in range(3)]
    for name, pairs in slow_scores(labels, predictions).items():
        each = [divided(*pair) for pair in pairs]
        expected = {
            "none": each,
            "macro": mean_of(each),
            "weighted": mean_of(each, support),
            "micro": divided(sum(a for a, _ in pairs), sum(b for _, b in pairs)),
        }
        for reduction, value in expected.items():
            found = BY_NAME[name](confusion, reduction=reduction)
            assert np.asarray(found) == pytest.approx(np.asarray(value), rel=1e-12, nan_ok=True), (name, reduction)


def test_default_reduction_is_macro():
    for score in (metrics.balanced_accuracy, *(s for n, s in BY_NAME.items() if n != "f2")):
        assert score(CONFUSION) == score(CONFUSION, "macro")


def test_balanced_accuracy_of_two_classes_equals_mean_recall():
    confusion = np.array([[90, 10], [20, 5]])
    assert metrics.balanced_accuracy(confusion) == pytest.approx((0.9 + 0.2) / 2)
    assert metrics.balanced_accuracy(confusion, "none") == pytest.approx([0.55, 0.55])
    assert metrics.balanced_accuracy(confusion, "micro") == pytest.approx(95 / 125)


def test_empty_prediction_halves_miou_and_has_zero_foreground_iou():
    found = metrics.summary(np.array([[990, 0], [10, 0]]))
    assert found["miou"] == 0.495
    assert found["foreground_iou"] == found["miou_fg"] == 0


def test_summary_of_more_than_two_classes_has_no_foreground_iou():
    assert "foreground_iou" not in metrics.summary(CONFUSION)
    assert metrics.summary(CONFUSION)["miou_fg"] == 20 / 30


@given(LABELS, PREDICTIONS)
def test_count_pixels_matches_confusion_matrix(labels, predictions):
    labels, predictions = np.array(labels, np.uint8).reshape(3, 4), np.array(predictions, np.uint8).reshape(3, 4)
    found = metrics.count_pixels(predictions, labels, 3)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, confusion_of(labels, predictions))


@given(LABELS, PREDICTIONS)
def test_confusion_matrix_has_labels_by_row_and_predictions_by_column(labels, predictions):
    expected = np.zeros((3, 3), int)
    for label, prediction in zip(labels, predictions):
        if label != IGNORE_INDEX:
            expected[label, prediction] += 1
    found = confusion_of(labels, predictions)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, expected)


def test_confusion_matrix_takes_images_and_another_ignore_index():
    labels = np.array([[[0, 1], [1, 1]], [[0, 0], [2, 1]]])
    found = confusion_of(labels, np.ones_like(labels), classes=3, ignore_index=0)
    np.testing.assert_array_equal(found, [[0, 0, 0], [0, 4, 0], [0, 1, 0]])


def test_confusion_matrix_of_a_large_image_is_exact():
    labels = np.zeros((5000, 3600), np.uint8)  # more than float32 can count one by one
    found = confusion_of(labels, labels, classes=2)
    np.testing.assert_array_equal(found, [[labels.size, 0], [0, 0]])


def test_absent_class_scores_nan_and_is_left_out_of_means():
    assert metrics.iou_score(CONFUSION, "none").tolist() == pytest.approx([50 / 60, 20 / 30, math.nan], nan_ok=True)
    assert metrics.f1_score(CONFUSION, "none").tolist() == pytest.approx([100 / 110, 40 / 50, math.nan], nan_ok=True)
    found = metrics.summary(CONFUSION)
    assert found["miou"] == pytest.approx((50 / 60 + 20 / 30) / 2)
    assert found["accuracy"] == 70 / 80


def test_precision_and_recall_are_nan_for_different_classes():
    never_predicted = np.array([[5, 0], [3, 0]])
    assert metrics.precision(never_predicted, "none").tolist() == pytest.approx([5 / 8, math.nan], nan_ok=True)
    assert metrics.recall(never_predicted, "none").tolist() == [1, 0]
    assert metrics.iou_score(never_predicted, "none").tolist() == [5 / 8, 0]  # it occurs, so it counts


def test_empty_confusion_matrix_scores_nan_without_warning():
    found = metrics.summary(np.zeros((2, 2), int))
    assert all(math.isnan(found[name]) for name in ("accuracy", "miou", "mdice", "mspecificity", "fwiou"))


def record(labels, predictions, losses) -> dict:
    """What a step returns of a batch: mean loss over the pixels that count, and the confusion matrix."""
    kept = [loss for label, loss in zip(labels, losses) if label != IGNORE_INDEX]
    confusion = np.zeros((3, 3), np.int32)
    for label, prediction in zip(labels, predictions):
        if label != IGNORE_INDEX:
            confusion[label, prediction] += 1
    return {"loss": np.float64(sum(kept) / max(len(kept), 1)), "confusion": confusion}


@given(LABELS, PREDICTIONS, LOSSES, st.sets(st.integers(1, PIXELS - 1)))
def test_totals_do_not_depend_on_the_batches(labels, predictions, losses, cuts):
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
def test_totals_continue_exactly_from_json_state(predictions, losses, stop):
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


@pytest.mark.parametrize("most", [None, 3, 12])
def test_a_validation_counts_every_batch_however_many_are_under_way(monkeypatch, most):
    batches = [{"loss": float(i), "confusion": np.diag([1, i])} for i in range(20)]
    monkeypatch.setattr(Pipeline, "epoch", lambda self: iter(batches))
    data = object.__new__(Pipeline)
    data.devices = None
    scores = steps.evaluate(lambda batch: batch, data, 0, most)
    taken = batches[:most]
    pixels = [1 + i for i in range(len(taken))]
    assert scores["loss"] == pytest.approx(np.average(range(len(taken)), weights=pixels))
    assert scores["predicted"] == pytest.approx([len(taken) / sum(pixels), 1 - len(taken) / sum(pixels)])
