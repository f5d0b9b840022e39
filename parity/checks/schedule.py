"""Is the learning rate the reference's, at every epoch or step, past the last one, asked in any order and when resumed?

`article` is a table made in float64 with the reference's own order of operations, so the gate is equality in every
bit: as it stands in float64, and rounded once in float32. `constant` has one value, so equality too. `warmup_cosine`
is Optax's formula, which orders its operations otherwise than the textbook's, so the gate is an absolute error as a
part of the peak: five roundings of 1, 1e-15 in float64 and 3e-7 in float32. PyTorch's `CosineAnnealingLR` makes each
value from the one before, whose roundings add up over hundreds of steps: 1e-14 there. A relative error would say
nothing: in float32 cancellation leaves the first value 7 % off, of a rate of 1e-9.

All are asked as an optimizer asks them, under `jax.jit` with an int32 count, to 5 ticks beyond the last, for the
article's numbers and others. Past the end PyTorch's own rises again; jaxseg's stays, and is compared with its last.
Not seen here: whether a trainer asks for the rate of the right step, which is compared under `training`.
"""

import inspect
import typing
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np

from jaxseg import schedules
from jaxseg.config import Optimization
from jaxseg.schedules import Schedule
from parity import compare
from parity.answer import Answer, Settings
from parity.compare import Row
from parity.reference.scheduler import (
    WarmupCosineScheduler,
    hazards,
    textbook_warmup_cosine,
    torch_constant,
    torch_warmup_cosine,
)

QUESTION = "schedule"
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
BUILDS = {  # settings of a trainer; what should come of them: steps a tick, and how many ticks warm-up and run have
    "warmup_cosine, by steps": (Optimization(epochs=16), 1, 14, 112),
    "warmup_cosine, by epochs": (Optimization(epochs=16, schedule_per="epoch"), 7, 2, 16),
    "warmup_cosine, 1 epoch": (Optimization(epochs=1, begin_lr=1e-4), 1, 1, 7),
    "warmup_cosine, warm-up of 1.5": (Optimization(epochs=6, warmup_epochs=1.5, final_lr=1e-4), 1, 10, 42),
    "article, by epochs": (Optimization(schedule="article", learning_rate=1e-2), 7, 5, 40),
    "article, by steps": (Optimization(schedule="article", epochs=8, schedule_per="step"), 1, 7, 56),
    "article, no warm-up": (Optimization(schedule="article", epochs=9, warmup_epochs=0.0), 7, 0, 9),
    "constant, by steps": (Optimization(schedule="constant", epochs=3), 1, 0, 21),
    "constant, by epochs": (Optimization(schedule="constant", epochs=3, schedule_per="epoch"), 7, 0, 3),
}

Case = tuple[float, int, int, float, float]
Rates = dict[str, np.ndarray]
EXACT: dict[bool, float] = {True: 0.0, False: 0.0}  # gates as a part of the peak, by whether in float64
COSINE = {True: 1e-15, False: 3e-7}
OWN = 1e-14


class Curve(NamedTuple):
    """A schedule of jaxseg, the rates that it should give at ticks 0, 1, ..., and how near."""

    schedule: Schedule
    expected: np.ndarray
    gates: dict[bool, float]


def run(settings: Settings) -> Answer:
    """The schedule question; the seed orders the ticks where they are asked for out of order.

    Evidence: {"epochs": [...], "curves": [{"name", "torch": [...], "jaxseg": [...]}], with the article's numbers, to 5
    epochs past the last; "hazards": {name: [what the article's class says then, what it says otherwise]}, and "share":
    the sum of its rates over that of one cosine}.
    """
    asked, rows, rates = curves(), [], {}
    for x64 in (True, False):
        with jax.enable_x64(x64):
            rates[x64] = ask(asked)
        rows += [group_row(group, asked, rates[x64], x64) for group in groups(asked)]
    rows += [*torch_rows(rates), *order_rows(settings.seed), every_schedule(asked)]
    return Answer(QUESTION, tuple(rows), evidence(rates[True]))


# What is asked --------------------------------------------------------------------------------------------------------


