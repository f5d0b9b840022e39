"""The learning rate as a function of the step: `schedule(step) -> lr`, as Optax wants it.

`python -m jaxseg.schedules --schedule one_cycle --lr 0.01 -o one_cycle.png` draws one and prints some of its rates.

Each is the scheduler of `torch.optim.lr_scheduler` that its docstring names, in closed form (Optax's where that is
exact): any step, in any order, also inside a compiled step. Schedules count *ticks*, which are epochs or steps;
`per_epoch` turns a schedule of epochs into one of steps. All raise ValueError naming an argument out of range.

Arguments in common:
- `base_lr`: the peak, a finite number of 0 or more
- `final_lr`: the end, a finite number of 0 or more
- `total`: ticks of the whole run, 1 or more
- `period`: ticks of a cycle, or between changes
- `gamma`: factor of a change, between 0 and 1
"""

import itertools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxseg.base.config import Optimization
from jaxseg.base.errors import ArgumentError
from jaxseg.learn.plateau import Plateau as Plateau

Schedule = Callable[[jax.typing.ArrayLike], jax.Array]


def warmup_cosine(
    base_lr: float, *, warmup: int = 5, total: int = 40, begin_lr: float = 1e-9, final_lr: float = 1e-9
) -> Schedule:
    """Linear from `begin_lr` to `base_lr` over `warmup` ticks, half a cosine to `final_lr` at `total`, then constant.

    - `base_lr`, `begin_lr`, `final_lr`: rates, finite, 0 or more
    - `warmup`: ticks, 0 <= warmup < total
    - `total`: ticks, warm-up included

    `optax.warmup_cosine_decay_schedule`, whose `decay_steps` counts the warm-up too (cosine: Loshchilov and Hutter
    2016). In float32 its value at tick 0 is 7 % off for begin_lr = 1e-9 and base_lr = 1e-2: 7e-11, which does not
    matter.

    >>> rate = warmup_cosine(0.1, warmup=1, total=3)
    >>> [round(float(rate(tick)), 3) for tick in range(4)]
    [0.0, 0.1, 0.05, 0.0]
    """
    _expect(0 <= warmup < total, warmup=warmup, total=total, expected="0 <= warmup < total")
    _check_rates(base_lr=base_lr, begin_lr=begin_lr, final_lr=final_lr)
    if warmup == 0:
        schedule = optax.cosine_decay_schedule(base_lr, total, alpha=final_lr / base_lr if base_lr else 0.0)
    else:
        schedule = optax.warmup_cosine_decay_schedule(begin_lr, base_lr, warmup, total, final_lr)
    return _of_float(schedule)


def article(
    base_lr: float, *, warmup: int = 5, total: int = 40, begin_lr: float = 1e-9, final_lr: float = 1e-9
) -> Schedule:
    """The article's scheduler as it computes: linear warm-up, then a *running product* of half-cosine factors.

    - `base_lr`, `begin_lr`, `final_lr`: rates, finite, 0 or more
    - `warmup`: ticks, 0 <= warmup < total
    - `total`: ticks, warm-up included

    The class multiplies its own `base_lr` at every call, so for ticks e >= warmup

        lr(e) = final + (base - final) * prod_{k=warmup..e} (1 + cos(pi (k - warmup) / (total - warmup))) / 2.

    That falls below a tenth of the peak at tick 20 of 40, where one cosine does at 33. The class keeps the product as
    state, so a second call in an epoch, or a restart, changes later rates. Here it is a table, made once in float64
    with the class's order of operations. Ticks below 0 read the first entry, past the end the last. Meant for epochs:
    over steps the product reaches `final_lr` after a few hundred.

    >>> rate = article(0.1, warmup=1, total=3)
    >>> [round(float(rate(tick)), 3) for tick in range(4)]
    [0.0, 0.1, 0.05, 0.0]
    """
    _expect(0 <= warmup < total, warmup=warmup, total=total, expected="0 <= warmup < total")
    _check_rates(base_lr=base_lr, begin_lr=begin_lr, final_lr=final_lr)
    values, lr = [], base_lr
    for tick in range(total + 1):
        if tick < warmup:
            values.append(begin_lr + (base_lr - begin_lr) * float(tick) / float(warmup))
        else:
            lr = final_lr + (lr - final_lr) * (1 + math.cos(math.pi * (tick - warmup) / (total - warmup))) / 2
            values.append(lr)
    table = np.asarray(values, np.float64)

    def schedule(tick):
        # float64 where x64 is on, else rounded once to float32
        return jnp.asarray(table, float)[jnp.clip(tick, 0, total)]

    return schedule


