import json
import math
import typing

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxseg.base.config import Optimization
from jaxseg.base.errors import ArgumentError
from jaxseg.learn import schedules
from jaxseg.learn.schedules import Plateau

NAMES = typing.get_args(typing.get_type_hints(Optimization)["schedule"])

# tick: learning rate, of base 0.01, 5 ticks of warm-up and 40 in all
ARTICLE = {
    -1: 1e-9,
    0: 1e-9,
    1: 0.0020000008,
    4: 0.0080000002,
    5: 0.01,
    6: 0.00997987147,
    9: 0.00941136304,
    20: 7.20281914e-4,
    30: 2.09974175e-8,
    40: 1e-9,
    41: 1e-9,
    10**6: 1e-9,
}
COSINE = {1: 0.0020000008, 5: 0.01, 9: 0.00968117439, 20: 0.00611260506, 39: 2.012953e-5, 40: 1e-9, 10**6: 1e-9}


def ask(schedule, ticks) -> list[float]:
    compiled = jax.jit(schedule)
    return [float(compiled(tick)) for tick in ticks]


def test_article_takes_the_listed_values_under_jit():
    np.testing.assert_allclose(ask(schedules.article(0.01), ARTICLE), list(ARTICLE.values()), rtol=1e-7)


def test_warmup_cosine_takes_the_listed_values_under_jit():
    schedule = schedules.warmup_cosine(0.01)
    np.testing.assert_allclose(ask(schedule, COSINE), list(COSINE.values()), rtol=1e-6, atol=1e-9)
    assert ask(schedule, [0]) == [pytest.approx(1e-9, abs=1e-10)]


@given(st.floats(1e-5, 10), st.integers(0, 19), st.sampled_from([20, 40]), st.floats(0, 1e-3), st.floats(0, 1e-3))
def test_article_matches_the_articles_stateful_scheduler(base, warmup, total, begin, final):
    lr, expected = base, []
    for tick in range(total + 1):  # as the class does, which overwrites its own base
        if tick < warmup:
            expected.append(begin + (base - begin) * tick / warmup)
        else:
            factor = (1 + math.cos(math.pi * (tick - warmup) / (total - warmup))) / 2
            lr = final + (lr - final) * factor
            expected.append(lr)
    schedule = schedules.article(base, warmup=warmup, total=total, begin_lr=begin, final_lr=final)
    ticks = np.arange(total + 1)
    with jax.enable_x64(True):
        np.testing.assert_allclose(schedule(ticks), expected, rtol=1e-14)
    np.testing.assert_allclose(schedule(ticks), np.float32(expected), rtol=2e-7)


def test_article_has_no_state_between_calls():
    schedule = schedules.article(0.01)
    once = [float(schedule(tick)) for tick in range(41)]
    assert [float(schedule(tick)) for tick in (20, 9, 9, 0, 20)] == [once[20], once[9], once[9], once[0], once[20]]


def test_article_and_warmup_cosine_without_warmup_start_at_the_peak():
    for make in (schedules.article, schedules.warmup_cosine):
        assert ask(make(0.5, warmup=0, total=10), [0, 10]) == pytest.approx([0.5, 1e-9], rel=1e-3)
    half = schedules.warmup_cosine(0.5, warmup=0, total=10, final_lr=0.1)
    assert ask(half, [5, 10, 11]) == pytest.approx([0.3, 0.1, 0.1])


def test_peak_of_zero_is_accepted():
    assert ask(schedules.warmup_cosine(0.0, warmup=0, total=4, final_lr=0.0), [0, 2]) == [0, 0]
    assert ask(schedules.warmup_cosine(0.0, warmup=2, total=4, begin_lr=0.0, final_lr=0.0), [0, 2, 3]) == [0, 0, 0]


def test_warmup_cosine_is_float64_with_x64():
    with jax.enable_x64(True):
        found = schedules.warmup_cosine(0.01)(jnp.arange(41, dtype=jnp.int32))
    assert found.dtype == np.float64
    expected = 1e-9 + (0.01 - 1e-9) * (1 + math.cos(math.pi * 15 / 35)) / 2
    assert float(found[20]) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("make", [schedules.article, schedules.warmup_cosine])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warmup": 5, "total": 5}, "`warmup` is 5 and `total` is 5; expected 0 <= warmup < total"),
        ({"warmup": -1}, "`warmup` is -1"),
        ({"warmup": 0, "total": 0}, "`total` is 0"),
        ({"base_lr": float("nan")}, "`base_lr` is nan; expected a finite number of 0 or more"),
        ({"base_lr": float("inf")}, "`base_lr` is inf"),
        ({"begin_lr": -1e-9}, "`begin_lr` is -1e-09"),
        ({"final_lr": -1.0}, "`final_lr` is -1.0"),
    ],
)
def test_errors_name_arguments_of_warmup_schedules(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**{"base_lr": 0.01} | options)


