"""The learning rate as a function of the step: `schedule(step) -> lr`, as Optax wants it.

`warmup_cosine` is Optax's; `article` is what the article's scheduler class really computes. Both count *ticks*, which
are epochs or steps: `per_epoch` turns a schedule of epochs into one of steps.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxseg.config import Optimization

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
    _check(base_lr, warmup, total, begin_lr, final_lr)
    if warmup == 0:
        schedule = optax.cosine_decay_schedule(base_lr, total, alpha=final_lr / base_lr if base_lr else 0.0)
    else:
        schedule = optax.warmup_cosine_decay_schedule(begin_lr, base_lr, warmup, total, final_lr)
    return lambda tick: schedule(jnp.asarray(tick, float))  # of an int32 count Optax makes float32 even where x64 is on


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
    _check(base_lr, warmup, total, begin_lr, final_lr)
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
        return jnp.asarray(table)[jnp.clip(tick, 0, total)]

    return schedule


def constant(value: float) -> Schedule:
    """`value` at every tick."""
    return optax.constant_schedule(value)


def per_epoch(schedule: Schedule, steps_per_epoch: int) -> Schedule:
    """A schedule of epochs as one of steps: all steps of an epoch get that epoch's value."""
    if steps_per_epoch < 1:
        raise ValueError(f"`steps_per_epoch` is {steps_per_epoch}; expected 1 or more")
    return lambda step: schedule(step // steps_per_epoch)


def _check(base_lr: float, warmup: int, total: int, begin_lr: float, final_lr: float) -> None:
    if not 0 <= warmup < total:
        raise ValueError(f"`warmup` is {warmup} and `total` {total}; expected 0 <= warmup < total")
    for name, value in (("base_lr", base_lr), ("begin_lr", begin_lr), ("final_lr", final_lr)):
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"`{name}` is {value}; expected a finite number of 0 or more")


SCHEDULES = {"warmup_cosine": warmup_cosine, "article": article}


def build(settings: Optimization, steps_per_epoch: int) -> Schedule:
    """The schedule of steps that `settings` describe."""
    if settings.schedule == "constant":
        return constant(settings.learning_rate)
    ticks = 1 if settings.per == "epoch" else steps_per_epoch
    total = settings.epochs * ticks
    schedule = SCHEDULES[settings.schedule](
        settings.learning_rate,
        warmup=min(round(settings.warmup * ticks), total - 1),
        total=total,
        begin_lr=settings.begin_lr,
        final_lr=settings.final_lr,
    )
    return per_epoch(schedule, steps_per_epoch) if settings.per == "epoch" else schedule
