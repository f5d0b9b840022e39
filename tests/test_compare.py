import math
from functools import partial

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from parity import compare

Q = "question"
ALPHA = 1e-8
RNG_SEED = 0
X = np.linspace(1.0, 2.0, 12).reshape(3, 4)


@pytest.fixture
def rng():
    return np.random.default_rng(RNG_SEED)


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
def test_a_row_passes_when_its_figure_is_finite_and_at_most_its_gate(figure, gate, passed):
    assert compare.at_most(Q, "name", figure, gate).passed is passed


def test_worst_of_fails_when_one_row_fails_and_shows_that_one():
    rows = [compare.at_most(Q, "a", 1, 2), compare.at_most(Q, "b", math.nan, 5), compare.at_most(Q, "c", 4, 4)]
    row = compare.worst_of(Q, "all", rows)
    assert not row.passed
    assert row.worst == "b"
    assert compare.worst_of(Q, "all", [rows[0], rows[2]]).passed
    assert not compare.worst_of(Q, "all", []).passed


def test_worst_of_shows_the_failing_row_even_when_a_passing_one_comes_nearer_to_its_gate():
    failing, passing = compare.at_most(Q, "no gate", 1, math.inf), compare.at_most(Q, "near", 1.9, 2)
    row = compare.worst_of(Q, "all", [passing, failing])
    assert not row.passed
    assert row.worst == "no gate"


# Arrays


def test_equal_arrays_are_zero_apart_by_every_measure():
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
def test_what_cannot_be_compared_fails(case, measure):
    found, expected = BROKEN[case]
    assert math.isnan(measure(found, expected))
    for each in (True, False):
        row = close(found, expected, gate=1e300, measure=measure, each=each)
        assert not row.passed
        assert row.worst
    assert not compare.equal_bytes(Q, "name", found, expected).passed


def test_a_mismatch_names_every_offender():
    row = close({"a": X, "b": X * np.nan, "d": X}, {"a": X.T, "b": X, "c": X})
    assert all(part in row.worst for part in ("missing 'c'", "unexpected 'd'", "a: shape (3, 4)", "b: 12 not finite"))


def test_relative_l2_is_the_norm_of_the_difference_over_the_norm_expected():
    assert compare.relative_l2(np.array([3.0, 4.0]), np.array([3.0, 3.0])) == pytest.approx(1 / math.sqrt(18))
    assert compare.relative_l2({"a": X, "b": 2 * X}, {"a": X, "b": X}) == pytest.approx(1 / math.sqrt(2))
    assert compare.relative_l2(np.ones(2), np.zeros(2)) == math.inf
    assert compare.relative_l2(np.ones(4), np.zeros(4), floor=100.0) == pytest.approx(0.02)


def test_a_small_array_that_is_wrong_hides_in_the_whole_but_not_in_each():
    expected = {"large": np.full(1000, 1e6), "small": np.array([1e-3])}
    found = {"large": np.full(1000, 1e6), "small": np.array([2e-3])}
    assert close(found, expected, 1e-9).passed
    row = close(found, expected, 1e-9, each=True)
    assert not row.passed
    assert row.figure == pytest.approx(1)


def test_the_worst_element_is_named_with_both_values():
    found = {"a": X.copy(), "b": X.copy()}
    found["b"][1, 2] += 0.5
    row = close(found, {"a": X, "b": X}, measure=compare.max_abs)
    assert row.figure == 0.5
    assert row.worst == f"b[1, 2]: {float(found['b'][1, 2])!r} against {float(X[1, 2])!r}"


@given(hnp.arrays(np.float32, (3, 4), elements=st.floats(-1e6, 1e6, width=32)), st.integers(0, 11), st.integers(0, 31))
def test_equal_bytes_sees_any_one_bit(x, element, bit):
    flipped = x.copy()
    flipped.view(np.uint32).flat[element] ^= np.uint32(1 << bit)
    assume(np.isfinite(flipped).all())
    assert compare.equal_bytes(Q, "name", x, x.copy()).passed
    row = compare.equal_bytes(Q, "name", flipped, x)
    assert row.figure == 1
    assert not row.passed


def test_equal_bytes_wants_equal_types_and_tells_the_zeros_apart():
    assert not compare.equal_bytes(Q, "name", X, X.astype(np.float32)).passed
    assert not compare.equal_bytes(Q, "name", np.array([-0.0]), np.array([0.0])).passed
    assert compare.equal_bytes(Q, "name", np.array(3), np.array(3)).passed


@given(st.floats(-(2.0**100), 2.0**100, width=32), st.integers(0, 50))
def test_ulps_count_the_floats_between(value, steps):
    x = y = np.float32(value)
    for _ in range(steps):
        y = np.nextafter(y, np.float32(np.inf))
    assert compare.ulps(np.array([y]), np.array([x])) == steps
    assert compare.ulps(np.array([-y]), np.array([-x])) == steps


def test_ulps_cross_zero_and_the_whole_range():
    tiny = np.finfo(np.float64).smallest_subnormal
    assert compare.ulps(np.array([tiny]), np.array([-tiny])) == 2
    assert compare.ulps(np.array([0.0]), np.array([-0.0])) == 0
    largest = np.finfo(np.float64).max
    assert compare.ulps(np.array([largest]), np.array([-largest])) == pytest.approx(2 * 0x7FEFFFFFFFFFFFFF)


