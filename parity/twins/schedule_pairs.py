"""Schedules of jaxseg, each with the rates that it should give.

jaxseg's functions are looked up by name when a schedule is made, so an injected mistake takes effect.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import jax
import numpy as np

from jaxseg.base.config import Optimization
from jaxseg.learn import schedules
from jaxseg.learn.schedules import Schedule
from parity.reference.scheduler import WarmupCosineScheduler, textbook_warmup_cosine, torch_rates
from parity.reference.training import learning_rates

STEPS_PER_EPOCH = 7
BEYOND = 5  # ticks after the last
ARTICLE = "article's 40 epochs"
CASES = {  # peak, warm-up, total, first and final learning rate
    ARTICLE: (1e-2, 5, 40, 1e-9, 1e-9),
    "peak 0.001": (1e-3, 5, 40, 1e-9, 1e-9),
    "high ends": (0.3, 3, 17, 1e-5, 1e-3),
    "no warm-up": (1e-2, 0, 12, 1e-9, 0.0),
    "from 0": (1e-2, 4, 12, 0.0, 1e-4),
    "48 of 576 steps": (1e-3, 48, 576, 1e-9, 1e-9),
}
BUILDS = {  # settings of a trainer; expected: steps in a tick, ticks of warm-up, ticks of the run
    "warmup_cosine, by steps": (Optimization(epochs=16), 1, 14, 112),
    "warmup_cosine, by epochs": (Optimization(epochs=16, schedule_per="epoch"), 7, 2, 16),
    "warmup_cosine, 1 epoch": (Optimization(epochs=1, begin_lr=1e-4), 1, 1, 7),
    "warmup_cosine, warm-up of 1.5": (Optimization(epochs=6, warmup_epochs=1.5, final_lr=1e-4), 1, 10, 42),
    "warmup_cosine, 80 steps": (Optimization(epochs=16, steps=80), 1, 10, 80),
    "article, by epochs": (Optimization(schedule="article", learning_rate=1e-2), 7, 5, 40),
    "article, by steps": (Optimization(schedule="article", epochs=8, schedule_per="step"), 1, 7, 56),
    "article, no warm-up": (Optimization(schedule="article", epochs=9, warmup_epochs=0.0), 7, 0, 9),
    "article, 53 steps": (Optimization(schedule="article", steps=53), 7, 1, 8),
    "constant, by steps": (Optimization(schedule="constant", epochs=3), 1, 0, 21),
    "constant, by epochs": (Optimization(schedule="constant", epochs=3, schedule_per="epoch"), 7, 0, 3),
}
# Cases of the functions that follow one of PyTorch's schedulers: (ticks asked, arguments of both sides).
OWN_CASES = {
    "piecewise_constant": [
        (20, {"rates": (0.02, 0.3, 0.001), "milestones": (5, 12)}),
        (9, {"rates": (0.1, 0.05, 0.07), "milestones": (4, 4)}),
    ],
    "factor": [
        (60, {"base_lr": 0.1, "period": 10, "gamma": 0.1, "total": 60}),
        (180, {"base_lr": 0.1, "period": 41, "gamma": 0.7, "total": 180}),  # Optax's staircase is late in float32
        (20, {"base_lr": 0.1, "period": 3, "gamma": 0.5, "total": 20, "final_lr": 0.01}),
    ],
    "multi_factor": [
        (40, {"base_lr": 0.3, "milestones": (4, 20, 33), "gamma": 0.1}),
        (30, {"base_lr": 0.3, "milestones": (8, 15, 15, 22), "gamma": 0.4, "final_lr": 0.01}),
    ],
    "exponential": [
        (60, {"base_lr": 0.01, "period": 20.0, "gamma": 0.1}),
        (40, {"base_lr": 0.01, "period": 7.5, "gamma": 0.5, "final_lr": 0.002}),
    ],
    "linear": [(30, {"base_lr": 0.01, "total": 30}), (17, {"base_lr": 0.3, "total": 17, "final_lr": 0.1})],
    "polynomial": [
        (50, {"base_lr": 0.01, "total": 50, "power": 0.9}),
        (23, {"base_lr": 0.1, "total": 23, "power": 2.0, "final_lr": 0.02}),
    ],
    "cosine": [(40, {"base_lr": 0.01, "total": 40}), (17, {"base_lr": 0.3, "total": 17, "final_lr": 0.05})],
    "cosine_restarts": [
        (40, {"base_lr": 0.01, "total": 40, "period": 10.0}),
        (70, {"base_lr": 0.1, "total": 70, "period": 10.0, "cycle_factor": 2.0, "final_lr": 0.001}),
        (53, {"base_lr": 0.1, "total": 53, "period": 6.5, "cycle_factor": 1.5, "final_lr": 0.02}),
    ],
    "cyclic": [
        (50, {"base_lr": 0.01, "period": 20.0, "final_lr": 0.001}),
        (40, {"base_lr": 0.1, "period": 7.0}),  # its peak is between two ticks
    ],
    "one_cycle": [
        (100, {"base_lr": 0.01, "total": 100, "final_lr": 4e-8}),  # PyTorch's own final_div_factor, 1e4
        (37, {"base_lr": 0.3, "total": 37, "final_lr": 0.001}),
    ],
}
RECIPES = {  # settings of a trainer for them
    "constant": {},
    "piecewise_constant": {"rates": (0.02, 0.3, 0.001), "milestones": (3.7, 5.0)},
    "factor": {"period": 1.7, "gamma": 0.5},
    "multi_factor": {"milestones": (3.0, 5.7), "gamma": 0.2},
    "exponential": {"gamma": 0.02},
    "linear": {"final_lr": 0.003},
    "polynomial": {},
    "cosine": {"final_lr": 0.003},
    "cosine_restarts": {"cycle_factor": 2.0},
    "cyclic": {"period": 3.0, "final_lr": 0.003},
    "one_cycle": {},
    "plateau": {},  # the rate before scaling; `Plateau` holds the scale
}
WARMUPS = {"step": 1.5, "epoch": 2.0}  # epochs

Case = tuple[float, int, int, float, float]
Rates = dict[str, np.ndarray]
EXACT: dict[bool, float] = {True: 0.0, False: 0.0}  # gates relative to the peak; True for float64, False for float32
COSINE = {True: 1e-15, False: 3e-7}
OWN = {True: 1e-14, False: 3e-7}


class Curve(NamedTuple):
    """A schedule of jaxseg, its expected rates at ticks 0, 1, ..., and the gates."""

    schedule: Schedule
    expected: np.ndarray
    gates: dict[bool, float]


def curves() -> dict[str, Curve]:
    """Everything that is asked; each name begins with the function of jaxseg that it tests."""
    out = {}
    for name, case in CASES.items():
        out[f"article: {name}"] = Curve(_of(schedules.article, case), article(case), EXACT)
        out[f"warmup_cosine: {name}"] = Curve(_of(schedules.warmup_cosine, case), textbook(case), COSINE)
    out["constant: 0.0003"] = Curve(schedules.constant(3e-4), constant((3e-4, 0, 15, 0, 0)), EXACT)
    out |= own_curves() | warmed_up()
    for name in ("article", "warmup_cosine"):
        schedule, expected, gates = out[f"{name}: {ARTICLE}"]
        by_steps = schedules.per_epoch(schedule, STEPS_PER_EPOCH)
        out[f"per_epoch: {name}"] = Curve(by_steps, expected.repeat(STEPS_PER_EPOCH), gates)
    out |= {f"schedule_from: {name}": built(*case) for name, case in BUILDS.items()}
    return out | {f"schedule_from: {name}": Curve(*case, OWN) for name, *case in recipes()}


def own_curves() -> dict[str, Curve]:
    """Functions that follow one of PyTorch's schedulers, without a warm-up."""
    out = {}
    for name, cases in OWN_CASES.items():
        for ticks, arguments in cases:
            gates = EXACT if name in ("factor", "multi_factor") else OWN
            expected = np.array(past_the_end(name, ticks, arguments))
            out[f"{name}: {_text(arguments)}"] = Curve(_made(name, arguments), expected, gates)
    return out