def constant(value: float) -> Schedule:
    """`value` at every tick: ConstantLR with factor 1. With `Plateau`'s scale, ReduceLROnPlateau.

    >>> constant(0.1)(7)
    0.1
    """
    return optax.constant_schedule(value)


def piecewise_constant(rates: Sequence[float], *, milestones: Sequence[int] = ()) -> Schedule:
    """`rates[0]` before the first milestone, `rates[i]` from milestone i on, counted from 1: LambdaLR of a table.

    `milestones` are ticks of 1 or more, in order, one fewer than `rates`. Optax's multiplies its way to a rate and
    rounds at every milestone.

    >>> rate = piecewise_constant([0.1, 0.01], milestones=[2])
    >>> [round(float(rate(tick)), 3) for tick in (0, 1, 2)]
    [0.1, 0.1, 0.01]
    """
    _check_rates(**{f"rates[{i}]": rate for i, rate in enumerate(rates)})
    if len(rates) != len(milestones) + 1:
        raise ValueError(f"`rates` has {len(rates)} and `milestones` {len(milestones)}; expected one rate more")
    in_order = min(milestones, default=1) >= 1 and sorted(milestones) == list(milestones)
    _expect(in_order, milestones=tuple(milestones), expected="ticks of 1 or more, in order")
    table, edges = np.asarray(rates, np.float64), np.asarray(milestones, np.int32)
    return lambda tick: jnp.asarray(table, float)[_passed(edges, tick)]


def multi_factor(base_lr: float, *, milestones: Sequence[int], gamma: float = 0.1, final_lr: float = 0.0) -> Schedule:
    """Multiplied by `gamma` at every milestone, down to `final_lr`: MultiStepLR, to the bit.

    - `base_lr`, `final_lr`: rates, finite, 0 or more
    - `milestones`: ticks of 1 or more, in order
    - `gamma`: between 0 and 1

    >>> rate = multi_factor(0.1, milestones=[1, 2])
    >>> [round(float(rate(tick)), 4) for tick in range(3)]
    [0.1, 0.01, 0.001]
    """
    _check_rates(base_lr=base_lr, final_lr=final_lr)
    _expect(0 < gamma < 1, gamma=gamma, expected="a number between 0 and 1")
    floor = min(final_lr, base_lr)
    rates = itertools.accumulate(milestones, lambda rate, _: max(rate * gamma, floor), initial=base_lr)
    return piecewise_constant(tuple(rates), milestones=milestones)


def factor(base_lr: float, *, period: int, total: int, gamma: float = 0.1, final_lr: float = 0.0) -> Schedule:
    """Multiplied by `gamma` every `period` ticks, down to `final_lr`: StepLR, to the bit. Constant from `total` on.

    - `base_lr`, `final_lr`: rates, finite, 0 or more
    - `period`: ticks, 1 or more
    - `total`: ticks, 1 or more
    - `gamma`: between 0 and 1

    `optax.exponential_decay(staircase=True)` takes the floor of a quotient in floating point. Compiled in float32 it is
    a tick late for every eighth period (41 for one).

    >>> rate = factor(0.1, period=2, total=4)
    >>> [round(float(rate(tick)), 3) for tick in range(4)]
    [0.1, 0.1, 0.01, 0.01]
    """
    _expect(total >= 1, total=total, expected="1 tick or more")
    _expect(1 <= period < math.inf, period=period, expected="1 tick or more")
    return multi_factor(base_lr, milestones=range(period, total, period), gamma=gamma, final_lr=final_lr)


def exponential(base_lr: float, *, period: float, gamma: float = 0.1, final_lr: float = 0.0) -> Schedule:
    """base_lr * gamma^(tick / period), down to `final_lr`: ExponentialLR, whose own gamma is gamma^(1 / period).

    - `base_lr`, `final_lr`: rates, finite, 0 or more
    - `period`: ticks, above 0
    - `gamma`: between 0 and 1

    It is `optax.exponential_decay`.

    >>> rate = exponential(0.1, period=2.0)
    >>> [round(float(rate(tick)), 4) for tick in range(3)]
    [0.1, 0.0316, 0.01]
    """
    _check_rates(base_lr=base_lr, final_lr=final_lr)
    _expect(0 < gamma < 1, gamma=gamma, expected="a number between 0 and 1")
    _expect(0 < period < math.inf, period=period, expected="ticks, more than 0")
    return _of_float(optax.exponential_decay(base_lr, period, gamma, end_value=min(final_lr, base_lr)))


