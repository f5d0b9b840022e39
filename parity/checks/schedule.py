"""The schedule question: is every learning rate the reference's, in any order, when resumed, and past the end?

Gates:

- `article`, `factor`, `multi_factor`: equality in every bit. They are float64 tables with the reference's order of
  operations; in float32 they are rounded once.
- `warmup_cosine`: 1e-15 in float64 and 3e-7 in float32, relative to the peak: five roundings of 1. Optax's formula has
  another order of operations than the textbook's.
- Curves compared with PyTorch's schedulers: 1e-14 in float64. Most compute each value from the one before, and the
  roundings add up over hundreds of steps.

Errors are absolute, as parts of the peak. A relative error would say nothing: in float32, cancellation leaves the
first value of `warmup_cosine` (1e-9) 7 % off.

Schedules are asked as an optimizer asks them: under `jax.jit` with an int32 count, to 5 ticks past the last, for the
article's numbers and others. Past the end jaxseg keeps the last value, where PyTorch's cosine rises again and
OneCycleLR raises. `Plateau`, which runs on the host, equals ReduceLROnPlateau in every bit.

Not seen: whether a trainer asks for the rate of the right step (see training).
"""

import inspect
import json
import typing
from collections.abc import Mapping

import jax
import numpy as np

from jaxseg.base.config import Optimization
from jaxseg.learn import schedules
from parity.judge import compare
from parity.judge.answer import Answer, Settings
from parity.judge.compare import Row
from parity.reference.scheduler import hazards, torch_plateau, torch_warmup_cosine
from parity.twins.schedule_pairs import (
    ARTICLE,
    BEYOND,
    BUILDS,
    CASES,
    EXACT,
    OWN,
    RECIPES,
    STEPS_PER_EPOCH,
    Curve,
    Rates,
    article,
    ask,
    curves,
    groups,
    textbook,
)

QUESTION = "schedule"
HISTORIES = 200  # series of metrics for Plateau


def run(settings: Settings) -> Answer:
    """Answers the schedule question; the seed shuffles the ticks that are asked out of order.

    Evidence, with the article's numbers, to 5 epochs past the last:

    - "epochs": [...]
    - "curves": [{"name", "torch": [...], "jaxseg": [...]}]
    - "hazards": {misuse: [rate of the article's class after it, the right rate]}
    - "share": sum of the article's rates over that of one cosine
    """
    asked, rows, rates = curves(), [], {True: {}, False: {}}
    for x64, of in rates.items():
        for group, its_curves in groups(asked).items():
            with jax.enable_x64(x64):
                of |= ask(its_curves)
            rows.append(group_row(group, its_curves, of, x64))
    rows += [*torch_rows(rates), plateau_row(settings.seed), *order_rows(settings.seed), every_schedule(asked)]
    return Answer(QUESTION, tuple(rows), evidence(rates[True]))


# Rows -----------------------------------------------------------------------------------------------------------------


def group_row(group: str, asked: Mapping[str, Curve], rates: Rates, x64: bool) -> Row:
    """Row for all schedules `asked` of one function."""
    rows, dtype = [], np.dtype(np.float64 if x64 else np.float32)
    for name, (_, expected, gates) in asked.items():
        found = rates[name]
        if gates is EXACT:
            rows.append(compare.equal_bytes(QUESTION, name, found, expected.astype(dtype)))
        else:
            sides = (array.astype(np.float64) / expected.max() for array in (found, expected))
            rows.append(compare.close(QUESTION, name, *sides, gates[x64], measure=compare.max_abs))
    return compare.worst_of(QUESTION, f"{group}, {dtype}", rows, note=note(group, rates))


def note(group: str, rates: Rates) -> str:
    """Note for the row of a function."""
    if group == "article":
        case = CASES[ARTICLE]
        places = np.arange(case[2] + BEYOND) > case[1]
        tenth = [int(np.argmax((curve < case[0] / 10) & places)) for curve in (article(case), textbook(case))]
        cosine = f"below a tenth of the peak at epoch {tenth[0]} (one cosine: {tenth[1]})"
        return f"a running product of cosines: {cosine}, sum of the rates {share():.3f} of the cosine's"
    if group == "warmup_cosine":
        first = float(rates[f"warmup_cosine: {ARTICLE}"][0])
        off = abs(first / CASES[ARTICLE][3] - 1)
        return f"relative to the peak; against the textbook cosine; first value {off:.1%} off 1e-9, harmless"
    return NOTES[group]


NOTES = {
    "constant": "PyTorch's ConstantLR",
    "piecewise_constant": "LambdaLR",
    "factor": "StepLR, equal in every bit; Optax's staircase is a tick late in float32 for every eighth period",
    "multi_factor": "MultiStepLR, equal in every bit",
    "exponential": "ExponentialLR, whose gamma is for one tick",
    "linear": "LinearLR",
    "polynomial": "PolynomialLR, scaled to end at the final rate",
    "cosine": "CosineAnnealingLR, held at its last value past the end",
    "cosine_restarts": "CosineAnnealingWarmRestarts; its formula where cycles are fractional",
    "cyclic": "CyclicLR, triangular",
    "one_cycle": "OneCycleLR: peak at pct_start * total - 1, end at total - 1",
    "linear_warmup": "SequentialLR of LinearLR and each other schedule",
    "per_epoch": f"{STEPS_PER_EPOCH} steps an epoch, all at that epoch's rate",
    "schedule_from": f"{len(BUILDS)} settings of a trainer, against the reference asked once an epoch or step; "
    f"{len(RECIPES)} schedules by steps and by epochs, with and without warm-up, against PyTorch's own",
}


