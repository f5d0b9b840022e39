"""The learning rate as a function of the step: `schedule(step) -> lr`, as Optax wants it.

`python -m jaxseg.schedules --schedule one_cycle --lr 0.01 -o one_cycle.png` draws one and prints some of its rates.

Each is the scheduler of torch.optim.lr_scheduler that its docstring names, in closed form: it can be asked for any
step, in any order, inside a compiled step; Optax's where that is exact. Schedules count *ticks*, which are epochs or
steps: `per_epoch` turns a schedule of epochs into one of steps. All raise ValueError for what cannot be.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxseg.base.config import Optimization
from jaxseg.base.errors import UserError
from jaxseg.learn.plateau import Plateau as Plateau

Schedule = Callable[[jax.typing.ArrayLike], jax.Array]


def warmup_cosine(
    base_lr: float, *, warmup: int = 5, total: int = 40, begin_lr: float = 1e-9, final_lr: float = 1e-9
) -> Schedule:
    """Linear from `begin_lr` to `base_lr` over `warmup` ticks, then half a cosine to `final_lr` at tick `total`, and
    on.

    `optax.warmup_cosine_decay_schedule`, whose `decay_steps` counts the warm-up too (Loshchilov and Hutter 2016 for
    the cosine). In float32 its value at tick 0 is 7 % off for begin_lr = 1e-9 and base_lr = 1e-2: 7e-11, which no
    weight can feel. Raises ValueError unless 0 <= warmup < total.
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

    The class multiplies its own `base_lr` at every call, so for ticks e >= warmup
        lr(e) = final + (base - final) * prod_{k=warmup..e} (1 + cos(pi (k - warmup) / (total - warmup))) / 2,
    which falls below a tenth of the peak at tick 20 of 40, where one cosine would at 33. The class keeps that product
    as state, so calling it twice in an epoch, or restarting it, changes what follows. Here it is a table, made once
    in float64 with the class's own order of operations; asking twice or out of order changes nothing. Ticks below 0
    read the first entry, past the end the last. Meant for epochs: over steps the product reaches `final_lr` after a
    few hundred. Raises ValueError unless 0 <= warmup < total.
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
        # float64 where x64 is on, else rounded to float32 once
        return jnp.asarray(table, float)[jnp.clip(tick, 0, total)]

    return schedule


def constant(value: float) -> Schedule:
    """`value` at every tick; with `Plateau`'s scale, ReduceLROnPlateau."""
    return optax.constant_schedule(value)


def piecewise_constant(rates: Sequence[float], *, milestones: Sequence[int] = ()) -> Schedule:
    """`rates[0]` before the first milestone, `rates[i]` from milestone i on, counted from 1: LambdaLR of a table.

    Not Optax's, which multiplies its way to a rate and rounds at every milestone.
    """
    _check_rates(**{f"rates[{i}]": rate for i, rate in enumerate(rates)})
    if len(rates) != len(milestones) + 1:
        raise ValueError(f"`rates` has {len(rates)} and `milestones` {len(milestones)}; expected one rate more")
    in_order = min(milestones, default=1) >= 1 and sorted(milestones) == list(milestones)
    _expect(in_order, milestones=tuple(milestones), expected="ticks of 1 or more, in order")
    table, edges = np.asarray(rates, np.float64), np.asarray(milestones, np.int32)
    return lambda tick: jnp.asarray(table, float)[_passed(edges, tick)]


def multi_factor(base_lr: float, *, milestones: Sequence[int], gamma: float = 0.1, final_lr: float = 0.0) -> Schedule:
    """Multiplied by `gamma` at every milestone, down to `final_lr`: MultiStepLR, to the bit."""
    _check_rates(base_lr=base_lr, final_lr=final_lr)
    _expect(0 < gamma < 1, gamma=gamma, expected="a number between 0 and 1")
    floor = min(final_lr, base_lr)
    rates = itertools.accumulate(milestones, lambda rate, _: max(rate * gamma, floor), initial=base_lr)
    return piecewise_constant(tuple(rates), milestones=milestones)


def factor(base_lr: float, *, period: int, total: int, gamma: float = 0.1, final_lr: float = 0.0) -> Schedule:
    """Multiplied by `gamma` every `period` ticks, down to `final_lr`: StepLR, to the bit; stays from `total` on.

    Not `optax.exponential_decay(staircase=True)`, which takes the floor of a quotient in floating point: compiled in
    float32 it is a tick late for every eighth period (41 for one).
    """
    _expect(total >= 1, total=total, expected="1 tick or more")
    _expect(1 <= period < math.inf, period=period, expected="1 tick or more")
    return multi_factor(base_lr, milestones=range(period, total, period), gamma=gamma, final_lr=final_lr)


def exponential(base_lr: float, *, period: float, gamma: float = 0.1, final_lr: float = 0.0) -> Schedule:
    """base_lr * gamma^(tick / period), down to `final_lr`: ExponentialLR, whose own gamma is gamma^(1 / period).

    `optax.exponential_decay`.
    """
    _check_rates(base_lr=base_lr, final_lr=final_lr)
    _expect(0 < gamma < 1, gamma=gamma, expected="a number between 0 and 1")
    _expect(0 < period < math.inf, period=period, expected="ticks, more than 0")
    return _of_float(optax.exponential_decay(base_lr, period, gamma, end_value=min(final_lr, base_lr)))