def polynomial(base_lr: float, *, total: int, power: float = 0.9, final_lr: float = 0.0) -> Schedule:
    """final_lr + (base_lr - final_lr) * (1 - tick / total)^power, constant from `total` on: PolynomialLR with an end.

    - `base_lr`, `final_lr`: rates, finite, 0 or more
    - `total`: ticks, 1 or more
    - `power`: above 0

    In `optax.polynomial_schedule`, compiled, 1 - total / total is below 0 for every other `total`; from there on the
    rate is NaN.

    >>> rate = polynomial(0.1, total=2, power=2.0)
    >>> [round(float(rate(tick)), 3) for tick in range(3)]
    [0.1, 0.025, 0.0]
    """
    _expect(total >= 1, total=total, expected="1 tick or more")
    _check_rates(base_lr=base_lr, final_lr=final_lr)
    _expect(0 < power < math.inf, power=power, expected="a number above 0")

    def schedule(tick):
        left = jnp.clip((total - jnp.asarray(tick, float)) / total, 0, 1)
        return final_lr + (base_lr - final_lr) * left**power

    return schedule


def linear(base_lr: float, *, total: int, final_lr: float = 0.0) -> Schedule:
    """Linear to `final_lr` at tick `total`, then constant: LinearLR.

    >>> rate = linear(0.1, total=2)
    >>> [round(float(rate(tick)), 3) for tick in range(4)]
    [0.1, 0.05, 0.0, 0.0]
    """
    return polynomial(base_lr, total=total, power=1.0, final_lr=final_lr)


def cosine(base_lr: float, *, total: int, final_lr: float = 0.0) -> Schedule:
    """Half a cosine to `final_lr` at tick `total`, then constant: CosineAnnealingLR, which rises again.

    It is `optax.cosine_decay_schedule`.

    >>> rate = cosine(0.1, total=2)
    >>> [round(float(rate(tick)), 3) for tick in range(4)]
    [0.1, 0.05, 0.0, 0.0]
    """
    return warmup_cosine(base_lr, warmup=0, total=total, final_lr=final_lr)


def cosine_restarts(
    base_lr: float, *, period: float, total: int, cycle_factor: float = 1.0, final_lr: float = 0.0
) -> Schedule:
    """Half cosines to `final_lr`, each cycle `cycle_factor` times as long as the one before (SGDR).

    - `base_lr`, `final_lr`: rates, finite, 0 or more
    - `period`: ticks of the first cycle, 1 or more
    - `total`: ticks, 1 or more; the last cycle that begins before it is completed, then the rate is constant
    - `cycle_factor`: 1 or more

    CosineAnnealingWarmRestarts, whose T_0 and T_mult are whole. With others a cycle begins at the nearest tick, so that
    every cycle begins at `base_lr`. `optax.join_schedules` would compute all cycles at every tick.

    >>> rate = cosine_restarts(0.1, period=2.0, total=4)
    >>> [round(float(rate(tick)), 3) for tick in range(4)]
    [0.1, 0.05, 0.1, 0.05]
    """
    _expect(total >= 1, total=total, expected="1 tick or more")
    _check_rates(base_lr=base_lr, final_lr=final_lr)
    _expect(1 <= period < math.inf, period=period, expected="1 tick or more")
    _expect(1 <= cycle_factor < math.inf, cycle_factor=cycle_factor, expected="1 or more")
    edges, length = [0.0], float(period)
    while edges[-1] < total:
        edges.append(edges[-1] + length)
        length *= cycle_factor
    edges = np.floor(np.array(edges) + 0.5)
    starts, lengths = edges[:-1].astype(np.int32), np.diff(edges)

    def schedule(tick):
        cycle = _passed(starts[1:], tick)
        since = jnp.asarray(tick - jnp.asarray(starts)[cycle], float)
        angle = jnp.clip(since * jnp.asarray(math.pi / lengths, float)[cycle], 0, math.pi)
        return final_lr + (base_lr - final_lr) * (1 + jnp.cos(angle)) / 2

    return schedule


def cyclic(base_lr: float, *, period: float, final_lr: float = 0.0) -> Schedule:
    """Linear from `final_lr` up to `base_lr` and down again in `period` ticks, without end: CyclicLR, triangular.

    - `base_lr`: the peak, CyclicLR's max_lr
    - `period`: ticks of a cycle, 2 or more, twice CyclicLR's step_size_up
    - `final_lr`: the lowest rate, CyclicLR's base_lr

    Smith 2017.

    >>> rate = cyclic(0.1, period=4.0)
    >>> [round(float(rate(tick)), 3) for tick in range(5)]
    [0.0, 0.05, 0.1, 0.05, 0.0]
    """
    _check_rates(base_lr=base_lr, final_lr=final_lr)
    _expect(2 <= period < math.inf, period=period, expected="2 ticks or more")

    def schedule(tick):
        phase = jnp.mod(jnp.asarray(tick, float), period) / period
        return final_lr + (base_lr - final_lr) * (1 - jnp.abs(2 * phase - 1))

    return schedule


