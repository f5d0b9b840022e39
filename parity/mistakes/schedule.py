"""Learning rates of the wrong step or of another curve."""

import math

import jax.numpy as jnp
import optax

from jaxseg.learn import schedules
from parity.mistakes import mistake


def shifted(by: int):
    """Returns the rate of another tick."""
    return lambda right: lambda *args, **kwargs: lambda tick: right(*args, **kwargs)(tick + by)


def rewritten(curve):
    """Replaces the curve by `curve(tick, base, warmup, total, begin, final)`."""

    def wrong(right):
        def schedule(base_lr, *, warmup=5, total=40, begin_lr=1e-9, final_lr=1e-9):
            return lambda tick: curve(jnp.asarray(tick, float), base_lr, warmup, total, begin_lr, final_lr)

        return schedule

    return wrong


def cosine(tick, base, warmup, total, begin, final):
    """Warm-up, then half a cosine."""
    rise = begin + (base - begin) * tick / max(warmup, 1)
    progress = jnp.clip((tick - warmup) / (total - warmup), 0, 1)
    return jnp.where(tick < warmup, rise, final + (base - final) * (1 + jnp.cos(math.pi * progress)) / 2)


def without_warmup(right):
    """Takes Optax's decay_steps for the ticks after the warm-up."""

    def schedule(base_lr, *, warmup=5, total=40, begin_lr=1e-9, final_lr=1e-9):
        wrong = optax.warmup_cosine_decay_schedule(begin_lr, base_lr, warmup, total - warmup, final_lr)
        return lambda tick: wrong(jnp.asarray(tick, float))

    return schedule


def rises_again(tick, base, warmup, total, begin, final):
    """Warm-up, then a cosine that rises again past its end, as PyTorch's CosineAnnealingLR does."""
    rise = begin + (base - begin) * tick / max(warmup, 1)
    angle = math.pi * (tick - warmup) / (total - warmup)
    return jnp.where(tick < warmup, rise, final + (base - final) * (1 + jnp.cos(angle)) / 2)


def to_zero(tick, base, warmup, total, begin, final):
    """Warm-up, then half a cosine that ends at 0."""
    return cosine(tick, base, warmup, total, begin, 0.0)


def from_zero(tick, base, warmup, total, begin, final):
    """Warm-up from 0, then half a cosine."""
    return cosine(tick, base, warmup, total, 0.0, final)


def rounded(right):
    """Rounds rates to float16."""
    return lambda *args, **kwargs: (
        lambda tick: jnp.asarray(right(*args, **kwargs)(tick)).astype(jnp.float16).astype(float)
    )


def with_memory(right):
    """Counts its own calls, as a stateful scheduler does."""

    def make(*args, **kwargs):
        schedule, calls = right(*args, **kwargs), []

        def rate(tick):
            calls.append(tick)
            return schedule(tick) * (1 - len(calls) / 1000)

        return rate

    return make


def given(**wrong):
    """Changes arguments: each is computed from the right ones by a function, or left out for None."""

    def break_it(right):
        def schedule(*args, **kwargs):
            changed = {name: make(kwargs) for name, make in wrong.items() if make is not None}
            kept = {name: value for name, value in kwargs.items() if name not in wrong}
            return right(*args, **kept, **changed)

        return schedule

    return break_it


def one_late(right):
    """Delays each milestone by one tick."""
    return lambda edges, tick: right(edges, jnp.asarray(tick) - 1)


def optax_staircase(right):
    """Uses Optax's staircase, which takes the floor of a floating-point quotient."""

    def schedule(base_lr, *, period, total, gamma=0.1, final_lr=0.0):
        return optax.exponential_decay(base_lr, period, gamma, staircase=True, end_value=final_lr)

    return schedule


def optax_polynomial(right):
    """Uses Optax's polynomial, whose base is below 0 at the end and its power NaN."""

    def schedule(base_lr, *, total, power=0.9, final_lr=0.0):
        wrong = optax.polynomial_schedule(base_lr, final_lr, power, total)
        return lambda tick: wrong(jnp.asarray(tick, float))

    return schedule