def test_ulps_leave_out_what_lies_below_the_floor_on_both_sides():
    found, expected = np.array([1.0, 1e-9]), np.array([1.0, -1e-9])
    assert compare.ulps(found, expected) > 1e9
    assert compare.ulps(found, expected, floor=1e-6) == 0
    assert compare.ulps(np.array([1.0, 1.0]), expected, floor=1e-6) > 1e9
    assert math.isnan(compare.ulps(found, expected, floor=10.0))
    assert not close(found, expected, 1e300, measure=partial(compare.ulps, floor=10.0)).passed


def test_ulps_of_unequal_or_integer_types_are_an_error():
    for pair in ((X, X.astype(np.float32)), (np.arange(3), np.arange(3))):
        with pytest.raises(TypeError, match="float32 or float64"):
            compare.ulps(*pair)


def test_known_zeros_may_be_noise_and_nothing_more():
    whole = {"kernel": np.full(100, 0.1), "bias": np.full(4, 1e-17)}
    zeros = {"bias": whole["bias"]}
    assert compare.known_zero(Q, "name", zeros, whole, 1e-12).passed
    assert not compare.known_zero(Q, "name", {"bias": np.full(4, 1e-9)}, whole, 1e-12).passed
    assert not compare.known_zero(Q, "name", {}, whole, 1e-12).passed
    assert not compare.known_zero(Q, "name", {"bias": np.full(4, np.nan)}, whole, 1e-12).passed
    assert not compare.known_zero(Q, "name", {"bias": np.zeros(4)}, {"kernel": np.zeros(9)}, 1e-12).passed


def test_an_envelope_is_the_largest_baseline_times_the_factor():
    baselines = {"permuted": 1e-5, "one ulp": 2e-5}
    row = compare.envelope(Q, "name", 5e-5, baselines)
    assert row.passed
    assert row.figure == pytest.approx(2.5)
    assert not compare.envelope(Q, "name", 7e-5, baselines).passed
    assert compare.envelope(Q, "name", 7e-5, baselines, factor=4).passed


@pytest.mark.parametrize("baselines", [{}, {"a": 0.0}, {"a": math.nan, "b": 1.0}, {"a": 1.0, "b": math.inf}])
def test_an_envelope_of_nothing_contains_nothing(baselines):
    assert not compare.envelope(Q, "name", 0.0, baselines).passed
    assert not compare.envelope(Q, "name", math.nan, {"a": 1.0}).passed


# Random draws


def draws_tests(law):
    """The tests that a tensor said to follow `law` has to pass."""
    if isinstance(law, compare.Normal):
        reach = partial(compare.truncation, Q, "reach", sigma=law.sigma, alpha=ALPHA)
    else:
        reach = partial(compare.support, Q, "reach", bound=law.bound, alpha=ALPHA)
    return {
        "spread": partial(compare.spread, Q, "spread", law=law, alpha=ALPHA),
        "reach": reach,
        "shape": partial(compare.kolmogorov_smirnov, Q, "shape", other=law, alpha=ALPHA),
    }


def failed(draws, law):
    return {name for name, test in draws_tests(law).items() if not test(draws=draws).passed}


@pytest.mark.parametrize("n", [1000, 50_000])
def test_draws_of_the_law_pass(rng, n):
    assert failed(rng.normal(0, 0.3, n), compare.Normal(0.3)) == set()
    assert failed(rng.uniform(-0.3, 0.3, n), compare.Uniform(0.3)) == set()


def truncated(rng, sigma, n):
    """As jax.nn.initializers.variance_scaling draws: cut at two, then rescaled."""
    x = rng.normal(size=4 * n)
    return x[np.abs(x) < 2][:n] * sigma / 0.87962566103423978


def test_a_truncated_normal_fails_where_a_shape_test_of_a_small_layer_passes_it(rng):
    law = compare.Normal(0.1)
    for _ in range(20):
        draws = truncated(rng, 0.1, 2304)
        assert failed(draws, law) == {"reach"}


def test_truncation_is_seen_when_rounding_carries_a_draw_past_the_end(rng):
    draws = np.append(truncated(rng, 1.0, 5000), compare.TRUNCATION * (1 + 1e-7))
    assert "reach" in failed(draws, compare.Normal(1.0))


def test_another_fan_fails(rng):
    """fan_in for fan_out where twice as many channels come in: a factor of sqrt(2)."""
    assert "spread" in failed(rng.normal(0, 0.1 / math.sqrt(2), 1000), compare.Normal(0.1))
    assert {"spread", "reach"} <= failed(rng.uniform(-0.1, 0.1, 1000), compare.Uniform(0.1 * math.sqrt(2)))
    assert {"spread", "reach"} <= failed(rng.uniform(-0.1, 0.1, 1000), compare.Uniform(0.1 / math.sqrt(2)))


