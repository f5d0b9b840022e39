import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxseg import train
from jaxseg.base.errors import ArgumentError
from jaxseg.learn.class_weights import AUTOMATIC, check, weights

COUNTS = st.lists(st.integers(1, 10**11), min_size=1, max_size=12)
SOME_ABSENT = st.lists(st.one_of(st.just(0), st.integers(1, 10**11)), min_size=1, max_size=12).filter(any)


def mean_1(raw) -> np.ndarray:
    return np.asarray(raw) * len(raw) / np.sum(raw)


@given(COUNTS)
def test_weights_match_the_formulas(counts):
    n = np.array(counts, float)
    f = n / n.sum()
    assert weights(("inverse",), counts) == pytest.approx(mean_1(1 / f), rel=1e-9)
    assert weights(("sqrt",), counts) == pytest.approx(mean_1(f**-0.5), rel=1e-9)
    assert weights(("median",), counts) == pytest.approx(mean_1(np.median(f) / f), rel=1e-9)
    assert weights(("auto",), counts) == weights(("sqrt",), counts)


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=6))
def test_effective_number_matches_the_papers_series(counts):
    """E = 1 + b + b^2 + ... for as many terms as there are pixels."""
    beta = 1 - 1 / max(sum(counts), 2)
    effective = [(beta ** np.arange(n)).sum() for n in counts]
    assert weights(("effective",), counts) == pytest.approx(mean_1(1 / np.array(effective)), rel=1e-9)


def test_median_uses_the_images_in_which_a_class_occurs():
    """A class that fills half of the only image it is in is not rare there."""
    pixels, images = [800, 150, 50], [1000, 1000, 100]
    frequency = np.array([0.8, 0.15, 0.5])
    assert weights(("median",), pixels, images) == pytest.approx(mean_1(np.median(frequency) / frequency))
    assert weights(("sqrt",), pixels, images) == weights(("sqrt",), pixels)


@pytest.mark.parametrize("how", AUTOMATIC)
@given(counts=SOME_ABSENT, factor=st.integers(2, 1000))
def test_mean_weight_of_present_classes_is_1_and_absent_ones_have_1(how, counts, factor):
    found, present = np.array(weights((how,), counts)), np.array(counts) > 0
    assert np.isfinite(found).all()
    assert (found > 0).all()
    assert found[present].mean() == pytest.approx(1)
    np.testing.assert_array_equal(found[~present], 1)
    order = np.argsort(np.array(counts)[present], kind="stable")
    assert (np.diff(found[present][order]) <= 1e-9).all()  # the rarer the more
    # more of the same changes nothing: `effective` only where single pixels do not matter
    more = weights((how,), [factor * n for n in counts])
    assert more == pytest.approx(found, rel=1e-6 if how != "effective" else 1 / min(n for n in counts if n))


@pytest.mark.parametrize("how", AUTOMATIC)
def test_classes_of_equal_size_have_weight_1(how):
    assert weights((how,), [1000] * 4) == pytest.approx([1] * 4)


def test_weights_range_from_none_to_inverse():
    counts = [99_000_000, 1_000_000]
    ratio = {how: np.divide(*reversed(weights((how,), counts))) for how in AUTOMATIC}
    assert ratio["inverse"] == pytest.approx(99)
    assert ratio["sqrt"] == pytest.approx(99**0.5)
    assert ratio["effective"] == pytest.approx((1 - np.exp(-0.99)) / (1 - np.exp(-0.01)), rel=1e-6)


def test_given_numbers_are_used_unchanged():
    assert weights(("1", "2.5", "0"), [7, 0, 3]) == (1.0, 2.5, 0.0)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        (("invers",), ["is invers", "unknown: invers", "1 for 3 classes"]),
        (("1", "2"), ["2 for 3 classes"]),
        (("1", "2", "3", "4"), ["4 for 3 classes"]),
        (("1", "-2", "3"), ["negative: -2"]),
        (
            ("1", "-2", "nan", "inf", "-inf", "one"),
            ["unknown: one", "not finite: nan, inf, -inf", "negative: -2"],
        ),
        (("auto", "1", "2"), ["not alone: auto"]),
        (("auto", "sqrt"), ["not alone: auto, sqrt", "2 for 3 classes"]),
        (("0", "0.0", "0"), ["all are 0"]),
        ((), ["is empty", "nothing given"]),
    ],
    ids=str,
)
def test_all_problems_are_reported_in_one_error(how, says):
    with pytest.raises(ArgumentError, match=r"^`class_weights` is .*; expected one of auto, .*, or 3 numbers") as error:
        weights(how, [5, 5, 5])
    assert all(part in str(error.value) for part in says)
    assert "\n" not in str(error.value)
    assert error.value.flags.startswith("--class-weights is ")


def test_check_refuses_without_the_data():
    check(("1", "2", "3"))
    check(("median",))
    with pytest.raises(ArgumentError, match=r"unknown: x; negative: -1.*or a number for each class"):
        check(("x", "-1"))


@pytest.mark.parametrize("how", AUTOMATIC)
def test_automatic_weights_without_labeled_pixels_are_refused(how):
    with pytest.raises(
        ArgumentError, match=f"`class_weights` is {how}, but no pixel of the training masks has a class"
    ):
        weights((how,), [0, 0])
    assert weights(("1", "2"), [0, 0]) == (1, 2)


def test_trainer_names_the_flag_of_unknown_class_weights(capsys):
    assert train.main(["--class-weights", "invers"]) == 2
    assert "error: --class-weights is invers (unknown: invers); expected one of auto" in capsys.readouterr().err
