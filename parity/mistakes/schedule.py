"""Learning rates of the wrong step, or of another curve."""

import math

import jax.numpy as jnp
import optax

from jaxseg import schedules
from parity.mutations import mistake


def shifted(by: int):
    """The rate of another tick."""
    return lambda right: lambda *args, **kwargs: lambda tick: right(*args, **kwargs)(tick + by)


def rewritten(curve):
    """Another curve between the same ends: `curve(tick, base, warmup, total, begin, final)`."""

    def wrong(right):
        def schedule(base_lr, *, warmup=5, total=40, begin_lr=1e-9, final_lr=1e-9):
            return lambda tick: curve(jnp.asarray(tick, float), base_lr, warmup, total, begin_lr, final_lr)

        return schedule

    return wrong


def cosine(tick, base, warmup, total, begin, final):
    """Warm-up, then one half of a cosine."""
    rise = begin + (base - begin) * tick / max(warmup, 1)
    progress = jnp.clip((tick - warmup) / (total - warmup), 0, 1)
    return jnp.where(tick < warmup, rise, final + (base - final) * (1 + jnp.cos(math.pi * progress)) / 2)


def without_warmup(right):
    """Optax's decay_steps taken for the ticks after the warm-up."""

    def schedule(base_lr, *, warmup=5, total=40, begin_lr=1e-9, final_lr=1e-9):
        wrong = optax.warmup_cosine_decay_schedule(begin_lr, base_lr, warmup, total - warmup, final_lr)
        return lambda tick: wrong(jnp.asarray(tick, float))

    return schedule


def rises_again(tick, base, warmup, total, begin, final):
    """A cosine that does not stop at its end, as PyTorch's CosineAnnealingLR."""
    rise = begin + (base - begin) * tick / max(warmup, 1)
    angle = math.pi * (tick - warmup) / (total - warmup)
    return jnp.where(tick < warmup, rise, final + (base - final) * (1 + jnp.cos(angle)) / 2)


def to_zero(tick, base, warmup, total, begin, final):
    """Ends at 0."""
    return cosine(tick, base, warmup, total, begin, 0.0)


def from_zero(tick, base, warmup, total, begin, final):
    """Warms up from 0."""
    return cosine(tick, base, warmup, total, 0.0, final)


def rounded(right):
    """Rates in float16."""
    return lambda *args, **kwargs: lambda tick: right(*args, **kwargs)(tick).astype(jnp.float16).astype(float)


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
]