def test_another_shape_of_the_same_scale_fails(rng):
    assert {"reach", "shape"} <= failed(rng.uniform(-1, 1, 5000) * math.sqrt(3), compare.Normal(1.0))
    assert {"reach", "shape"} <= failed(rng.normal(0, 1, 5000), compare.Uniform(math.sqrt(3)))


def test_zeros_for_a_bias_fail():
    assert {"spread", "reach", "shape"} <= failed(np.zeros(64), compare.Uniform(0.1))


@pytest.mark.parametrize("law", [compare.Normal(1.0), compare.Uniform(1.0)])
def test_nan_and_nothing_fail_every_test_of_draws(rng, law):
    bad = rng.uniform(-1, 1, 5000)
    bad[7] = np.nan
    for draws in (bad, np.array([])):
        assert failed(draws, law) == {"spread", "reach", "shape"}


def test_uniform_draws_may_not_leave_the_bound_by_more_than_a_rounding(rng):
    draws = rng.uniform(-1, 1, 5000)
    inside = partial(compare.support, Q, "name", bound=1.0, alpha=ALPHA)
    assert inside(np.append(draws, 1 + 2**-24)).passed
    assert not inside(np.append(draws, 1 + 1e-5)).passed


def test_the_truncation_detector_knows_its_false_alarms():
    """The figures are those of 216, 576 and 2304 weights: 3x3 kernels of 24, 64 and 256 channels in times out."""
    rates = [compare.truncation_false_alarm(n) for n in (216, 576, 2304)]
    assert rates == pytest.approx([6.6e-3, 1.5e-6, 5e-24], rel=0.1)


def test_too_few_draws_to_see_truncation_fail(rng):
    row = compare.truncation(Q, "name", rng.normal(size=216), 1.0, ALPHA)
    assert not row.passed
    assert "too few" in row.worst
    assert compare.truncation(Q, "name", rng.normal(size=1000), 1.0, ALPHA).passed


@pytest.mark.parametrize("n", [1, 8, 300])
@pytest.mark.parametrize("law", [compare.Normal(2.0), compare.Uniform(2.0)])
def test_the_chance_of_a_spread_is_never_understated(rng, law, n):
    """Of correct draws, at most one in twenty has a chance below a twentieth; for the normal, about that many."""
    draws = rng.normal(0, 2, (2000, n)) if isinstance(law, compare.Normal) else rng.uniform(-2, 2, (2000, n))
    ratios = np.square(draws / law.sigma).mean(axis=1)
    rate = np.mean([law.chance_of_spread(ratio, n) < 0.05 for ratio in ratios])
    assert rate < 0.07
    if isinstance(law, compare.Normal):
        assert rate > 0.035


def test_the_chance_of_a_spread_falls_with_the_distance():
    for law in (compare.Normal(1.0), compare.Uniform(1.0)):
        chances = [law.chance_of_spread(ratio, 500) for ratio in (1.0, 1.05, 1.1, 1.3, 1.6, 2.9)]
        assert chances == sorted(chances, reverse=True)
        assert chances[0] > 0.9
        assert chances[-1] < 1e-30
        assert law.chance_of_spread(0.5, 500) < 1e-12
    assert compare.Uniform(1.0).chance_of_spread(3.5, 1) == 0  # outside of the support


def test_two_samples_of_one_law_pass_and_of_two_fail(rng):
    same = partial(compare.kolmogorov_smirnov, Q, "name", rng.normal(size=200_000), alpha=ALPHA)
    assert same(rng.normal(size=300_000)).passed
    assert not same(truncated(rng, 1.0, 300_000)).passed  # a pool of all layers is large enough to see it
    assert not same(rng.normal(0, 1.2, 30_000)).passed
    assert not same(np.array([])).passed


@pytest.mark.parametrize(("p", "passed"), [(1.0, True), (2e-8, True), (1e-9, False), (0.0, False), (math.nan, False)])
def test_a_chance_becomes_a_surprise(p, passed):
    row = compare.chance(Q, "name", p, ALPHA)
    assert row.passed is passed
    assert row.gate == pytest.approx(8)


READINGS = {
    "same channels": {"fan_out": 1.0, "fan_in": 1.0},
    "decoder": {"fan_out": 1.0, "fan_in": 1 / math.sqrt(2), "fan_avg": math.sqrt(2 / 3)},
}


def test_the_fan_rule_finds_the_kernel_that_follows_another_reading():
    rule = partial(compare.fan_rule, Q, "name", readings=READINGS)
    assert rule({"same channels": 1.01, "decoder": 0.99}).passed
    row = rule({"same channels": 1.01, "decoder": 0.71})
    assert (row.figure, row.passed) == (1, False)
    assert "decoder: 0.7100 is fan_in" in row.worst
    assert not rule({"same channels": 1.01, "decoder": 0.0}).passed
    assert not rule({"same channels": 1.01, "decoder": math.nan}).passed
    assert not rule({"decoder": 0.99}).passed


def test_the_fan_rule_fails_when_no_kernel_can_tell():
    only = {"same channels": READINGS["same channels"]}
    assert not compare.fan_rule(Q, "name", {"same channels": 1.0}, only).passed
    assert not compare.fan_rule(Q, "name", {}, {}).passed
