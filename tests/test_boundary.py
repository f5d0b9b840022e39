"""Boundary scores, compared with the definitions computed pixel by pixel."""

import math
from itertools import product

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from jaxseg.base.config import IGNORE_INDEX
from jaxseg.inference.boundary import BoundaryTotals

CLASSES = 3
SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 9))


@st.composite
def images(draw):
    """A label with ignored pixels, and a prediction: uint8 arrays of one shape."""
    shape = draw(SHAPES)
    label = draw(arrays(np.uint8, shape, elements=st.sampled_from([0, 0, 1, 1, 2, IGNORE_INDEX])))
    return label, draw(arrays(np.uint8, shape, elements=st.integers(0, 2)))


def pixels(image, number, valid):
    return {at for at in product(*map(range, image.shape)) if image[at] == number and at in valid}


def slow_counts(label, prediction, number, width, tolerance):
    """Counts of Cheng's bands and Csurka's contours, computed with sets of pixels."""
    valid = {at for at in product(*map(range, label.shape)) if label[at] != IGNORE_INDEX}
    true, predicted = pixels(label, number, valid), pixels(prediction, number, valid)

    def eroded(mask):
        for _ in range(width):
            mask = {(y, x) for y, x in mask if all((y + i, x + j) in mask for i in (-1, 0, 1) for j in (-1, 0, 1))}
        return mask

    def contour(mask):
        beside = ((0, 1), (1, 0), (0, -1), (-1, 0))
        return {(y, x) for y, x in mask if any((y + i, x + j) in valid - mask for i, j in beside)}

    def hits(contour, other):
        return sum(any(math.dist(at, to) <= tolerance for to in other) for at in contour)

    bands = [mask - eroded(mask) for mask in (true, predicted)]
    a, b = contour(true), contour(predicted)
    return np.array([len(bands[0] & bands[1]), len(bands[0] | bands[1]), hits(a, b), len(a), hits(b, a), len(b)])


def slow_summary(counts):
    scores = {"boundary_iou": [], "boundary_precision": [], "boundary_recall": [], "boundary_f1": []}
    for both, either, label_hits, label, prediction_hits, prediction in counts.tolist():
        scores["boundary_iou"].append(both / either if either else math.nan)
        scores["boundary_precision"].append(p := prediction_hits / prediction if prediction else math.nan)
        scores["boundary_recall"].append(r := label_hits / label if label else math.nan)
        if not label and not prediction:
            scores["boundary_f1"].append(math.nan)
        else:  # a contour that has no counterpart is missed or false: 0
            scores["boundary_f1"].append(2 * p * r / (p + r) if label_hits and prediction_hits else 0.0)
    means = {f"m{name}": [v for v in values if not math.isnan(v)] for name, values in scores.items()}
    return scores | {name: sum(v) / len(v) if v else math.nan for name, v in means.items()}


def summary(samples, **how):
    totals = BoundaryTotals(CLASSES, **how)
    for label, prediction in samples:
        totals.add(label, prediction)
    return totals.summary()


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-12, nan_ok=True), name


@given(st.lists(images(), min_size=1, max_size=3), st.sampled_from([0.02, 0.2]), st.sampled_from([1.0, 1.5, 2.0]))
def test_scores_match_the_pixelwise_definitions(samples, dilation, tolerance):
    counts = 0
    for label, prediction in samples:
        width = max(1, round(dilation * math.hypot(*label.shape)))
        counts += np.stack([slow_counts(label, prediction, n, width, tolerance) for n in range(CLASSES)])
    assert_equal(summary(samples, dilation=dilation, tolerance=tolerance), slow_summary(counts))


@given(st.lists(images(), min_size=2, max_size=5), st.randoms())
def test_scores_do_not_depend_on_order_or_repetition_of_images(samples, random):
    whole = summary(samples)
    shuffled = list(samples)
    random.shuffle(shuffled)
    assert str(summary(shuffled)) == str(whole)
    assert_equal(summary(samples + samples), whole)


