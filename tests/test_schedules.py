import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxseg import schedules
from jaxseg.config import Optimization

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
def test_article_is_the_stateful_scheduler_of_the_article(base, warmup, total, begin, final):
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


def test_article_does_not_mind_being_asked_twice_or_out_of_order():
    schedule = schedules.article(0.01)
    once = [float(schedule(tick)) for tick in range(41)]
    assert [float(schedule(tick)) for tick in (20, 9, 9, 0, 20)] == [once[20], once[9], once[9], once[0], once[20]]


def test_without_warmup_both_start_at_the_peak():
    for make in (schedules.article, schedules.warmup_cosine):
        assert ask(make(0.5, warmup=0, total=10), [0, 10]) == pytest.approx([0.5, 1e-9], rel=1e-3)
    half = schedules.warmup_cosine(0.5, warmup=0, total=10, final_lr=0.1)
    assert ask(half, [5, 10, 11]) == pytest.approx([0.3, 0.1, 0.1])


def test_a_peak_of_zero_is_no_error():
    assert ask(schedules.warmup_cosine(0.0, warmup=0, total=4, final_lr=0.0), [0, 2]) == [0, 0]
    assert ask(schedules.warmup_cosine(0.0, warmup=2, total=4, begin_lr=0.0, final_lr=0.0), [0, 2, 3]) == [0, 0, 0]


def test_warmup_cosine_is_float64_where_it_is_on():
    with jax.enable_x64(True):
        found = schedules.warmup_cosine(0.01)(jnp.arange(41, dtype=jnp.int32))
    assert found.dtype == np.float64
    expected = 1e-9 + (0.01 - 1e-9) * (1 + math.cos(math.pi * 15 / 35)) / 2
    assert float(found[20]) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("make", [schedules.article, schedules.warmup_cosine])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warmup": 5, "total": 5}, "`warmup` is 5 and `total` 5; expected 0 <= warmup < total"),
        ({"warmup": -1}, "`warmup` is -1"),
        ({"warmup": 0, "total": 0}, "`total` 0"),
        ({"base_lr": float("nan")}, "`base_lr` is nan; expected a finite number of 0 or more"),
        ({"base_lr": float("inf")}, "`base_lr` is inf"),
        ({"begin_lr": -1e-9}, "`begin_lr` is -1e-09"),
        ({"final_lr": -1.0}, "`final_lr` is -1.0"),
    ],
)
def test_impossible_arguments_are_named(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**{"base_lr": 0.01} | options)


def test_per_epoch_gives_every_step_of_an_epoch_the_same():
    schedule = schedules.per_epoch(lambda epoch: 10.0 + epoch, 3)
    assert ask(schedule, range(7)) == [10, 10, 10, 11, 11, 11, 12]
    with pytest.raises(ValueError, match="`steps_per_epoch` is 0; expected 1 or more"):
        schedules.per_epoch(lambda epoch: epoch, 0)


def test_the_default_of_40_epochs_warms_up_for_the_articles_5():
    article = schedules.build(Optimization(schedule="article", learning_rate=0.01), 3)
    steps = [3 * tick + i for tick in (0, 5, 9, 20, 40) for i in range(3)]
    expected = [ARTICLE[tick] for tick in (0, 5, 9, 20, 40) for _ in range(3)]
    np.testing.assert_allclose(ask(article, steps), expected, rtol=1e-7)

    cosine = schedules.build(Optimization(schedule="warmup_cosine", learning_rate=0.01), 3)
    np.testing.assert_allclose(ask(cosine, [3, 15, 60, 120]), [0.002, 0.01, COSINE[20], 1e-9], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("per", ["step", "epoch"])
@pytest.mark.parametrize("name", ["article", "warmup_cosine"])
def test_both_schedules_go_by_step_or_by_epoch(name, per):
    how = {"learning_rate": 0.1, "begin_lr": 0.01, "final_lr": 0.001}
    built = schedules.build(Optimization(epochs=6, warmup_epochs=2.0, schedule=name, schedule_per=per, **how), 4)
    ticks = 1 if per == "epoch" else 4
    plain = getattr(schedules, name)(0.1, warmup=2 * ticks, total=6 * ticks, begin_lr=0.01, final_lr=0.001)
    steps = np.arange(24)
    np.testing.assert_allclose(built(steps), plain(steps // 4 if per == "epoch" else steps), rtol=1e-6)


def test_a_constant_schedule_ignores_warmup():
    schedule = schedules.build(Optimization(epochs=1, warmup_epochs=3.0, schedule="constant", learning_rate=0.25), 7)
    assert ask(schedule, [0, 3, 10**6]) == [0.25] * 3


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
    schedule = schedules.build(settings, steps_per_epoch)
    rates = ask(schedule, range(settings.epochs * steps_per_epoch))
    assert int(np.argmax(rates)) == peak
    assert rates[peak] == pytest.approx(settings.learning_rate)
