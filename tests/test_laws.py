import math
from functools import partial

import numpy as np
import pytest

from parity.judge import laws

Q = "question"
ALPHA = 1e-8


def draws_tests(law):
    """Tests that draws of `law` have to pass."""
    if isinstance(law, laws.Normal):
        reach = partial(laws.truncation, Q, "reach", sigma=law.sigma, alpha=ALPHA)
    else:
        reach = partial(laws.support, Q, "reach", bound=law.bound, alpha=ALPHA)
    return {
        "spread": partial(laws.spread, Q, "spread", law=law, alpha=ALPHA),
        "reach": reach,
        "shape": partial(laws.kolmogorov_smirnov, Q, "shape", other=law, alpha=ALPHA),
    }


def failed(draws, law):
    return {name for name, test in draws_tests(law).items() if not test(draws=draws).passed}


@pytest.mark.parametrize("n", [1000, 50_000])
def test_draws_of_the_claimed_law_pass(rng, n):
    assert failed(rng.normal(0, 0.3, n), laws.Normal(0.3)) == set()
    assert failed(rng.uniform(-0.3, 0.3, n), laws.Uniform(0.3)) == set()


def truncated(rng, sigma, n):
    """Draws as jax.nn.initializers.variance_scaling does: cut at two, then rescaled."""
    x = rng.normal(size=4 * n)
    return x[np.abs(x) < 2][:n] * sigma / 0.87962566103423978


def test_truncated_normal_of_a_small_layer_fails_the_reach_test_alone(rng):
    law = laws.Normal(0.1)
    for _ in range(20):
        draws = truncated(rng, 0.1, 2304)
        assert failed(draws, law) == {"reach"}


def test_truncation_is_detected_with_a_draw_rounded_past_the_end(rng):
    draws = np.append(truncated(rng, 1.0, 5000), laws.TRUNCATION * (1 + 1e-7))
    assert "reach" in failed(draws, laws.Normal(1.0))


def test_scale_of_another_fan_fails(rng):
    """fan_in for fan_out where twice as many channels come in: a factor of sqrt(2)."""
    assert "spread" in failed(rng.normal(0, 0.1 / math.sqrt(2), 1000), laws.Normal(0.1))
    assert {"spread", "reach"} <= failed(rng.uniform(-0.1, 0.1, 1000), laws.Uniform(0.1 * math.sqrt(2)))
    assert {"spread", "reach"} <= failed(rng.uniform(-0.1, 0.1, 1000), laws.Uniform(0.1 / math.sqrt(2)))


def test_another_shape_of_the_same_scale_fails(rng):
    assert {"reach", "shape"} <= failed(rng.uniform(-1, 1, 5000) * math.sqrt(3), laws.Normal(1.0))
    assert {"reach", "shape"} <= failed(rng.normal(0, 1, 5000), laws.Uniform(math.sqrt(3)))


def test_zero_biases_fail_every_test():
    assert {"spread", "reach", "shape"} <= failed(np.zeros(64), laws.Uniform(0.1))


@pytest.mark.parametrize("law", [laws.Normal(1.0), laws.Uniform(1.0)])
def test_nan_and_empty_draws_fail_every_test(rng, law):
    bad = rng.uniform(-1, 1, 5000)
    bad[7] = np.nan
    for draws in (bad, np.array([])):
        assert failed(draws, law) == {"spread", "reach", "shape"}


def test_support_allows_a_rounding_past_the_bound_and_no_more(rng):
    draws = rng.uniform(-1, 1, 5000)
    inside = partial(laws.support, Q, "name", bound=1.0, alpha=ALPHA)
    assert inside(np.append(draws, 1 + 2**-24)).passed
    assert not inside(np.append(draws, 1 + 1e-5)).passed


def test_truncation_false_alarm_rates_match_known_figures():
    """Rates of 216, 576 and 2304 weights: 3x3 kernels with 24, 64 and 256 pairs of channels."""
    rates = [laws.truncation_false_alarm(n) for n in (216, 576, 2304)]
    assert rates == pytest.approx([6.6e-3, 1.5e-6, 5e-24], rel=0.1)


def test_truncation_fails_with_too_few_draws(rng):
    row = laws.truncation(Q, "name", rng.normal(size=216), 1.0, ALPHA)
    assert not row.passed
    assert "too few" in row.worst
    assert laws.truncation(Q, "name", rng.normal(size=1000), 1.0, ALPHA).passed


@pytest.mark.parametrize("n", [1, 8, 300])
@pytest.mark.parametrize("law", [laws.Normal(2.0), laws.Uniform(2.0)])
def test_chance_of_spread_is_not_understated_for_correct_draws(rng, law, n):
    """At most one in twenty correct draws has a chance below 0.05; for the normal about one in twenty."""
    draws = rng.normal(0, 2, (2000, n)) if isinstance(law, laws.Normal) else rng.uniform(-2, 2, (2000, n))
    ratios = np.square(draws / law.sigma).mean(axis=1)
    rate = np.mean([law.chance_of_spread(ratio, n) < 0.05 for ratio in ratios])
    assert rate < 0.07
    if isinstance(law, laws.Normal):
        assert rate > 0.035


