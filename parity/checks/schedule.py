"""Is the learning rate the reference's, at every epoch?

`article` is a table made in float64 with the reference's own order of operations, so the gate is equality in every
bit: as it stands in float64, and rounded once in float32. `warmup_cosine` is Optax's formula, which orders its
operations otherwise than the textbook's, so the gate is an absolute error as a part of the peak: five roundings of 1,
1e-15 in float64 and 3e-7 in float32. A relative error would say nothing there: in float32 cancellation leaves the
first value 7 % off, of a rate of 1e-9.

Both are asked as an optimizer asks them, under `jax.jit` with an int32 count, over all epochs and 5 beyond the last,
for the article's numbers and others. Not seen here: whether a trainer asks for the rate of the right step.
"""

from collections.abc import Iterable

import jax
import numpy as np

from jaxseg import schedules
from parity import compare
from parity.answer import Answer, Settings
from parity.compare import Row
from parity.reference.scheduler import WarmupCosineScheduler, textbook_warmup_cosine

QUESTION = "schedule"
STEPS_PER_EPOCH = 7
ARTICLE = "article's 40 epochs"
CASES = {  # peak, warm-up, total, first and final learning rate; in epochs, but the last in steps
    ARTICLE: (1e-2, 5, 40, 1e-9, 1e-9),
    "peak 0.001": (1e-3, 5, 40, 1e-9, 1e-9),
    "high ends": (0.3, 3, 17, 1e-5, 1e-3),
    "no warm-up": (1e-2, 0, 12, 1e-9, 0.0),
    "48 of 576 steps": (1e-3, 48, 576, 1e-9, 1e-9),
}


def run(settings: Settings) -> Answer:
    """The schedule question; the seed orders the epochs where they are asked for out of order."""
    return Answer(QUESTION, (*article_rows(settings.seed), *warmup_cosine_rows()))


def article_rows(seed: int) -> list[Row]:
    """`article` against the reference, bit for bit."""
    cases = {name: case for name, case in CASES.items() if "steps" not in name}
    expected = {name: reference(case) for name, case in cases.items()}
    rounded = {name: rates.astype(np.float32) for name, rates in expected.items()}

    def found(x64: bool) -> dict[str, np.ndarray]:
        return {name: ask(_of(schedules.article, case), epochs(case), x64=x64) for name, case in cases.items()}

    per_epoch = schedules.per_epoch(_of(schedules.article, CASES[ARTICLE]), STEPS_PER_EPOCH)
    steps = ask(per_epoch, range(len(rounded[ARTICLE]) * STEPS_PER_EPOCH), x64=False)

    twice = np.random.default_rng(seed).permutation(np.repeat(epochs(CASES[ARTICLE]), 2))
    shuffled = ask(_of(schedules.article, CASES[ARTICLE]), twice, x64=True)

    return [
        compare.equal_bytes(QUESTION, "article, float64", found(True), expected, note=_compounding()),
        compare.equal_bytes(QUESTION, "article, float32", found(False), rounded, note="the float64 rate, rounded once"),
        compare.equal_bytes(
            QUESTION,
            "article, by steps",
            steps,
            np.repeat(rounded[ARTICLE], STEPS_PER_EPOCH),
            note=f"{STEPS_PER_EPOCH} steps an epoch, all at that epoch's rate",
        ),
        compare.equal_bytes(
            QUESTION, "article, twice and out of order", shuffled, expected[ARTICLE][twice], note=_memory()
        ),
    ]


def warmup_cosine_rows() -> list[Row]:
    """`warmup_cosine` against the closed form."""
    rows = []
    for x64, gate in ((True, 1e-15), (False, 3e-7)):
        found, expected = {}, {}
        for name, case in CASES.items():
            found[name] = ask(_of(schedules.warmup_cosine, case), epochs(case), x64=x64) / case[0]
            expected[name] = np.array([textbook_warmup_cosine(epoch, *case) for epoch in epochs(case)]) / case[0]
        first, begin = found[ARTICLE][0], expected[ARTICLE][0]
        note = f"of the peak, from the textbook cosine; first value {abs(first / begin - 1):.1%} off 1e-9, harmless"
        name = f"warmup_cosine, float{64 if x64 else 32}"
        rows.append(compare.close(QUESTION, name, found, expected, gate, measure=compare.max_abs, note=note))
    return rows


def ask(schedule: schedules.Schedule, ticks: Iterable[int], *, x64: bool) -> np.ndarray:
    """The rate at each tick, one call each in the order given, compiled."""
    with jax.enable_x64(x64):
        compiled = jax.jit(schedule)
        return np.array([compiled(np.int32(tick)) for tick in ticks])


def epochs(case: tuple) -> np.ndarray:
    """From 0 to 5 epochs past the last: 45 of the article's."""
    return np.arange(case[2] + 5)


def reference(case: tuple) -> np.ndarray:
    """The reference's rates, asked once per epoch and in order."""
    scheduler = WarmupCosineScheduler(*case)
    return np.array([scheduler(int(epoch)) for epoch in epochs(case)])


def _of(schedule, case: tuple) -> schedules.Schedule:
    base_lr, warmup, total, begin_lr, final_lr = case
    return schedule(base_lr, warmup=warmup, total=total, begin_lr=begin_lr, final_lr=final_lr)


def _compounding() -> str:
    case = CASES[ARTICLE]
    product = reference(case)
    cosine = np.array([textbook_warmup_cosine(epoch, *case) for epoch in epochs(case)])
    tenth = [int(np.argmax((rates < case[0] / 10) & (epochs(case) > case[1]))) for rates in (product, cosine)]
    return (
        f"a running product of cosines: below a tenth of the peak at epoch {tenth[0]} (one cosine: {tenth[1]}), "
        f"sum of the rates {product.sum() / cosine.sum():.3f} of the cosine's"
    )


def _memory() -> str:
    """What the reference does where jaxseg does nothing."""
    expected = reference(CASES[ARTICLE])
    scheduler = WarmupCosineScheduler(*CASES[ARTICLE])
    again = [(scheduler(epoch), scheduler(epoch))[1] if epoch == 9 else scheduler(epoch) for epoch in range(10)][9]
    resumed = WarmupCosineScheduler(*CASES[ARTICLE])(20)
    return (
        f"the reference remembers: asked again in epoch 9 it says {again:.5g} instead of {expected[9]:.5g}, "
        f"started afresh at epoch 20 {resumed:.3g} instead of {expected[20]:.3g}"
    )