def test_per_epoch_keeps_the_rate_within_an_epoch():
    schedule = schedules.per_epoch(lambda epoch: 10.0 + epoch, 3)
    assert ask(schedule, range(7)) == [10, 10, 10, 11, 11, 11, 12]
    with pytest.raises(ValueError, match="`steps_per_epoch` is 0; expected 1 or more"):
        schedules.per_epoch(lambda epoch: epoch, 0)


def test_default_of_40_epochs_warms_up_for_5():
    article = schedules.schedule_from(Optimization(schedule="article", learning_rate=0.01), 3)
    steps = [3 * tick + i for tick in (0, 5, 9, 20, 40) for i in range(3)]
    expected = [ARTICLE[tick] for tick in (0, 5, 9, 20, 40) for _ in range(3)]
    np.testing.assert_allclose(ask(article, steps), expected, rtol=1e-7)

    cosine = schedules.schedule_from(Optimization(schedule="warmup_cosine", learning_rate=0.01), 3)
    np.testing.assert_allclose(ask(cosine, [3, 15, 60, 120]), [0.002, 0.01, COSINE[20], 1e-9], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("per", ["step", "epoch"])
@pytest.mark.parametrize("name", ["article", "warmup_cosine"])
def test_warmup_schedules_count_steps_or_epochs(name, per):
    how = {"learning_rate": 0.1, "begin_lr": 0.01, "final_lr": 0.001}
    built = schedules.schedule_from(
        Optimization(epochs=6, warmup_epochs=2.0, schedule=name, schedule_per=per, **how), 4
    )
    ticks = 1 if per == "epoch" else 4
    plain = getattr(schedules, name)(0.1, warmup=2 * ticks, total=6 * ticks, begin_lr=0.01, final_lr=0.001)
    steps = np.arange(24)
    np.testing.assert_allclose(built(steps), plain(steps // 4 if per == "epoch" else steps), rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "steps_per_epoch", "peak"),
    [
        (Optimization(epochs=3), 10, 4),  # 3.75 steps
        (Optimization(epochs=1), 1, 0),
        (Optimization(epochs=1, warmup_epochs=0.99), 2, 1),  # 1.98 of 2: the peak is still reached
        (Optimization(epochs=12, schedule_per="epoch"), 5, 10),  # 1.5 epochs are 2
        (Optimization(epochs=3, schedule_per="epoch"), 5, 0),
    ],
)
def test_warmup_is_rounded_to_whole_ticks(settings, steps_per_epoch, peak):
    schedule = schedules.schedule_from(settings, steps_per_epoch)
    rates = ask(schedule, range(settings.epochs * steps_per_epoch))
    assert int(np.argmax(rates)) == peak
    assert rates[peak] == pytest.approx(settings.learning_rate)


# The others: explicit values. Rounded by hand from the formulas of torch.optim.lr_scheduler.

LISTED = {
    "piecewise_constant": (
        ([0.5, 0.2, 0.8], {"milestones": (3, 5)}),
        {0: 0.5, 2: 0.5, 3: 0.2, 4: 0.2, 5: 0.8, 99: 0.8},
    ),
    "multi_factor": ((1.0, {"milestones": (3, 5), "gamma": 0.1}), {0: 1, 2: 1, 3: 0.1, 4: 0.1, 5: 0.01, 99: 0.01}),
    "multi_factor, floor": ((1.0, {"milestones": (1, 2), "gamma": 0.1, "final_lr": 0.04}), {1: 0.1, 2: 0.04, 3: 0.04}),
    "factor": ((0.8, {"period": 4, "gamma": 0.5, "total": 12}), {0: 0.8, 3: 0.8, 4: 0.4, 8: 0.2, 11: 0.2, 12: 0.2}),
    "exponential": ((1.0, {"period": 10.0, "gamma": 0.01}), {0: 1, 5: 0.1, 10: 0.01, 15: 0.001}),
    "exponential, floor": ((1.0, {"period": 10.0, "gamma": 0.01, "final_lr": 0.02}), {5: 0.1, 10: 0.02, 40: 0.02}),
    "linear": ((1.0, {"total": 10, "final_lr": 0.2}), {0: 1, 1: 0.92, 5: 0.6, 10: 0.2, 11: 0.2, 10**6: 0.2}),
    "linear, upwards": ((0.1, {"total": 4, "final_lr": 0.3}), {0: 0.1, 1: 0.15, 4: 0.3, 9: 0.3}),
    "polynomial": ((1.0, {"total": 4, "power": 2.0}), {0: 1, 1: 0.5625, 2: 0.25, 3: 0.0625, 4: 0, 7: 0}),
    "polynomial, 0.9": ((1.0, {"total": 10, "final_lr": 0.1}), {0: 1, 5: 0.1 + 0.9 * 0.5**0.9, 10: 0.1, 11: 0.1}),
    "cosine": ((1.0, {"total": 6, "final_lr": 0.2}), {0: 1, 2: 0.8, 3: 0.6, 4: 0.4, 6: 0.2, 7: 0.2, 12: 0.2}),
    "cosine_restarts": (
        (1.0, {"period": 4.0, "cycle_factor": 2.0, "total": 12}),
        {
            0: 1,
            2: 0.5,
            3: (1 - math.sqrt(0.5)) / 2,
            4: 1,
            8: 0.5,
            11: (1 + math.cos(math.pi * 7 / 8)) / 2,
            12: 0,
            13: 0,
        },
    ),
    "cosine_restarts, not whole": (  # begin at 0, 2.5 and 6.25, which is 6; end at 11.875, past the total
        (1.0, {"period": 2.5, "cycle_factor": 1.5, "total": 8}),
        {0: 1, 1: 0.75, 2: 0.25, 3: 1, 5: 0.25, 6: 1, 9: 0.5, 12: 0, 13: 0},
    ),
    "cyclic": ((1.0, {"period": 4.0, "final_lr": 0.2}), {0: 0.2, 1: 0.6, 2: 1, 3: 0.6, 4: 0.2, 6: 1, 402: 1}),
    "cyclic, odd": ((1.0, {"period": 3.0}), {0: 0, 1: 2 / 3, 2: 2 / 3, 3: 0, 4: 2 / 3}),
    "one_cycle": (  # peak at 0.3 * 10 - 1, end at 9
        (1.0, {"total": 10, "final_lr": 0.1}),
        {0: 0.04, 1: 0.52, 2: 1, 3: 0.1 + 0.45 * (1 + math.cos(math.pi / 7)), 9: 0.1, 10: 0.1, 50: 0.1},
    ),
}


@pytest.mark.parametrize("name", LISTED)
def test_schedules_take_the_listed_values_in_float32_and_float64(name):
    (first, options), expected = LISTED[name]
    schedule = getattr(schedules, name.split(",")[0])(first, **options)
    np.testing.assert_allclose(ask(schedule, expected), list(expected.values()), rtol=1e-6, atol=1e-7)
    with jax.enable_x64(True):  # the same schedule, which must not remember
        found = jax.jit(schedule)(jnp.array(list(expected), jnp.int32))  # many ticks at once
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, list(expected.values()), rtol=1e-14, atol=1e-15)


def test_stepwise_schedules_change_at_their_ticks_and_round_once():
    """Optax's staircase, compiled in float32, is a tick late at 41 and many others."""
    for period in (1, 2, 10, 41, 47, 55, 61, 82):
        ticks = np.arange(4 * period)
        expected = np.float32([0.1, 0.1 * 0.5, 0.1 * 0.5 * 0.5, 0.1 * 0.5 * 0.5 * 0.5])[ticks // period]
        found = jax.jit(schedules.factor(0.1, period=period, gamma=0.5, total=4 * period))(ticks.astype(np.int32))
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("x64", [False, True])
def test_polynomial_is_finite_at_its_end(x64):
    """Optax's is not, for every other total."""
    with jax.enable_x64(x64):
        for total in range(1, 13):
            ticks = np.arange(total + 2, dtype=np.int32)
            found = np.asarray(jax.jit(schedules.polynomial(0.1, total=total, final_lr=0.01))(ticks))
            assert (np.diff(found) <= 0).all()
            assert found[-2:] == pytest.approx([0.01, 0.01], rel=1e-6)


def test_piecewise_constant_of_one_rate_needs_no_milestone():
    assert ask(schedules.piecewise_constant([0.3]), [0, 7]) == pytest.approx([0.3, 0.3])
    assert ask(schedules.multi_factor(0.3, milestones=()), [0, 7]) == pytest.approx([0.3, 0.3])
    assert ask(schedules.factor(0.3, period=9, total=5), [0, 10]) == pytest.approx([0.3, 0.3])


def test_final_rate_above_the_first_is_not_a_floor():
    assert ask(schedules.exponential(0.1, period=1.0, gamma=0.5, final_lr=0.2), [0, 1]) == pytest.approx([0.1, 0.1])
    assert ask(schedules.factor(0.1, period=1, gamma=0.5, total=9, final_lr=0.2), [0, 1]) == pytest.approx([0.1, 0.1])


WRONG = {
    "`rates` has 2 and `milestones` 2": lambda: schedules.piecewise_constant([0.1, 0.2], milestones=(1, 2)),
    "`rates.1.` is -0.2": lambda: schedules.piecewise_constant([0.1, -0.2], milestones=(1,)),
    "`milestones` is (5, 3); expected ticks of 1 or more, in order": lambda: schedules.multi_factor(
        0.1, milestones=(5, 3)
    ),
    "`milestones` is (0,)": lambda: schedules.multi_factor(0.1, milestones=(0,)),
    "`gamma` is 1.0; expected a number between 0 and 1": lambda: schedules.multi_factor(
        0.1, milestones=(3,), gamma=1.0
    ),
    "`gamma` is 0.0": lambda: schedules.exponential(0.1, period=3.0, gamma=0.0),
    "`period` is 0; expected 1 tick or more": lambda: schedules.factor(0.1, period=0, total=5),
    "`period` is 0.0; expected ticks, more than 0": lambda: schedules.exponential(0.1, period=0.0),
    "`period` is 0.9; expected 1 tick or more": lambda: schedules.cosine_restarts(0.1, period=0.9, total=5),
    "`period` is 1.5; expected 2 ticks or more": lambda: schedules.cyclic(0.1, period=1.5),
    "`cycle_factor` is 0.5; expected 1 or more": lambda: schedules.cosine_restarts(
        0.1, period=2.0, total=5, cycle_factor=0.5
    ),
    "`power` is 0.0; expected a number above 0": lambda: schedules.polynomial(0.1, total=5, power=0.0),
    "`total` is 0; expected 1 tick or more": lambda: schedules.linear(0.1, total=0),
    "`total` is 3; expected 4 ticks or more": lambda: schedules.one_cycle(0.1, total=3),
    "`final_lr` is -1.0": lambda: schedules.cyclic(0.1, period=4.0, final_lr=-1.0),
    "`base_lr` is inf": lambda: schedules.cosine(math.inf, total=5),
    "`warmup` is -1; expected 0 or more": lambda: schedules.linear_warmup(schedules.constant(0.1), warmup=-1),
    "`begin_lr` is nan": lambda: schedules.linear_warmup(schedules.constant(0.1), warmup=1, begin_lr=math.nan),
}


@pytest.mark.parametrize("message", WRONG)
def test_errors_name_the_argument_out_of_range(message):
    with pytest.raises(ValueError, match=message.replace("(", "\\(").replace(")", "\\)")):
        WRONG[message]()


# Warm-up before any


def test_linear_warmup_rises_to_the_first_rate_then_starts_the_schedule():
    schedule = schedules.linear_warmup(schedules.one_cycle(1.0, total=10), warmup=4, begin_lr=0.02)
    found = ask(schedule, range(16))
    np.testing.assert_allclose(found[:4], [0.02, 0.025, 0.03, 0.035], rtol=1e-6)
    np.testing.assert_allclose(found[4:14], ask(schedules.one_cycle(1.0, total=10), range(10)), rtol=1e-6)


def test_linear_warmup_may_begin_at_0_or_above_the_first_rate():
    flat = schedules.constant(0.5)
    assert ask(schedules.linear_warmup(flat, warmup=2, begin_lr=0.0), range(4)) == [0, 0.25, 0.5, 0.5]
    assert ask(schedules.linear_warmup(flat, warmup=2, begin_lr=1.0), range(4)) == [1, 0.75, 0.5, 0.5]
    assert schedules.linear_warmup(flat, warmup=0) is flat


def test_linear_warmup_begins_at_begin_lr_in_float32():
    """1e-9 + (1 - 1e-9) * tick / 10 does not cancel, as begin * (1 - tick / 10) + ... would."""
    assert ask(schedules.linear_warmup(schedules.constant(1.0), warmup=10, begin_lr=1e-9), [0]) == [np.float32(1e-9)]


# From settings

OPTIONS = {  # what must be given
    "piecewise_constant": {"milestones": (3.0, 6.0), "rates": (0.3, 0.1, 0.2)},
    "multi_factor": {"milestones": (3.0, 6.0)},
}


def settings_of(name: str, **more) -> Optimization:
    return Optimization(**{"schedule": name, "epochs": 8, "learning_rate": 0.1} | OPTIONS.get(name, {}) | more)


@st.composite
def recipes(draw) -> tuple[dict, int]:
    """Settings that can be, and the steps of an epoch."""
    name, epochs = draw(st.sampled_from(NAMES)), draw(st.integers(7, 30))
    peak, final = draw(st.floats(1e-4, 1.0)), draw(st.floats(0, 0.01))
    how = {"learning_rate": peak, "final_lr": final * peak, "begin_lr": draw(st.floats(0, 1)) * peak}
    how |= {"gamma": draw(st.floats(0.01, 0.99)), "power": draw(st.floats(0.1, 3))}
    how |= {"cycle_factor": draw(st.floats(1, 3)), "period": draw(st.none() | st.floats(2, 20))}
    how |= {"schedule_per": draw(st.sampled_from([None, "step", "epoch"]))}
    how |= {"warmup_epochs": draw(st.sampled_from([None, 0.0, 1.0, 2.0]))}
    if name in OPTIONS:
        how["milestones"] = (3.0, 5.0)
    if name == "piecewise_constant":
        how["rates"] = tuple(draw(st.floats(final, 1)) * peak for _ in range(3))
    return {"schedule": name, "epochs": epochs, **how}, draw(st.integers(3, 9))


@given(recipes())
def test_rates_stay_within_bounds_and_reach_their_end(recipe):
    o, steps_per_epoch = Optimization(**recipe[0]), recipe[1]
    schedule = schedules.schedule_from(o, steps_per_epoch)
    rates = np.asarray(
        jax.jit(jax.vmap(lambda t: jnp.asarray(schedule(t), float)))(np.arange(o.epochs * steps_per_epoch + 9))
    )
    assert np.isfinite(rates).all()
    peak = max((*o.rates, o.begin_lr) if o.rates else (o.learning_rate, o.begin_lr))
    assert rates.max() <= peak * (1 + 1e-6)
    # above the final rate, or the first of a warm-up, but for what float32 loses of the peak
    lowest = min((o.final_lr, *o.rates, *([o.begin_lr] if o.warmup else [])))
    assert rates.min() >= max(lowest - 2e-7 * peak, 0)
    steps = 1 if o.per == "step" else steps_per_epoch
    warmup = min(round(o.warmup * steps_per_epoch / steps) * steps, (o.epochs * steps_per_epoch // steps - 1) * steps)
    first = {"piecewise_constant": o.rates and o.rates[0], "cyclic": o.final_lr, "one_cycle": o.learning_rate / 25}
    assert rates[warmup] == pytest.approx(first.get(o.schedule, o.learning_rate), rel=1e-5, abs=2e-7 * peak)
    if warmup:
        assert rates[0] == pytest.approx(o.begin_lr, abs=2e-7 * peak)
        assert np.abs(np.diff(rates[: warmup + 1])).max() <= 1.001 * peak * steps / warmup


CONTINUOUS = (
    "warmup_cosine",
    "constant",
    "exponential",
    "linear",
    "polynomial",
    "cosine",
    "cyclic",
    "one_cycle",
    "plateau",
)


@pytest.mark.parametrize("warmup", [0.0, 2.0])
@pytest.mark.parametrize("name", CONTINUOUS)
def test_continuous_schedules_change_little_per_tick(name, warmup):
    schedule = schedules.schedule_from(settings_of(name, warmup_epochs=warmup, power=1.0), 1000)
    rates = np.broadcast_to(schedule(np.arange(8200)), 8200)
    assert np.abs(np.diff(rates)).max() < 0.1 * 0.0015  # a cycle of 1500 steps rises in 750


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("warmup_cosine", "article")])
@pytest.mark.parametrize("per", ["step", "epoch"])
def test_schedules_count_steps_or_epochs_after_a_warmup(name, per):
    ticks = 1 if per == "epoch" else 5
    bare = settings_of(name, schedule_per="step", epochs=6 * ticks, period=None if name != "factor" else 2.0 * ticks)
    milestones = tuple((m - 2) * ticks for m in bare.milestones)
    after = schedules.schedule_from(Optimization(**vars(bare) | {"milestones": milestones}), 1)  # a step is a tick
    built = schedules.schedule_from(
        settings_of(name, schedule_per=per, warmup_epochs=2.0, period=bare.period and 2.0), 5
    )
    steps = np.arange(40)
    found = np.broadcast_to(built(steps), 40)
    tick = steps // 5 if per == "epoch" else steps
    np.testing.assert_allclose(found[10:], np.broadcast_to(after(tick[10:] - 2 * ticks), 30), rtol=1e-6)
    expected = 1e-9 + (float(after(0)) - 1e-9) * tick[:10] / (2 * ticks)
    np.testing.assert_allclose(found[:10], expected, rtol=1e-6)


def test_constant_rises_only_during_a_warmup():
    assert ask(schedules.schedule_from(settings_of("constant", learning_rate=0.25), 7), [0, 3, 10**6]) == [0.25] * 3
    warmed_up = schedules.schedule_from(settings_of("constant", learning_rate=0.5, warmup_epochs=1.0, begin_lr=0.0), 4)
    assert ask(warmed_up, [0, 1, 3, 4, 99]) == [0, 0.125, 0.375, 0.5, 0.5]


def test_default_period_is_ten_epochs_the_run_or_a_quarter():
    find = lambda name, ticks, **more: ask(schedules.schedule_from(settings_of(name, epochs=40, **more), 2), ticks)  # noqa: E731
    assert find("factor", [19, 20, 40]) == pytest.approx([0.1, 0.01, 0.001])
    assert find("exponential", [0, 40, 80]) == pytest.approx([0.1, 0.1 * math.sqrt(0.1), 0.01])
    assert find("cyclic", [0, 10, 20, 70], final_lr=0.02) == pytest.approx([0.02, 0.1, 0.02, 0.1])
    assert find("cosine_restarts", [19, 20, 40, 60], final_lr=0.02)[1:] == pytest.approx([0.1] * 3)
    # after the warm-up, of what is left
    assert find("exponential", [8, 80], warmup_epochs=4.0) == pytest.approx([0.1, 0.01])
    assert find("cyclic", [8, 17, 26], warmup_epochs=4.0, final_lr=0.02) == pytest.approx([0.02, 0.1, 0.02])


def test_milestones_count_the_warmup():
    for warmup in (0.0, 2.0):
        schedule = schedules.schedule_from(settings_of("piecewise_constant", warmup_epochs=warmup), 10)
        assert ask(schedule, [29, 30, 59, 60]) == pytest.approx([0.3, 0.1, 0.1, 0.2])
    halves = schedules.schedule_from(settings_of("multi_factor", milestones=(0.25, 0.5)), 10)
    assert ask(halves, [1, 2, 4, 5]) == pytest.approx([0.1, 0.01, 0.01, 0.001])


@pytest.mark.parametrize("name", NAMES)
def test_steps_setting_replaces_epochs_as_the_run_length(name):
    by_steps = schedules.schedule_from(settings_of(name, epochs=40, steps=80, schedule_per="step"), 10)
    by_epochs = schedules.schedule_from(settings_of(name, epochs=8, schedule_per="step"), 10)
    np.testing.assert_array_equal(by_steps(np.arange(80)), by_epochs(np.arange(80)))


def test_partial_last_epoch_counts_as_a_tick():
    schedule = schedules.schedule_from(settings_of("linear", steps=25, schedule_per="epoch", final_lr=0.0), 10)
    assert ask(schedule, [0, 10, 20, 24]) == pytest.approx([0.1, 0.2 / 3, 0.1 / 3, 0.1 / 3])


@pytest.mark.parametrize("name", NAMES)
def test_schedules_run_inside_a_compiled_step(name):
    schedule = schedules.schedule_from(settings_of(name, warmup_epochs=1.0), 3)
    tx = optax.scale_by_learning_rate(schedule)

    def step(state, _):
        update, state = tx.update(jnp.float32(1), state)
        return state, -update

    _, rates = jax.lax.scan(step, tx.init(jnp.float32(1)), length=24)
    np.testing.assert_allclose(rates, [float(schedule(tick)) for tick in range(24)], rtol=2e-6, atol=1e-8)


REFUSED = {
    "`schedule` is cyclic, with 3 epochs after the warm-up: `period` is 1.0": settings_of(
        "cyclic", epochs=5, warmup_epochs=2.0, period=1.0, schedule_per="epoch"
    ),
    "`schedule` is factor, with 24 steps (3 an epoch) after the warm-up: `period` is 0": settings_of(
        "factor", period=0.1
    ),
    "`schedule` is one_cycle, with 3 steps (3 an epoch) after the warm-up: `total` is 3": settings_of(
        "one_cycle", epochs=1
    ),
    "`milestones` is (-3, 6)": settings_of("multi_factor", warmup_epochs=4.0),
    "`rates` has 0 and `milestones` 2": settings_of("piecewise_constant", rates=()),
}


@pytest.mark.parametrize("message", REFUSED)
def test_schedule_from_raises_argument_error_for_an_unsuitable_step_count(message):
    with pytest.raises(ArgumentError) as caught:
        schedules.schedule_from(REFUSED[message], 3)
    assert message in str(caught.value)
    assert caught.value.flags.startswith("--schedule is ")


def test_every_schedule_choice_has_a_function():
    assert sorted(schedules.SCHEDULES) == sorted(NAMES)


# Plateau


def test_plateau_cuts_after_more_than_patience_epochs_without_improvement():
    plateau = Plateau(0.1, gamma=0.5, patience=2)
    assert [plateau.update(metric) for metric in (0.5, 0.5, 0.5)] == [1, 1, 1]
    assert plateau.update(0.5) == 0.5  # the third
    assert [plateau.update(metric) for metric in (0.5, 0.5, 0.6, 0.5, 0.5)] == [0.5] * 5  # begins anew
    assert plateau.update(0.6) == 0.25
    assert plateau.scale == 0.25


def test_plateau_needs_an_improvement_of_1e_4_and_nan_is_none():
    plateau = Plateau(0.1, gamma=0.5, patience=0)
    assert plateau.update(math.nan) == 0.5
    assert plateau.update(0.0) == 0.5  # the first number is better than none
    assert plateau.update(1e-30) == 0.5
    assert plateau.update(0.5) == 0.5
    assert plateau.update(0.50004) == 0.25
    assert plateau.update(0.50006) == 0.25


def test_plateau_stops_at_the_final_rate_and_skips_changes_below_1e_8():
    plateau = Plateau(0.1, gamma=0.1, patience=0, final_lr=0.005)
    assert [plateau.update(0.0) for _ in range(4)] == pytest.approx([1, 0.1, 0.05, 0.05])
    tiny = Plateau(1e-8, gamma=0.1, patience=0)
    assert [tiny.update(0.0) for _ in range(3)] == [1, 1, 1]


def test_plateau_continues_from_its_state():
    metrics = [0.1, 0.2, 0.2, math.nan, 0.15, 0.3, 0.3, 0.3, 0.3]
    whole, scales = Plateau(0.1, patience=1), []
    parts = Plateau(0.1, patience=1)
    for metric in metrics:
        state = json.loads(json.dumps(parts.state, allow_nan=False))
        parts = Plateau(0.1, patience=1, state=state)
        scales.append((whole.update(metric), parts.update(metric)))
    assert all(a == b for a, b in scales)
    assert scales[-1][0] < 0.1


def test_plateau_accepts_rate_0_and_refuses_settings_out_of_range():
    assert Plateau(0.0, patience=0).update(0.0) == 1
    with pytest.raises(ValueError, match=r"`gamma` is 2\.0"):
        Plateau(0.1, gamma=2.0)
    with pytest.raises(ValueError, match="`patience` is -1"):
        Plateau(0.1, patience=-1)