def torch_rows(rates: Mapping[bool, Rates]) -> list[Row]:
    """Rows of `warmup_cosine` against PyTorch's schedulers, held at their last rate past the end."""
    own = {name: np.array(torch_warmup_cosine(c[2] + BEYOND, *c)) for name, c in CASES.items() if c[3] > 0}
    note = f"past the end PyTorch's rises again, to {own[ARTICLE][-1]:.3g} at epoch {len(own[ARTICLE]) - 1}"
    rows = []
    for x64, gate in OWN.items():
        found, expected = {}, {}
        for name, curve in own.items():
            peak, total = CASES[name][0], CASES[name][2]
            found[name] = rates[x64][f"warmup_cosine: {name}"].astype(np.float64) / peak
            expected[name] = curve[np.minimum(np.arange(len(curve)), total)] / peak
        name = f"warmup_cosine, float{64 if x64 else 32}, PyTorch's own"
        rows.append(compare.close(QUESTION, name, found, expected, gate, measure=compare.max_abs, note=note))
    return rows


def plateau_row(seed: int) -> Row:
    """Row of `Plateau` over many histories of a metric, half of them resumed from JSON in the middle."""
    rng, found, expected = np.random.default_rng(seed), {}, {}
    for number in range(HISTORIES):
        metrics = history(rng)
        how = {"gamma": float(rng.choice([0.1, 0.5, 0.9])), "patience": int(rng.integers(0, 5))}
        how |= {"final_lr": float(rng.choice([0.0, 1e-9, 1e-3]))}
        plateau, scales = schedules.Plateau(2e-3, **how), []
        for epoch, metric in enumerate(metrics):
            if number % 2 and epoch == len(metrics) // 2:
                plateau = schedules.Plateau(2e-3, **how, state=json.loads(json.dumps(plateau.state)))
            scales.append(plateau.update(metric))
        name = f"{number}: {how}"
        found[name], expected[name] = np.array(scales), np.array(torch_plateau(metrics, 2e-3, **how)) / 2e-3
    note = f"ReduceLROnPlateau, mode max, {HISTORIES} histories with ties and NaN; half resumed from JSON"
    return compare.equal_bytes(QUESTION, "Plateau: scales", found, expected, note)


def history(rng: np.random.Generator) -> list[float]:
    """A metric that rises ever more slowly, with ties from rounding, gains near 1e-4, and NaN."""
    metrics = np.round(np.tanh(np.arange(60) / 15) + rng.normal(0, 0.05, 60), int(rng.integers(1, 4)))
    repeated = rng.random(60) < 0.2
    metrics[1:][repeated[1:]] = metrics[:-1][repeated[1:]] * rng.choice([1.00005, 1.0001, 1.0002])
    return np.where(rng.random(60) < 0.1, np.nan, metrics).tolist()


def order_rows(seed: int) -> list[Row]:
    """Rows that pass if rates do not depend on earlier calls: asked twice, out of order, or made anew half-way."""
    ticks = np.arange(0, 45, 3)
    in_order = ask_one_by_one(ticks)
    picks = {
        "asked twice and out of order": np.random.default_rng(seed).permutation(np.arange(len(ticks)).repeat(2)),
        "made anew, asked from the middle on": np.arange(len(ticks) // 2, len(ticks)),
    }
    rows = []
    for (name, pick), (hazard, (then, otherwise)) in zip(picks.items(), hazards().items()):
        expected = {group: rates[pick] for group, rates in in_order.items()}
        ratio = then / otherwise
        note = f"the article's class, {hazard}, gives {then:.5g} instead of {otherwise:.5g}: {ratio:.2f} times as much"
        rows.append(compare.equal_bytes(QUESTION, name, ask_one_by_one(ticks[pick]), expected, note))
    return rows


def ask_one_by_one(ticks: np.ndarray) -> Rates:
    """Rates at some ticks, in this order, of a new schedule of each function.

    Not compiled, because a compiled schedule has no memory.
    """
    first = {group: next(iter(its_curves.values())) for group, its_curves in groups(curves()).items()}
    with jax.enable_x64(False):
        return {group: np.array([curve.schedule(int(tick)) for tick in ticks]) for group, curve in first.items()}


def every_schedule(asked: Mapping[str, Curve]) -> Row:
    """Row that passes if no function of jaxseg and no choice of the trainer is left out."""
    public = {name for name, f in vars(schedules).items() if inspect.isfunction(f) and name[0] != "_"}
    here = {name for name in public if getattr(schedules, name).__module__ == schedules.__name__}
    choices = {*typing.get_args(typing.get_type_hints(Optimization)["schedule"]), *schedules.SCHEDULES}
    built = {settings.schedule for settings, *_ in BUILDS.values()} | set(RECIPES)
    left_out = sorted((here - set(groups(asked))) | (choices ^ built))
    note = f"{len(groups(asked))} functions, {len(choices)} choices"
    return compare.at_most(QUESTION, "none left out", len(left_out), 0, note, ", ".join(left_out))


def share() -> float:
    """Sum of the article's rates over that of one cosine."""
    return float(article(CASES[ARTICLE]).sum() / textbook(CASES[ARTICLE]).sum())


def evidence(rates: Rates) -> dict:
    """Evidence for `run`."""
    case = CASES[ARTICLE]
    sides = {"article": article(case).tolist(), "warmup_cosine": torch_warmup_cosine(case[2] + BEYOND, *case)}
    drawn = [{"name": n, "torch": own, "jaxseg": rates[f"{n}: {ARTICLE}"].tolist()} for n, own in sides.items()]
    epochs = list(range(case[2] + BEYOND))
    return {"epochs": epochs, "curves": drawn, "hazards": {n: list(r) for n, r in hazards().items()}, "share": share()}