def curves() -> dict[str, Curve]:
    """Everything that is asked; names begin with the function of jaxseg that they are for."""
    out = {}
    for name, case in CASES.items():
        out[f"article: {name}"] = Curve(_of(schedules.article, case), article(case), EXACT)
        out[f"warmup_cosine: {name}"] = Curve(_of(schedules.warmup_cosine, case), textbook(case), COSINE)
    out["constant: 0.0003"] = Curve(schedules.constant(3e-4), constant((3e-4, 0, 15, 0, 0)), EXACT)
    for name in ("article", "warmup_cosine"):
        schedule, expected, gates = out[f"{name}: {ARTICLE}"]
        by_steps = schedules.per_epoch(schedule, STEPS_PER_EPOCH)
        out[f"per_epoch: {name}"] = Curve(by_steps, expected.repeat(STEPS_PER_EPOCH), gates)
    return out | {f"build: {name}": built(*case) for name, case in BUILDS.items()}


def built(settings: Optimization, steps: int, warmup: int, total: int) -> Curve:
    """What `schedules.build` makes of a trainer's settings, against the reference asked as the article asks: at the
    start of every tick, which then holds for so many `steps`.
    """
    kinds = {"article": (article, EXACT), "warmup_cosine": (textbook, COSINE), "constant": (constant, EXACT)}
    rates, gates = kinds[settings.schedule]
    case = (settings.learning_rate, warmup, total, settings.begin_lr, settings.final_lr)
    return Curve(schedules.build(settings, STEPS_PER_EPOCH), rates(case).repeat(steps), gates)


def article(case: Case) -> np.ndarray:
    """The rates of the article's class, asked once a tick and in order, to BEYOND the last."""
    scheduler = WarmupCosineScheduler(*case)
    return np.array([scheduler(tick) for tick in range(case[2] + BEYOND)])


def textbook(case: Case) -> np.ndarray:
    """One cosine, which stays at its end."""
    return np.array([textbook_warmup_cosine(tick, *case) for tick in range(case[2] + BEYOND)])


def constant(case: Case) -> np.ndarray:
    """The peak, by PyTorch's ConstantLR."""
    return np.array(torch_constant(case[2] + BEYOND, case[0]))


def _of(schedule: Callable[..., Schedule], case: Case) -> Schedule:
    base_lr, warmup, total, begin_lr, final_lr = case
    return schedule(base_lr, warmup=warmup, total=total, begin_lr=begin_lr, final_lr=final_lr)


def ask(asked: Mapping[str, Curve]) -> Rates:
    """The rates of each schedule at all ticks, compiled, of one int32 count after the other."""
    ticks = np.arange(max(len(curve.expected) for curve in asked.values()), dtype=np.int32)
    every = jax.jit(lambda ticks: jax.lax.map(lambda t: {name: c.schedule(t) for name, c in asked.items()}, ticks))
    return {name: np.asarray(rates)[: len(asked[name].expected)] for name, rates in every(ticks).items()}


def groups(asked: Mapping[str, Curve]) -> list[str]:
    """The functions of jaxseg that are asked."""
    return list(dict.fromkeys(name.split(": ")[0] for name in asked))


# Rows -----------------------------------------------------------------------------------------------------------------


def group_row(group: str, asked: Mapping[str, Curve], rates: Rates, x64: bool) -> Row:
    """All schedules of one function."""
    rows, dtype = [], np.dtype(np.float64 if x64 else np.float32)
    for name in (name for name in asked if name.split(": ")[0] == group):
        (_, expected, gates), found = asked[name], rates[name]
        if gates is EXACT:
            rows.append(compare.equal_bytes(QUESTION, name, found, expected.astype(dtype)))
        else:
            sides = (array.astype(np.float64) / expected.max() for array in (found, expected))
            rows.append(compare.close(QUESTION, name, *sides, gates[x64], measure=compare.max_abs))
    return compare.worst_of(QUESTION, f"{group}, {dtype}", rows, note=notes(rates)[group])


def notes(rates: Rates) -> dict[str, str]:
    """What there is to say about the rows of a function."""
    case = CASES[ARTICLE]
    product, cosine, first = article(case), textbook(case), float(rates[f"warmup_cosine: {ARTICLE}"][0])
    tenth = [int(np.argmax((curve < case[0] / 10) & (np.arange(len(curve)) > case[1]))) for curve in (product, cosine)]
    return {
        "article": f"a running product of cosines: below a tenth of the peak at epoch {tenth[0]} (one cosine: "
        f"{tenth[1]}), sum of the rates {share():.3f} of the cosine's",
        "warmup_cosine": f"of the peak; textbook cosine; first value {abs(first / case[3] - 1):.1%} off 1e-9, harmless",
        "constant": "PyTorch's ConstantLR",
        "per_epoch": f"{STEPS_PER_EPOCH} steps an epoch, all at that epoch's rate",
        "build": f"{len(BUILDS)} settings of a trainer, against the reference asked once an epoch or step",
    }