def past_the_end(name: str, ticks: int, arguments: dict) -> list[float]:
    """PyTorch's rates, to BEYOND the last tick; where jaxseg differs past the end, the rate that it should hold."""
    final = arguments.get("final_lr", 0.0)
    if name in ("cosine", "one_cycle"):
        return theirs(name, ticks, arguments) + [final] * BEYOND
    if name == "factor":
        rates = theirs(name, ticks, arguments)
        return rates + rates[-1:] * BEYOND
    # a cycle may last past the end, so it is not asked there
    return theirs(name, ticks + BEYOND * (name != "cosine_restarts"), arguments)


def theirs(name: str, ticks: int, arguments: Mapping, **warmup: float) -> list[float]:
    """PyTorch's rates for the arguments of jaxseg's function."""
    rates = {"base_lr": arguments["rates"][0]} if "rates" in arguments else {}
    return torch_rates(name, ticks, **{"total": ticks, **arguments, **rates, **warmup})


def warmed_up() -> dict[str, Curve]:
    """A warm-up before each function: from a small rate, from 0, and from above the first rate."""
    out = {}
    for name, cases in {"constant": [(9, {"value": 0.02})], **OWN_CASES}.items():
        ticks, arguments = cases[-1]
        asked = {"base_lr": arguments["value"]} if name == "constant" else arguments
        for begin_lr in (1e-5, 0.0) if name == "cosine" else (1e-5,):
            schedule = schedules.linear_warmup(_made(name, arguments), warmup=6, begin_lr=begin_lr)
            expected = theirs(name, 6 + ticks, {"total": ticks, **asked}, warmup=6, begin_lr=begin_lr)
            out[f"linear_warmup: {name} from {begin_lr:g}"] = Curve(schedule, np.array(expected), OWN)
    return out