def one_cycle(
    base_lr: float, *, total: int, final_lr: float = 0.0, pct_start: float = 0.3, div_factor: float = 25.0
) -> Schedule:
    """Half a cosine from base_lr / div_factor up to `base_lr`, another down to `final_lr`: OneCycleLR, rates only.

    - `base_lr`, `final_lr`: rates, finite, 0 or more
    - `total`: ticks, enough for the peak to come after the first: 4 for the default `pct_start`
    - `pct_start`: share of the ticks before the peak, 0 to 1
    - `div_factor`: peak over first rate

    As in PyTorch the peak is at tick pct_start * total - 1 and the end at total - 1, then constant;
    `optax.cosine_onecycle_schedule` has both one later. OneCycleLR moves the momentum too by default; here it is
    constant (Smith and Topin 2019).

    >>> rate = one_cycle(0.1, total=5, pct_start=0.4, div_factor=10.0)
    >>> [round(float(rate(tick)), 4) for tick in range(5)]
    [0.01, 0.1, 0.075, 0.025, 0.0]
    """
    _expect(total >= 1, total=total, expected="1 tick or more")
    _check_rates(base_lr=base_lr, final_lr=final_lr)
    first, peak, last = base_lr / div_factor, pct_start * total - 1, total - 1
    _expect(0 < peak < last, total=total, expected="4 ticks or more, so that the peak is after the first")

    def schedule(tick):
        tick = jnp.clip(jnp.asarray(tick, float), 0, last)
        rises = tick <= peak
        start, end = jnp.where(rises, first, base_lr), jnp.where(rises, base_lr, final_lr)
        angle = jnp.where(rises, tick * (math.pi / peak), (tick - peak) * (math.pi / (last - peak)))
        return end + (start - end) * (1 + jnp.cos(angle)) / 2

    return schedule


# Around a schedule ----------------------------------------------------------------------------------------------------


def linear_warmup(schedule: Schedule, *, warmup: int, begin_lr: float = 1e-9) -> Schedule:
    """Linear from `begin_lr` to the first rate of `schedule` over `warmup` ticks, then `schedule` from its tick 0 on.

    - `schedule`: the schedule that follows
    - `warmup`: ticks, 0 or more
    - `begin_lr`: finite, 0 or more

    SequentialLR of LinearLR and another. LinearLR can begin neither at 0 nor above the schedule's first rate.

    >>> rate = linear_warmup(constant(0.1), warmup=2, begin_lr=0.0)
    >>> [round(float(rate(tick)), 3) for tick in range(4)]
    [0.0, 0.05, 0.1, 0.1]
    """
    _check_rates(begin_lr=begin_lr)
    _expect(warmup >= 0, warmup=warmup, expected="0 or more")
    if warmup == 0:
        return schedule

    def warmed_up(tick):
        rise = begin_lr + (schedule(0) - begin_lr) * jnp.asarray(tick, float) / warmup
        return jnp.where(tick < warmup, rise, schedule(jnp.maximum(tick - warmup, 0)))

    return warmed_up


def per_epoch(schedule: Schedule, steps_per_epoch: int) -> Schedule:
    """Turns a schedule of epochs into one of steps: all steps of an epoch have that epoch's rate.

    >>> rate = per_epoch(linear(0.1, total=2), 2)
    >>> [round(float(rate(step)), 3) for step in range(4)]
    [0.1, 0.1, 0.05, 0.05]
    """
    _expect(steps_per_epoch >= 1, steps_per_epoch=steps_per_epoch, expected="1 or more")
    return lambda step: schedule(step // steps_per_epoch)


def _passed(edges: np.ndarray, tick: jax.typing.ArrayLike) -> jax.Array:
    """Number of ticks in `edges`, int [n], that are at or before `tick`; integers, so nothing is rounded."""
    return jnp.searchsorted(jnp.asarray(edges), tick, side="right", method="scan_unrolled")


def _of_float(schedule: Schedule) -> Schedule:
    """Passes ticks as floats: Optax turns an int32 count into float32 even where x64 is on."""
    return lambda tick: schedule(jnp.asarray(tick, float))


def _expect(holds: bool, *, expected: str, **found: object) -> None:
    if not holds:
        raise ValueError(" and ".join(f"`{n}` is {v}" for n, v in found.items()) + f"; expected {expected}")


def _check_rates(**rates: float) -> None:
    for name, value in rates.items():
        _expect(math.isfinite(value) and value >= 0, **{name: value}, expected="a finite number of 0 or more")


# From settings --------------------------------------------------------------------------------------------------------

SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "warmup_cosine": warmup_cosine,
    "article": article,
    "constant": constant,
    "piecewise_constant": piecewise_constant,
    "factor": factor,
    "multi_factor": multi_factor,
    "exponential": exponential,
    "linear": linear,
    "polynomial": polynomial,
    "cosine": cosine,
    "cosine_restarts": cosine_restarts,
    "cyclic": cyclic,
    "one_cycle": one_cycle,
    "plateau": constant,
}