def optax_one_cycle(right):
    """Uses Optax's one-cycle schedule, whose peak and end come one tick late."""

    def schedule(base_lr, *, total, final_lr=0.0):
        wrong = optax.cosine_onecycle_schedule(total, base_lr, 0.3, 25.0, base_lr / 25 / final_lr)
        return lambda tick: wrong(jnp.asarray(tick, float))

    return schedule


def rises_again_too(right):
    """Lets the cosine rise again past its end, as CosineAnnealingLR does."""

    def schedule(base_lr, *, total, final_lr=0.0):
        angle = math.pi / total
        return lambda tick: final_lr + (base_lr - final_lr) * (1 + jnp.cos(angle * jnp.asarray(tick, float))) / 2

    return schedule


def counted_twice(right):
    """Counts the ticks of the warm-up in the schedule after it too."""

    def warm_up(schedule, *, warmup, begin_lr=1e-9):
        warmed_up = right(schedule, warmup=warmup, begin_lr=begin_lr)
        return lambda tick: jnp.where(jnp.asarray(tick) < warmup, warmed_up(tick), schedule(tick))

    return warm_up


def to_the_peak(right):
    """Warms up to the largest rate instead of the first."""

    def warm_up(schedule, *, warmup, begin_lr=1e-9):
        peak = max(float(schedule(tick)) for tick in range(30))
        rise = optax.linear_schedule(begin_lr, peak, max(warmup, 1))
        return lambda tick: jnp.where(
            jnp.asarray(tick) < warmup, rise(jnp.asarray(tick, float)), right(schedule, warmup=warmup)(tick)
        )

    return warm_up


def unique(arguments):
    """Milestones without repetitions."""
    return tuple(dict.fromkeys(arguments["milestones"]))


def whole_run(right):
    """Gives the schedule the ticks of the whole run, with the warm-up."""
    return lambda o, epoch, total, warmup: right(o, epoch, total + warmup, warmup)


def later_milestones(right):
    """Counts milestones from the end of the warm-up."""
    return lambda o, epoch, total, warmup: right(o, epoch, total, 0)


def plateau(**wrong):
    """Changes arguments of Plateau."""
    return lambda right: lambda *args, **kwargs: right(*args, **kwargs | {n: f(kwargs) for n, f in wrong.items()})


def nan_is_better(right):
    """Treats NaN as the best metric."""

    def update(self, metric):
        return right(self, metric if metric == metric else float("inf"))

    return update


def rounded_down(right):
    """Rounds milestones and the period of "factor" down to whole ticks."""

    def options(o, epoch, total, warmup):
        found, milestones = right(o, epoch, total, warmup), tuple(int(at * epoch) - warmup for at in o.milestones)
        if o.schedule == "factor" and o.period is not None:
            found["period"] = int(o.period * epoch)
        return found | ({"milestones": milestones} if "milestones" in found else {})

    return options