def test_dataset_score_is_of_summed_counts_not_the_mean_over_images():
    sharp, off = np.zeros((2, 40, 40), np.uint8)
    sharp[5:35, 5:35], off[18:20, 18:20] = 1, 1
    moved = np.roll(off, 8, 1)
    one, two = (summary([pair])["boundary_f1"][1] for pair in ((sharp, sharp), (off, moved)))
    both = summary([(sharp, sharp), (off, moved)])["boundary_f1"][1]
    assert (one, two) == (1, 0)
    contour, small = 4 * 29, 4
    assert both == pytest.approx(contour / (contour + small))


@given(images(), st.data())
def test_predictions_on_ignored_pixels_do_not_change_scores(sample, data):
    label, prediction = sample
    other = data.draw(arrays(np.uint8, label.shape, elements=st.integers(0, 2)))
    changed = np.where(label == IGNORE_INDEX, other, prediction)
    assert str(summary([(label, changed)])) == str(summary([sample]))


@given(images(), st.integers(0, 3), st.integers(0, 3))
def test_padding_with_ignored_pixels_does_not_change_scores(sample, above, left):
    around = ((above, 2), (left, 1))
    label = np.pad(sample[0], around, constant_values=IGNORE_INDEX)
    prediction = np.pad(sample[1], around, constant_values=1)
    assert str(summary([(label, prediction)], dilation=0.0)) == str(summary([sample], dilation=0.0))


@given(images())
def test_correct_prediction_scores_1(sample):
    found = summary([(sample[0], sample[0])])
    for name in ("boundary_iou", "boundary_precision", "boundary_recall", "boundary_f1"):
        assert all(math.isnan(value) or value == 1 for value in found[name])


@pytest.mark.parametrize(("shift", "hit"), [(0, 1), (1, 1), (2, 1), (3, 0)])
def test_tolerance_includes_its_distance_in_pixels(shift, hit):
    label, prediction = np.zeros((2, 30, 30), np.uint8)
    label[:, :10], prediction[:, : 10 + shift] = 1, 1
    assert summary([(label, prediction)], tolerance=2.0)["boundary_f1"][1] == hit


def test_tolerance_below_1_is_a_share_of_the_diagonal():
    label, prediction = np.zeros((2, 30, 40), np.uint8)  # diagonal 50
    label[:, :10], prediction[:, :14] = 1, 1
    below, above = (summary([(label, prediction)], tolerance=t)["boundary_f1"][1] for t in (0.079, 0.081))
    assert (below, above) == (0, 1)


def test_band_width_is_a_share_of_the_diagonal_and_at_least_a_pixel():
    label, prediction = np.zeros((2, 300, 400), np.uint8)  # diagonal 500: 0.02 of it are 10 pixels
    label[100:200, 100:200], prediction[110:190, 110:190] = 1, 1
    assert summary([(label, prediction)])["boundary_iou"][1] == 0  # the label's band ends where the other begins
    wider = summary([(label, prediction)], dilation=0.022)["boundary_iou"][1]  # bands of 11 overlap in a ring of 1
    assert wider == pytest.approx((4 * 79) / (4 * (89 * 11 + 69 * 11 - 79)))
    assert summary([(label, label)], dilation=0.0)["boundary_iou"][1] == 1


def test_classes_without_a_boundary_are_left_out_of_means():
    label = np.zeros((20, 20), np.uint8)
    found = summary([(label, label)])
    assert found["boundary_iou"] == pytest.approx([1, math.nan, math.nan], nan_ok=True)  # along the image's border
    assert found["boundary_f1"] == pytest.approx([math.nan] * 3, nan_ok=True)
    assert math.isnan(found["mboundary_f1"])


@pytest.mark.parametrize("width", [1, 4, 20])
def test_bands_equal_repeated_erosions_with_zero_padding(width):
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, (7, 9), np.uint8).repeat(16, 0).repeat(16, 1)
    moved = np.roll(label, 3, (0, 1))

    def band(mask):
        framed = np.pad(mask, 1)
        return mask & ~cv2.erode(framed, np.ones((3, 3), np.uint8), iterations=width)[1:-1, 1:-1]

    found = summary([(label, moved)], dilation=width / math.hypot(*label.shape))
    expected = (band(label) & band(moved)).sum() / (band(label) | band(moved)).sum()
    assert found["boundary_iou"][1] == pytest.approx(expected, rel=1e-12)
