"""Is the learning rate the reference's, at every epoch or step, past the last one, asked in any order and when resumed?

`article`, `factor` and `multi_factor` are tables made in float64 with the reference's own order of operations, so the
gate is equality in every bit: as they stand in float64, and rounded once in float32. `warmup_cosine` is Optax's
formula, which orders its operations otherwise than the textbook's, so the gate is an absolute error as a part of the
peak: five roundings of 1, 1e-15 in float64 and 3e-7 in float32. Most of PyTorch's schedulers make each value from the
one before, whose roundings add up over hundreds of steps: 1e-14 for what is compared with them. A relative error would
say nothing: in float32 cancellation leaves the first value of `warmup_cosine` 7 % off, of a rate of 1e-9.

All are asked as an optimizer asks them, under `jax.jit` with an int32 count, to 5 ticks beyond the last, for the
article's numbers and others. Where PyTorch's own goes on otherwise past the end (a cosine rises again, one cycle raises
an error), jaxseg's stays. `Plateau`, which is asked on the host, is ReduceLROnPlateau to the bit.
Not seen here: whether a trainer asks for the rate of the right step, which is compared under `training`.
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
HISTORIES = 200  # of metrics, for Plateau


def run(settings: Settings) -> Answer:
    """The schedule question; the seed orders the ticks where they are asked for out of order.

    Evidence: {"epochs": [...], "curves": [{"name", "torch": [...], "jaxseg": [...]}], with the article's numbers, to 5
    epochs past the last; "hazards": {name: [what the article's class says then, what it says otherwise]}, and "share":
    the sum of its rates over that of one cosine}.
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
    """All schedules of one function, which are those `asked`."""
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
    """What there is to say about the row of a function."""
    if group == "article":
        case = CASES[ARTICLE]
        places = np.arange(case[2] + BEYOND) > case[1]
        tenth = [int(np.argmax((curve < case[0] / 10) & places)) for curve in (article(case), textbook(case))]
        cosine = f"below a tenth of the peak at epoch {tenth[0]} (one cosine: {tenth[1]})"
        return f"a running product of cosines: {cosine}, sum of the rates {share():.3f} of the cosine's"
    if group == "warmup_cosine":
        first = float(rates[f"warmup_cosine: {ARTICLE}"][0])
        return f"of the peak; textbook cosine; first value {abs(first / CASES[ARTICLE][3] - 1):.1%} off 1e-9, harmless"
    return NOTES[group]


NOTES = {
    "constant": "PyTorch's ConstantLR",
    "piecewise_constant": "LambdaLR",
    "factor": "StepLR, to the bit; Optax's staircase is a tick late in float32 for every eighth period",
    "multi_factor": "MultiStepLR, to the bit",
    "exponential": "ExponentialLR, whose gamma is that of a tick",
    "linear": "LinearLR",
    "polynomial": "PolynomialLR, scaled to end at the final rate",
    "cosine": "CosineAnnealingLR, held at its end",
    "cosine_restarts": "CosineAnnealingWarmRestarts; written out where cycles are not whole",
    "cyclic": "CyclicLR, triangular",
    "one_cycle": "OneCycleLR: peak at pct_start total - 1, end at total - 1",
    "linear_warmup": "SequentialLR of LinearLR and each of the others",
    "per_epoch": f"{STEPS_PER_EPOCH} steps an epoch, all at that epoch's rate",
    "schedule_from": f"{len(BUILDS)} settings of a trainer, against the reference asked once an epoch or step; "
    f"{len(RECIPES)} schedules by steps and by epochs, with and without warm-up, against PyTorch's own",
}


def torch_rows(rates: Mapping[bool, Rates]) -> list[Row]:
    """`warmup_cosine` against PyTorch's own, which is held at its last rate where it would rise again."""
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
    """`Plateau` over many histories of a metric, half of them carried through JSON in the middle."""
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
    """A metric that rises by less and less: rounded, so that it ties, a ten-thousandth better at times, or NaN."""
    metrics = np.round(np.tanh(np.arange(60) / 15) + rng.normal(0, 0.05, 60), int(rng.integers(1, 4)))
    repeated = rng.random(60) < 0.2
    metrics[1:][repeated[1:]] = metrics[:-1][repeated[1:]] * rng.choice([1.00005, 1.0001, 1.0002])
    return np.where(rng.random(60) < 0.1, np.nan, metrics).tolist()


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
    first = {group: next(iter(its_curves.values())) for group, its_curves in groups(curves()).items()}
    with jax.enable_x64(False):
        return {group: np.array([curve.schedule(int(tick)) for tick in ticks]) for group, curve in first.items()}


def every_schedule(asked: Mapping[str, Curve]) -> Row:
    """No function of jaxseg's and no choice of the trainer's is left out."""
    public = {name for name, f in vars(schedules).items() if inspect.isfunction(f) and name[0] != "_"}
    here = {name for name in public if getattr(schedules, name).__module__ == schedules.__name__}
    choices = {*typing.get_args(typing.get_type_hints(Optimization)["schedule"]), *schedules.SCHEDULES}
    built = {settings.schedule for settings, *_ in BUILDS.values()} | set(RECIPES)
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
