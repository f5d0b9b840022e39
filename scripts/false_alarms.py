"""How often does the init question of `python -m parity` fail on correct code, and are its chances chances?

    python scripts/false_alarms.py [--seeds 1000] [--workers 1]

Asks it of jaxseg as it is, for many seeds, in its quick form, and prints two measurements. The runs that failed: one
in a million is what the question allows itself, so none is expected. And, because no number of runs that one has time
for can show a rate like that, how often a chance below 1e-1, 1e-2 and 1e-3 came up, for each kind of test and for whole
runs (Bonferroni: the smallest chance of a run times its tests). Of an exact test that share is the level itself; bounds
such as Chernoff's, and Bonferroni's, show less. Exits with 1 when a run failed or any share is significantly larger
than its level: more than a binomial reaches in one run of this script in a thousand. About 1 s a seed on one core.
"""

import argparse
import functools
import multiprocessing
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from scipy import stats

LEVELS = (1e-1, 1e-2, 1e-3)
MISTAKEN = 1e-3  # chance that this script accuses correct tests
RUNS = "whole runs, by Bonferroni"


class Outcome(NamedTuple):
    """What one seed gave."""

    failed: list[str]
    """Rows that failed."""
    chances: dict[str, list[float]]
    """By kind of test."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1000, help="how many, from 0 on (default: 1000)")
    parser.add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    args = parser.parse_args(argv)
    began = time.monotonic()
    outcomes = []
    for outcome in ask(range(args.seeds), args.workers):
        outcomes.append(outcome)
        if len(outcomes) % 100 == 0:
            print(f"{len(outcomes)} seeds after {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    failures = {seed: outcome.failed for seed, outcome in enumerate(outcomes) if outcome.failed}
    allowed = failure_limit(len(failures), len(outcomes))
    print(f"\n{len(outcomes)} seeds in {time.monotonic() - began:.0f} s")
    print(f"runs that failed: {len(failures)}; with 95 % confidence fewer than {allowed:.2g} of all do")
    for seed, failed in failures.items():
        print(f"  seed {seed}: {'; '.join(failed)}")
    guilty = show(pooled(outcomes))
    return 1 if failures or guilty else 0


def ask(seeds: Iterable[int], workers: int) -> Iterator[Outcome]:
    """The outcome of each seed, in order."""
    if workers == 1:
        yield from map(outcome_of, seeds)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as processes:
        yield from processes.imap(outcome_of, seeds, chunksize=8)


@functools.cache
def sampler():
    """Compiles, once a process."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import torch

    from parity.twins import draws

    torch.set_num_threads(1)
    return draws.Sampler(draws.QUICK)


def outcome_of(seed: int) -> Outcome:
    """Asks the question of one seed."""
    draw = sampler()
    from parity.checks import init
    from parity.twins.draws import network_draws

    sample = draw(seed)
    networks = {rule: network_draws(rule, sample.found[rule], sample.expected[rule]) for rule in sample.found}
    judged = init.judge(init.all_tests(networks, sample.initializers))
    rows = [
        *init.network_rows(sample, networks["article"]),
        *init.initializer_rows(sample),
        *(row for _, row in judged),
    ]
    chances: dict[str, list[float]] = {}
    for test, row in judged:
        chances.setdefault(test.kind, []).append(10**-row.figure)
    return Outcome([f"{row.name} ({row.worst})" for row in rows if not row.passed], chances)


def pooled(outcomes: Iterable[Outcome]) -> dict[str, np.ndarray]:
    """All chances of a kind, of all seeds; and for each run the smallest, times the number of tests."""
    chances: dict[str, list[float]] = {}
    for outcome in outcomes:
        for kind, of in outcome.chances.items():
            chances.setdefault(kind, []).extend(of)
        every = np.concatenate(list(outcome.chances.values()))
        chances.setdefault(RUNS, []).append(min(1.0, every.size * float(every.min())))
    return {kind: np.array(chances[kind]) for kind in sorted(chances, key=lambda kind: (kind == RUNS, kind))}


def show(chances: Mapping[str, np.ndarray]) -> list[str]:
    """Prints the share of chances below each level, with what a binomial allows; the kinds that are guilty of more."""
    alpha = MISTAKEN / (len(chances) * len(LEVELS))
    print("\n" + f"{'share of chances below':<34}{'tests':>8}" + "".join(f"{level:>22.0e}" for level in LEVELS))
    guilty = []
    for kind, of in chances.items():
        cells = []
        for level in LEVELS:
            below, low, high = int((of < level).sum()), *band(of.size, level, alpha)
            verdict = " more!" if below > high else " fewer" if below < low else ""
            cells.append(f"{below / of.size:.2e} <{high / of.size:.1e}{verdict}")
            guilty += [kind] if below > high else []
        print(f"{kind:<34}{of.size:>8}" + "".join(f"{cell:>26}" for cell in cells))
    return list(dict.fromkeys(guilty))


def band(n: int, level: float, alpha: float) -> tuple[int, int]:
    """The least and the most of `n` exact tests below `level`, either passed with a chance of `alpha` at most."""
    law = stats.binom(n, level)
    return int(law.ppf(alpha)), int(law.isf(alpha))


def failure_limit(failed: int, n: int, confidence: float = 0.95) -> float:
    """The largest rate of failures that `failed` of `n` leaves possible (Clopper and Pearson; 3 / n for none)."""
    return float(stats.beta.ppf(confidence, failed + 1, n - failed)) if failed < n else 1.0


if __name__ == "__main__":
    sys.exit(main())