def polynomial(base_lr: float, *, total: int, power: float = 0.9, final_lr: float = 0.0) -> Schedule:
    """final_lr + (base_lr - final_lr) * (1 - tick / total)^power, to tick `total`, and on: PolynomialLR with an end.

    Not `optax.polynomial_schedule`: compiled, its 1 - total / total is below 0 for every other `total`, and the rate
    from there on NaN.
    """
    _expect(total >= 1, total=total, expected="1 tick or more")
    _check_rates(base_lr=base_lr, final_lr=final_lr)
    _expect(0 < power < math.inf, power=power, expected="a number above 0")

    def schedule(tick):
        left = jnp.clip((total - jnp.asarray(tick, float)) / total, 0, 1)
        return final_lr + (base_lr - final_lr) * left**power

    return schedule


def linear(base_lr: float, *, total: int, final_lr: float = 0.0) -> Schedule:
    """Linear to `final_lr` at tick `total`, and on: LinearLR."""
    return polynomial(base_lr, total=total, power=1.0, final_lr=final_lr)


def cosine(base_lr: float, *, total: int, final_lr: float = 0.0) -> Schedule:
    """Half a cosine to `final_lr` at tick `total`, where it stays: CosineAnnealingLR, which rises again.

    `optax.cosine_decay_schedule`.
    """
    return warmup_cosine(base_lr, warmup=0, total=total, final_lr=final_lr)


def cosine_restarts(
    base_lr: float, *, period: float, total: int, cycle_factor: float = 1.0, final_lr: float = 0.0
) -> Schedule:
    """Half cosines to `final_lr`, the first `period` long, each other `cycle_factor` times the one before (SGDR).

    CosineAnnealingWarmRestarts, whose T_0 and T_mult are whole; with others a cycle begins at the tick nearest to where
    it should, so that every one begins at `base_lr`. After the last cycle that begins before `total` the rate stays.
    Not `optax.join_schedules`, which would compute all cycles at every tick.
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
    """Linear from `final_lr` up to `base_lr` and down again in `period` ticks, for ever: CyclicLR, triangular.

    Its base_lr is `final_lr` here, its max_lr `base_lr`, its step_size_up half a `period` (Smith 2017).
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

    As there the peak is at tick pct_start * total - 1 and the end at total - 1, where it stays;
    `optax.cosine_onecycle_schedule` has both one later. The momentum stays as it is, which OneCycleLR moves too unless
    told otherwise (Smith and Topin 2019).
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


# What goes around a schedule ------------------------------------------------------------------------------------------


def linear_warmup(schedule: Schedule, *, warmup: int, begin_lr: float = 1e-9) -> Schedule:
    """Linear from `begin_lr` to the first rate of `schedule` over `warmup` ticks, then `schedule` from its tick 0 on.

    SequentialLR of LinearLR and another; LinearLR can begin neither at 0 nor above the schedule's first rate.
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
    """A schedule of epochs as one of steps: all steps of an epoch get that epoch's value."""
    _expect(steps_per_epoch >= 1, steps_per_epoch=steps_per_epoch, expected="1 or more")
    return lambda step: schedule(step // steps_per_epoch)


def _passed(edges: np.ndarray, tick: jax.typing.ArrayLike) -> jax.Array:
    """How many of the ticks `edges` int [n] are at or before `tick`: whole numbers, so nothing is rounded."""
    return jnp.searchsorted(jnp.asarray(edges), tick, side="right", method="scan_unrolled")


def _of_float(schedule: Schedule) -> Schedule:
    """Of an int32 count Optax makes float32 even where x64 is on."""
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
    """The schedule of steps that `settings` describe: the warm-up, then the schedule for what is left of the run.

    --milestones are epochs of the run, warm-up and all; a --period begins after it. Both are rounded to whole ticks.
    That of "plateau" is without `Plateau`'s scale. Raises UserError for what only the number of steps can tell.
    """
    o, name = settings, settings.schedule
    epoch = 1 if o.per == "epoch" else steps_per_epoch
    total, warmup = _span(o, steps_per_epoch)
    try:
        if name in ("warmup_cosine", "article"):  # whose warm-up is a part of them
            ends = {"begin_lr": o.begin_lr, "final_lr": o.final_lr}
            schedule = SCHEDULES[name](o.learning_rate, warmup=warmup, total=total, **ends)
        else:
            first = o.rates if name == "piecewise_constant" else o.learning_rate
            schedule = SCHEDULES[name](first, **_options(o, epoch, total - warmup, warmup))
            schedule = linear_warmup(schedule, warmup=warmup, begin_lr=o.begin_lr)
    except ValueError as error:
        ticks = "epochs" if o.per == "epoch" else f"steps, {steps_per_epoch} an epoch"
        raise UserError(f"--schedule {name}, {total - warmup} {ticks} after the warm-up: {error}") from None
    return per_epoch(schedule, steps_per_epoch) if o.per == "epoch" else schedule


def _span(settings: Optimization, steps_per_epoch: int) -> tuple[int, int]:
    """Ticks of the whole run, and of its warm-up, which is at least one less."""
    o = settings
    epoch = 1 if o.per == "epoch" else steps_per_epoch
    total, warmup = o.epochs * epoch, o.warmup * epoch
    if o.steps is not None:
        steps = -(-o.steps * epoch // steps_per_epoch)
        warmup *= 1 if o.warmup_epochs is not None else steps / total  # an eighth stays an eighth
        total = steps
    return total, min(round(warmup), total - 1)


def _options(o: Optimization, epoch: int, total: int, warmup: int) -> dict[str, object]:
    """What the function of a schedule takes; `epoch`, `total` and `warmup` in ticks, `total` without the warm-up."""
    periods = {"factor": 10.0 * epoch, "exponential": float(total)}  # or else a cycle of four
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