def schedule_from(settings: Optimization, steps_per_epoch: int) -> Schedule:
    """Builds the schedule of steps that `settings` describe: warm-up, then the schedule for the rest of the run.

    `settings.milestones` are epochs of the run, warm-up included; `settings.period` begins after it. Both are rounded
    to whole ticks. "plateau" comes without `Plateau`'s scale. Raises ArgumentError, a ValueError, for settings that
    the number of steps does not allow.

    >>> rate = schedule_from(Optimization(schedule="linear", learning_rate=0.1, epochs=2, warmup_epochs=0.0), 2)
    >>> [round(float(rate(step)), 3) for step in range(4)]
    [0.1, 0.075, 0.05, 0.025]
    """
    o, name = settings, settings.schedule
    epoch = 1 if o.per == "epoch" else steps_per_epoch
    total, warmup = _span(o, steps_per_epoch)
    try:
        if name in ("warmup_cosine", "article"):  # these include the warm-up
            ends = {"begin_lr": o.begin_lr, "final_lr": o.final_lr}
            schedule = SCHEDULES[name](o.learning_rate, warmup=warmup, total=total, **ends)
        else:
            first = o.rates if name == "piecewise_constant" else o.learning_rate
            schedule = SCHEDULES[name](first, **_options(o, epoch, total - warmup, warmup))
            schedule = linear_warmup(schedule, warmup=warmup, begin_lr=o.begin_lr)
    except ValueError as error:
        ticks = "epochs" if o.per == "epoch" else f"steps ({steps_per_epoch} an epoch)"
        left = f"{total - warmup} {ticks} after the warm-up"
        raise ArgumentError([("schedule", f"is {name}, with {left}: {error}")]) from None
    return per_epoch(schedule, steps_per_epoch) if o.per == "epoch" else schedule


def _span(settings: Optimization, steps_per_epoch: int) -> tuple[int, int]:
    """Ticks of the whole run, and of its warm-up, which is at least one shorter."""
    o = settings
    epoch = 1 if o.per == "epoch" else steps_per_epoch
    total, warmup = o.epochs * epoch, o.warmup * epoch
    if o.steps is not None:
        steps = -(-o.steps * epoch // steps_per_epoch)
        warmup *= 1 if o.warmup_epochs is not None else steps / total  # the default warm-up stays an eighth
        total = steps
    return total, min(round(warmup), total - 1)


def _options(o: Optimization, epoch: int, total: int, warmup: int) -> dict[str, object]:
    """Arguments of a schedule's function; `epoch`, `total` and `warmup` in ticks, `total` without the warm-up."""
    periods = {"factor": 10.0 * epoch, "exponential": float(total)}  # others: a quarter of the run
    period = o.period * epoch if o.period is not None else periods.get(o.schedule, max(total / 4, 2.0))
    milestones = tuple(round(milestone * epoch) - warmup for milestone in o.milestones)
    lowest, end = {"final_lr": o.final_lr}, {"final_lr": o.final_lr, "total": total}
    return {
        "constant": {},
        "piecewise_constant": {"milestones": milestones},
        "factor": {"gamma": o.gamma, "period": round(period), **end},
        "multi_factor": {"gamma": o.gamma, "milestones": milestones, **lowest},
        "exponential": {"gamma": o.gamma, "period": period, **lowest},
        "linear": end,
        "polynomial": {"power": o.power, **end},
        "cosine": end,
        "cosine_restarts": {"period": period, "cycle_factor": o.cycle_factor, **end},
        "cyclic": {"period": period, **lowest},
        "one_cycle": end,
        "plateau": {},
    }[o.schedule]
