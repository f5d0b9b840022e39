import math
from functools import partial

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from parity.judge import compare

Q = "question"
X = np.linspace(1.0, 2.0, 12).reshape(3, 4)


def close(found, expected, gate=1e-12, **options):
    return compare.close(Q, "name", found, expected, gate, **options)


# Rows


@pytest.mark.parametrize(
    ("figure", "gate", "passed"),
    [
        (1, 2, True),
        (2, 2, True),
        (3, 2, False),
        (math.nan, 2, False),
        (math.inf, math.inf, False),
        (0, math.nan, False),
    ],
)
def test_row_passes_if_its_figure_is_finite_and_at_most_its_gate(figure, gate, passed):
    assert compare.at_most(Q, "name", figure, gate).passed is passed


def test_worst_of_fails_and_names_the_failing_row():
    rows = [compare.at_most(Q, "a", 1, 2), compare.at_most(Q, "b", math.nan, 5), compare.at_most(Q, "c", 4, 4)]
    row = compare.worst_of(Q, "all", rows)
    assert not row.passed
    assert row.worst == "b"
    assert compare.worst_of(Q, "all", [rows[0], rows[2]]).passed
    assert not compare.worst_of(Q, "all", []).passed


def test_worst_of_names_a_failing_row_before_a_passing_row_near_its_gate():
    failing, passing = compare.at_most(Q, "no gate", 1, math.inf), compare.at_most(Q, "near", 1.9, 2)
    row = compare.worst_of(Q, "all", [passing, failing])
    assert not row.passed
    assert row.worst == "no gate"


# Arrays


def test_equal_arrays_have_distance_zero_by_every_measure():
    for measure in (compare.relative_l2, compare.max_abs, compare.ulps):
        assert measure(X, X) == 0
        assert close({"a": X, "b": -X}, {"a": X, "b": -X}, measure=measure).passed
    assert compare.equal_bytes(Q, "name", X, X.copy()).passed


BROKEN = {
    "nothing": ({}, {}),
    "no elements": ({"a": np.zeros((0, 3))}, {"a": np.zeros((0, 3))}),
    "missing": ({"a": X}, {"a": X, "b": X}),
    "unexpected": ({"a": X, "b": X}, {"a": X}),
    "array against dict": (X, {"a": X}),
    "shape": ({"a": X}, {"a": X.T}),
    "shape that would broadcast": ({"a": X[:1]}, {"a": X}),
    "NaN on both sides": ({"a": X * np.nan}, {"a": X * np.nan}),
    "infinity on both sides": ({"a": X + np.inf}, {"a": X + np.inf}),
}


@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.parametrize("measure", [compare.relative_l2, compare.max_abs, compare.ulps])
def test_mismatched_empty_or_nonfinite_arrays_fail(case, measure):
    found, expected = BROKEN[case]
    assert math.isnan(measure(found, expected))
    for each in (True, False):
        row = close(found, expected, gate=1e300, measure=measure, each=each)
        assert not row.passed
        assert row.worst
    assert not compare.equal_bytes(Q, "name", found, expected).passed


def test_mismatch_names_every_offending_array():
    row = close({"a": X, "b": X * np.nan, "d": X}, {"a": X.T, "b": X, "c": X})
    assert all(part in row.worst for part in ("missing 'c'", "unexpected 'd'", "a: shape (3, 4)", "b: 12 not finite"))


def test_relative_l2_divides_by_the_norm_of_the_expected_arrays():
    assert compare.relative_l2(np.array([3.0, 4.0]), np.array([3.0, 3.0])) == pytest.approx(1 / math.sqrt(18))
    assert compare.relative_l2({"a": X, "b": 2 * X}, {"a": X, "b": X}) == pytest.approx(1 / math.sqrt(2))
    assert compare.relative_l2(np.ones(2), np.zeros(2)) == math.inf
    assert compare.relative_l2(np.ones(4), np.zeros(4), floor=100.0) == pytest.approx(0.02)


def test_wrong_small_array_passes_in_the_total_norm_and_fails_with_each():
    expected = {"large": np.full(1000, 1e6), "small": np.array([1e-3])}
    found = {"large": np.full(1000, 1e6), "small": np.array([2e-3])}
    assert close(found, expected, 1e-9).passed
    row = close(found, expected, 1e-9, each=True)
    assert not row.passed
    assert row.figure == pytest.approx(1)