def recipes() -> Iterator[tuple[str, Schedule, np.ndarray]]:
    """`schedule_from` for each of RECIPES, by steps and by epochs, with and without warm-up, and PyTorch's rates."""
    for name, options in RECIPES.items():
        for per, epochs in WARMUPS.items():
            for warmup in (0.0, epochs):
                how = {"schedule": name, "schedule_per": per, "warmup_epochs": warmup, "begin_lr": 1e-5}
                settings = Optimization(epochs=8, learning_rate=0.02, **how, **options)
                schedule = schedules.schedule_from(settings, STEPS_PER_EPOCH)
                if name == "plateau":
                    settings = dataclasses.replace(settings, schedule="constant")
                expected = np.array(learning_rates(settings, STEPS_PER_EPOCH))
                yield f"{name}, by {per}s, warm-up of {warmup:g}", schedule, expected


def built(settings: Optimization, steps: int, warmup: int, total: int) -> Curve:
    """`schedule_from` for a trainer's settings, and the reference asked once at the start of each tick.

    steps: steps in a tick, which all have its rate.
    warmup, total: ticks of the warm-up and of the run.
    """
    kinds = {"article": (article, EXACT), "warmup_cosine": (textbook, COSINE), "constant": (constant, EXACT)}
    rates, gates = kinds[settings.schedule]
    case = (settings.learning_rate, warmup, total, settings.begin_lr, settings.final_lr)
    return Curve(schedules.schedule_from(settings, STEPS_PER_EPOCH), rates(case).repeat(steps), gates)


def article(case: Case) -> np.ndarray:
    """Rates of the article's class, asked once a tick and in order, to BEYOND the last."""
    scheduler = WarmupCosineScheduler(*case)
    return np.array([scheduler(tick) for tick in range(case[2] + BEYOND)])


def textbook(case: Case) -> np.ndarray:
    """Rates of the textbook cosine, which keeps its last value."""
    return np.array([textbook_warmup_cosine(tick, *case) for tick in range(case[2] + BEYOND)])


def constant(case: Case) -> np.ndarray:
    """Rates of PyTorch's ConstantLR, all equal to the peak."""
    return np.array(torch_rates("constant", case[2] + BEYOND, case[0], total=case[2] + BEYOND))


def _of(schedule: Callable[..., Schedule], case: Case) -> Schedule:
    base_lr, warmup, total, begin_lr, final_lr = case
    return schedule(base_lr, warmup=warmup, total=total, begin_lr=begin_lr, final_lr=final_lr)


def _made(name: str, arguments: Mapping) -> Schedule:
    first, *rest = arguments.items()  # the first is positional
    return getattr(schedules, name)(first[1], **dict(rest))


def _text(arguments: Mapping) -> str:
    return ", ".join(f"{name} {value}" for name, value in arguments.items())


def ask(asked: Mapping[str, Curve]) -> Rates:
    """Rates of each schedule at all ticks, from one compiled function of an int32 count."""
    ticks = np.arange(max(len(curve.expected) for curve in asked.values()), dtype=np.int32)
    every = jax.jit(lambda ticks: jax.lax.map(lambda t: {name: c.schedule(t) for name, c in asked.items()}, ticks))
    return {name: np.asarray(rates)[: len(asked[name].expected)] for name, rates in every(ticks).items()}


def groups(asked: Mapping[str, Curve]) -> dict[str, dict[str, Curve]]:
    """Curves grouped by the function of jaxseg that they test."""
    out: dict[str, dict[str, Curve]] = {}
    for name, curve in asked.items():
        out.setdefault(name.split(": ")[0], {})[name] = curve
    return out