def torch_rows(rates: Mapping[bool, Rates]) -> list[Row]:
    """`warmup_cosine` against PyTorch's own, which is held at its last rate where it would rise again."""
    own = {name: np.array(torch_warmup_cosine(c[2] + BEYOND, *c)) for name, c in CASES.items() if c[3] > 0}
    note = f"past the end PyTorch's rises again, to {own[ARTICLE][-1]:.3g} at epoch {len(own[ARTICLE]) - 1}"
    rows = []
    for x64, gate in ((True, OWN), (False, COSINE[False])):
        found, expected = {}, {}
        for name, curve in own.items():
            peak, total = CASES[name][0], CASES[name][2]
            found[name] = rates[x64][f"warmup_cosine: {name}"].astype(np.float64) / peak
            expected[name] = curve[np.minimum(np.arange(len(curve)), total)] / peak
        name = f"warmup_cosine, float{64 if x64 else 32}, PyTorch's own"
        rows.append(compare.close(QUESTION, name, found, expected, gate, measure=compare.max_abs, note=note))
    return rows


def order_rows(seed: int) -> list[Row]:
    """Asked twice and out of order, or made anew and asked from the middle on, schedules say what they say in order."""
    ticks = np.arange(0, 45, 3)
    in_order = ask_one_by_one(ticks)
    picks = {
        "asked twice and out of order": np.random.default_rng(seed).permutation(np.arange(len(ticks)).repeat(2)),
        "made anew, asked from the middle on": np.arange(len(ticks) // 2, len(ticks)),
    }
    rows = []
    for (name, pick), (hazard, (then, otherwise)) in zip(picks.items(), hazards().items()):
        expected = {group: rates[pick] for group, rates in in_order.items()}
        note = f"the article's class, {hazard}, says {then:.5g} for {otherwise:.5g}: {then / otherwise:.2f} times that"
        rows.append(compare.equal_bytes(QUESTION, name, ask_one_by_one(ticks[pick]), expected, note))
    return rows


def ask_one_by_one(ticks: np.ndarray) -> Rates:
    """The rates at some ticks, in this order, of a newly made schedule of each function.

    Not compiled, for a compiled one can have no memory.
    """
    asked = curves()
    first = {group: next(name for name in asked if name.startswith(group)) for group in groups(asked)}
    with jax.enable_x64(False):
        return {g: np.array([asked[name].schedule(int(tick)) for tick in ticks]) for g, name in first.items()}


def every_schedule(asked: Mapping[str, Curve]) -> Row:
    """No function of jaxseg's and no choice of the trainer's is left out."""
    public = {name for name, f in vars(schedules).items() if inspect.isfunction(f) and name[0] != "_"}
    here = {name for name in public if getattr(schedules, name).__module__ == schedules.__name__}
    choices = {*typing.get_args(typing.get_type_hints(Optimization)["schedule"]), *schedules.SCHEDULES}
    built = {settings.schedule for settings, *_ in BUILDS.values()}
    left_out = sorted((here - set(groups(asked))) | (choices ^ built))
    note = f"{len(groups(asked))} functions, {len(choices)} choices"
    return compare.at_most(QUESTION, "none left out", len(left_out), 0, note, ", ".join(left_out))


def share() -> float:
    """The sum of the article's rates over that of one cosine."""
    return float(article(CASES[ARTICLE]).sum() / textbook(CASES[ARTICLE]).sum())


def evidence(rates: Rates) -> dict:
    """See `run`."""
    case = CASES[ARTICLE]
    sides = {"article": article(case).tolist(), "warmup_cosine": torch_warmup_cosine(case[2] + BEYOND, *case)}
    drawn = [{"name": n, "torch": own, "jaxseg": rates[f"{n}: {ARTICLE}"].tolist()} for n, own in sides.items()]
    epochs = list(range(case[2] + BEYOND))
    return {"epochs": epochs, "curves": drawn, "hazards": {n: list(r) for n, r in hazards().items()}, "share": share()}