def test_worst_element_is_named_with_both_values():
    found = {"a": X.copy(), "b": X.copy()}
    found["b"][1, 2] += 0.5
    row = close(found, {"a": X, "b": X}, measure=compare.max_abs)
    assert row.figure == 0.5
    assert row.worst == f"b[1, 2]: {float(found['b'][1, 2])!r} against {float(X[1, 2])!r}"


@given(hnp.arrays(np.float32, (3, 4), elements=st.floats(-1e6, 1e6, width=32)), st.integers(0, 11), st.integers(0, 31))
def test_equal_bytes_detects_any_single_flipped_bit(x, element, bit):
    flipped = x.copy()
    flipped.view(np.uint32).flat[element] ^= np.uint32(1 << bit)
    assume(np.isfinite(flipped).all())
    assert compare.equal_bytes(Q, "name", x, x.copy()).passed
    row = compare.equal_bytes(Q, "name", flipped, x)
    assert row.figure == 1
    assert not row.passed


def test_equal_bytes_distinguishes_dtypes_and_signed_zeros():
    assert not compare.equal_bytes(Q, "name", X, X.astype(np.float32)).passed
    assert not compare.equal_bytes(Q, "name", np.array([-0.0]), np.array([0.0])).passed
    assert compare.equal_bytes(Q, "name", np.array(3), np.array(3)).passed


@given(st.floats(-(2.0**100), 2.0**100, width=32), st.integers(0, 50))
def test_ulps_equal_the_number_of_float_steps(value, steps):
    x = y = np.float32(value)
    for _ in range(steps):
        y = np.nextafter(y, np.float32(np.inf))
    assert compare.ulps(np.array([y]), np.array([x])) == steps
    assert compare.ulps(np.array([-y]), np.array([-x])) == steps


def test_ulps_are_right_across_zero_and_the_whole_range():
    tiny = np.finfo(np.float64).smallest_subnormal
    assert compare.ulps(np.array([tiny]), np.array([-tiny])) == 2
    assert compare.ulps(np.array([0.0]), np.array([-0.0])) == 0
    largest = np.finfo(np.float64).max
    assert compare.ulps(np.array([largest]), np.array([-largest])) == pytest.approx(2 * 0x7FEFFFFFFFFFFFFF)


def test_ulps_ignore_elements_below_the_floor_on_both_sides():
    found, expected = np.array([1.0, 1e-9]), np.array([1.0, -1e-9])
    assert compare.ulps(found, expected) > 1e9
    assert compare.ulps(found, expected, floor=1e-6) == 0
    assert compare.ulps(np.array([1.0, 1.0]), expected, floor=1e-6) > 1e9
    assert math.isnan(compare.ulps(found, expected, floor=10.0))
    assert not close(found, expected, 1e300, measure=partial(compare.ulps, floor=10.0)).passed


def test_ulps_of_unequal_or_integer_dtypes_raise_type_error():
    for pair in ((X, X.astype(np.float32)), (np.arange(3), np.arange(3))):
        with pytest.raises(TypeError, match="float32 or float64"):
            compare.ulps(*pair)


def test_known_zeros_pass_as_noise_and_fail_above_the_gate():
    whole = {"kernel": np.full(100, 0.1), "bias": np.full(4, 1e-17)}
    zeros = {"bias": whole["bias"]}
    assert compare.known_zero(Q, "name", zeros, whole, 1e-12).passed
    assert not compare.known_zero(Q, "name", {"bias": np.full(4, 1e-9)}, whole, 1e-12).passed
    assert not compare.known_zero(Q, "name", {}, whole, 1e-12).passed
    assert not compare.known_zero(Q, "name", {"bias": np.full(4, np.nan)}, whole, 1e-12).passed
    assert not compare.known_zero(Q, "name", {"bias": np.zeros(4)}, {"kernel": np.zeros(9)}, 1e-12).passed


def test_envelope_allows_the_largest_baseline_times_the_factor():
    baselines = {"permuted": 1e-5, "one ulp": 2e-5}
    row = compare.envelope(Q, "name", 5e-5, baselines)
    assert row.passed
    assert row.figure == pytest.approx(2.5)
    assert not compare.envelope(Q, "name", 7e-5, baselines).passed
    assert compare.envelope(Q, "name", 7e-5, baselines, factor=4).passed


@pytest.mark.parametrize("baselines", [{}, {"a": 0.0}, {"a": math.nan, "b": 1.0}, {"a": 1.0, "b": math.inf}])
def test_envelope_without_usable_baselines_fails(baselines):
    assert not compare.envelope(Q, "name", 0.0, baselines).passed
    assert not compare.envelope(Q, "name", math.nan, {"a": 1.0}).passed