def test_chance_of_spread_falls_with_the_distance():
    for law in (laws.Normal(1.0), laws.Uniform(1.0)):
        chances = [law.chance_of_spread(ratio, 500) for ratio in (1.0, 1.05, 1.1, 1.3, 1.6, 2.9)]
        assert chances == sorted(chances, reverse=True)
        assert chances[0] > 0.9
        assert chances[-1] < 1e-30
        assert law.chance_of_spread(0.5, 500) < 1e-12
    assert laws.Uniform(1.0).chance_of_spread(3.5, 1) == 0  # outside of the support


def test_two_samples_pass_with_one_law_and_fail_with_two(rng):
    same = partial(laws.kolmogorov_smirnov, Q, "name", rng.normal(size=200_000), alpha=ALPHA)
    assert same(rng.normal(size=300_000)).passed
    assert not same(truncated(rng, 1.0, 300_000)).passed  # a pool of all layers is large enough to see it
    assert not same(rng.normal(0, 1.2, 30_000)).passed
    assert not same(np.array([])).passed


@pytest.mark.parametrize(("p", "passed"), [(1.0, True), (2e-8, True), (1e-9, False), (0.0, False), (math.nan, False)])
def test_chance_row_passes_down_to_alpha(p, passed):
    row = laws.chance(Q, "name", p, ALPHA)
    assert row.passed is passed
    assert row.gate == pytest.approx(8)


def independent(draws):
    return laws.independent(Q, "name", draws, ALPHA)


def test_separately_drawn_tensors_are_independent_under_any_laws(rng):
    draws = {"a": rng.normal(size=(8, 3, 5)), "b": rng.uniform(-1, 1, (4, 100)), "c": rng.normal(0, 9, (8, 7))}
    assert independent(draws).passed


def test_reused_random_numbers_are_detected_in_another_shape_and_scale(rng):
    a, b = rng.normal(size=(8, 3, 5)), rng.normal(size=(8, 40))
    b[:, :15] = 0.1 * a.reshape(8, 15)
    row = independent({"a": a, "b": b, "c": rng.normal(size=(8, 40))})
    assert not row.passed
    assert row.worst.startswith("a and b: 120 of 120 signs agree")
    assert not independent({"a": a, "b": -b}).passed


def test_repeated_builds_are_detected(rng):
    row = independent({"a": np.repeat(rng.normal(size=(1, 10)), 8, axis=0)})
    assert not row.passed
    assert row.worst.startswith("a, in two builds: 70 of 70")


def test_independence_fails_with_nothing_to_compare_or_nan(rng):
    assert not independent({"a": rng.normal(size=(1, 500))}).passed
    assert not independent({}).passed
    assert not independent({"a": np.full((2, 500), np.nan), "b": rng.normal(size=(2, 500))}).passed


def test_p_values_of_correct_draws_are_not_understated(rng):
    """Exact tests pass one in ten of correct draws below 0.1; 0.155 of 400 is 3.7 standard deviations more."""
    normal, uniform = laws.Normal(1.0), laws.Uniform(1.0)
    tests = {
        "truncation": lambda: laws.truncation(Q, "name", rng.normal(size=1000), 1.0, ALPHA),
        "support": lambda: laws.support(Q, "name", rng.uniform(-1, 1, 50), 1.0, ALPHA),
        "shape": lambda: laws.kolmogorov_smirnov(Q, "name", rng.normal(size=300), normal, ALPHA),
        "shape, uniform": lambda: laws.kolmogorov_smirnov(Q, "name", rng.uniform(-1, 1, 300), uniform, ALPHA),
        "independence": lambda: independent({"a": rng.normal(size=(4, 30)), "b": rng.normal(size=(4, 30))}),
    }
    shares = {name: np.mean([test().figure > 1 for _ in range(400)]) for name, test in tests.items()}
    assert max(shares.values()) < 0.155
    assert min(shares[name] for name in ("truncation", "support", "shape", "shape, uniform")) > 0.05


READINGS = {
    "same channels": {"fan_out": 1.0, "fan_in": 1.0},
    "decoder": {"fan_out": 1.0, "fan_in": 1 / math.sqrt(2), "fan_avg": math.sqrt(2 / 3)},
}


def test_fan_rule_names_the_kernel_with_another_reading():
    rule = partial(laws.fan_rule, Q, "name", readings=READINGS)
    assert rule({"same channels": 1.01, "decoder": 0.99}).passed
    row = rule({"same channels": 1.01, "decoder": 0.71})
    assert (row.figure, row.passed) == (1, False)
    assert "decoder: 0.7100 is fan_in" in row.worst
    assert not rule({"same channels": 1.01, "decoder": 0.0}).passed
    assert not rule({"same channels": 1.01, "decoder": math.nan}).passed
    assert not rule({"decoder": 0.99}).passed


def test_fan_rule_fails_if_no_kernel_distinguishes_the_readings():
    only = {"same channels": READINGS["same channels"]}
    assert not laws.fan_rule(Q, "name", {"same channels": 1.0}, only).passed
    assert not laws.fan_rule(Q, "name", {}, {}).passed