MISTAKES = [
    mistake("article: one tick late", schedules, "article", shifted(-1)),
    mistake("article: one tick early", schedules, "article", shifted(1)),
    mistake("article: compounding removed", schedules, "article", rewritten(cosine)),
    mistake("article: rates in float16", schedules, "article", rounded),
    mistake("warmup_cosine: one tick early", schedules, "warmup_cosine", shifted(1)),
    mistake("warmup_cosine: decay_steps without the warm-up", schedules, "warmup_cosine", without_warmup),
    mistake("warmup_cosine: rises again after the end", schedules, "warmup_cosine", rewritten(rises_again)),
    mistake("warmup_cosine: falls to 0", schedules, "warmup_cosine", rewritten(to_zero)),
    mistake("warmup_cosine: rises from 0", schedules, "warmup_cosine", rewritten(from_zero)),
    mistake(
        "per_epoch: changes half an epoch early",
        schedules,
        "per_epoch",
        lambda right: lambda schedule, steps: lambda step: schedule((step + steps // 2) // steps),
    ),
    mistake(
        "per_epoch: one step late",
        schedules,
        "per_epoch",
        lambda right: lambda schedule, steps: lambda step: schedule((step - 1) // steps),
    ),
    mistake("piecewise_constant, factor, multi_factor: milestones a tick late", schedules, "_passed", one_late),
    mistake(
        "piecewise_constant: rates from the second on",
        schedules,
        "piecewise_constant",
        lambda right: lambda rates, *, milestones: right([*rates[1:], rates[-1]], milestones=milestones),
    ),
    mistake("factor: Optax's staircase", schedules, "factor", optax_staircase),
    mistake("factor: no lowest rate", schedules, "factor", given(final_lr=None)),
    mistake("multi_factor: the same milestone twice is once", schedules, "multi_factor", given(milestones=unique)),
    mistake("exponential: gamma of a tick", schedules, "exponential", given(period=lambda k: 1.0)),
    mistake("linear: to 0", schedules, "linear", given(final_lr=None)),
    mistake("linear: one tick short", schedules, "linear", given(total=lambda k: k["total"] - 1)),
    mistake("polynomial: Optax's, NaN at the end", schedules, "polynomial", optax_polynomial),
    mistake("polynomial: power left at 1", schedules, "polynomial", given(power=lambda k: 1.0)),
    mistake("cosine: rises again after the end", schedules, "cosine", rises_again_too),
    mistake("cosine_restarts: a tick late", schedules, "cosine_restarts", shifted(-1)),
    mistake("cosine_restarts: all cycles alike", schedules, "cosine_restarts", given(cycle_factor=None)),
    mistake("cosine_restarts: ends at 0", schedules, "cosine_restarts", given(final_lr=None)),
    mistake("cyclic: the period is of the way up", schedules, "cyclic", given(period=lambda k: 2 * k["period"])),
    mistake("cyclic: half a period on", schedules, "cyclic", shifted(10)),
    mistake("one_cycle: Optax's", schedules, "one_cycle", optax_one_cycle),
    mistake("one_cycle: begins at a tenth", schedules, "one_cycle", given(div_factor=lambda k: 10.0)),
    mistake("linear_warmup: counted twice", schedules, "linear_warmup", counted_twice),
    mistake("linear_warmup: to the peak, not to the first rate", schedules, "linear_warmup", to_the_peak),
    mistake("linear_warmup: from 0", schedules, "linear_warmup", given(begin_lr=lambda k: 0.0)),
    mistake(
        "linear_warmup: one tick short", schedules, "linear_warmup", given(warmup=lambda k: max(k["warmup"] - 1, 0))
    ),
    mistake("schedule_from: the run not shortened by the warm-up", schedules, "_options", whole_run),
    mistake("schedule_from: milestones counted from the end of the warm-up", schedules, "_options", later_milestones),
    mistake("constant: rates in float16", schedules, "constant", rounded),
    mistake("linear: remembers its calls", schedules, "linear", with_memory),
    mistake(
        "a choice without a counterpart", schedules, "SCHEDULES", lambda right: right | {"other": schedules.linear}
    ),
    mistake("Plateau: patience one less", schedules, "Plateau", plateau(patience=lambda k: max(k["patience"] - 1, 0))),
    mistake("Plateau: patience one more", schedules, "Plateau", plateau(patience=lambda k: k["patience"] + 1)),
    mistake("Plateau: no lowest rate", schedules, "Plateau", plateau(final_lr=lambda k: 0.0)),
    mistake("Plateau: forgets what was before a resumption", schedules, "Plateau", plateau(state=lambda k: None)),
    mistake("Plateau: any better metric counts", schedules.Plateau, "THRESHOLD", lambda right: 0.0),
    mistake("Plateau: NaN is better", schedules.Plateau, "update", nan_is_better),
    mistake("schedule_from: milestones rounded down", schedules, "_options", rounded_down),
]
