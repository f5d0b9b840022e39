"""Contenders that take turns: who goes when, for how long, and what the figures say afterwards.

A round is a turn of every contender, in an order that moves on by one place from round to round, so that all meet the
same load of the machine and none always comes after the same other. Contenders are compared within rounds.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np


class Failed(RuntimeError):
    """A contender that cannot go on; the message says why. It becomes a row of the table."""


class Contender(Protocol):
    """What can be timed."""

    facts: dict
    """What is known of it once it is ready to go."""

    def turn(self, times: int) -> dict:
        """{"seconds", "count" (of images, pairs, ...), "cpu_seconds" or not, ...} of doing it so many times."""

    def finish(self) -> dict:
        """What is known of it only at the end."""

    def close(self) -> None:
        """Leaves no process behind."""


@dataclasses.dataclass(frozen=True)
class Rules:
    """How long a match is: rounds go on until `budget` seconds are over, but are `least` to `most` in number. A turn is
    repeated until it takes `turn` seconds.
    """

    least: int = 3
    most: int = 20
    budget: float = 30.0
    turn: float = 0.2


@dataclasses.dataclass
class Outcome:
    """What became of a contender. A turn that it did not take is None."""

    facts: dict = dataclasses.field(default_factory=dict)
    turns: list[dict | None] = dataclasses.field(default_factory=list)
    failed: str | None = None


@dataclasses.dataclass
class Match:
    """One comparison: what is compared (section, configuration), of what (unit), and how all fared."""

    section: str
    configuration: dict
    unit: str
    outcomes: dict[str, Outcome] = dataclasses.field(default_factory=dict)


def play(match: Match, entrants: Mapping[str, Callable[[], Contender]], rules: Rules, clock=time.monotonic) -> Match:
    """Starts all entrants, one after the other, lets each take an untimed turn, then plays rounds; `match` is filled.

    Whoever raises `Failed` is out, and the match goes on without it.
    """
    playing: dict[str, Contender] = {}
    times: dict[str, int] = {}

    def attempt(name: str, what: Callable[[], dict]) -> dict | None:
        try:
            return what()
        except Failed as error:
            match.outcomes[name].failed = str(error)
            if name in playing:
                playing.pop(name).close()
            return None

    def start(name: str, enter: Callable[[], Contender]) -> dict:
        playing[name] = enter()
        match.outcomes[name].facts |= playing[name].facts
        return playing[name].turn(1)

    try:
        for name, enter in entrants.items():
            match.outcomes[name] = Outcome()
            if (warm := attempt(name, lambda name=name, enter=enter: start(name, enter))) is not None:
                times[name] = max(1, math.ceil(rules.turn / max(warm["seconds"], 1e-9)))
        began, done = clock(), 0
        while playing and done < rules.most and (done < rules.least or clock() - began < rules.budget):
            for name in match.outcomes:
                match.outcomes[name].turns.append(None)
            for name in order(list(playing), done):
                taken = attempt(name, lambda name=name: playing[name].turn(times[name]))
                match.outcomes[name].turns[-1] = taken
            done += 1
        for name in list(playing):
            if (last := attempt(name, playing[name].finish)) is not None:
                match.outcomes[name].facts |= last
    finally:
        for contender in playing.values():
            contender.close()
    return match


def order(names: list[str], number: int) -> list[str]:
    """Who goes when in round `number`."""
    first = number % len(names)
    return names[first:] + names[:first]


# What the figures say -------------------------------------------------------------------------------------------------


def costs(outcome: Outcome, clock: str = "seconds") -> np.ndarray:
    """Seconds an item of every turn, NaN for one that was not taken."""
    return np.array([turn[clock] / turn["count"] if turn else math.nan for turn in outcome.turns])


def quartiles(values: np.ndarray) -> tuple[float, float, float] | None:
    """The median between the first and the third quartile; None if there is no value."""
    there = values[~np.isnan(values)]
    return tuple(float(q) for q in np.percentile(there, (25, 50, 75))) if there.size else None


def rates(outcome: Outcome) -> tuple[float, float, float] | None:
    """Quartiles of the items a second."""
    return quartiles(1 / costs(outcome)) if outcome.turns else None


def ratios(outcome: Outcome, other: Outcome) -> tuple[float, float, float] | None:
    """Quartiles of how many times as fast as `other` a contender is, round by round."""
    return quartiles(costs(other) / costs(outcome))


def fastest(outcomes: Mapping[str, Outcome], without: str = "jaxseg") -> str | None:
    """The contender with the best median whose name does not begin with `without`."""
    speeds = {name: rates(o) for name, o in outcomes.items() if not name.startswith(without) and not o.failed}
    speeds = {name: speed[1] for name, speed in speeds.items() if speed}
    return max(speeds, key=speeds.get) if speeds else None


def best_ratio(outcome: Outcome, other: Outcome) -> float | None:
    """How many times as fast as `other` by the best turn of each. On a machine with other work to do that is the figure
    to look at: PyTorch's OpenMP threads wait for each other and lose much more by it than XLA's.
    """
    found = [values[~np.isnan(values)] for values in (costs(other), costs(outcome))]
    return float(found[0].min() / found[1].min()) if all(values.size for values in found) else None


def against(outcome: Outcome, other: Outcome | None) -> dict:
    """ "ratio" and "best_ratio"; None where there is nothing to compare."""
    if other is None or not outcome.turns:
        return {"ratio": None, "best_ratio": None}
    return {"ratio": ratios(outcome, other), "best_ratio": best_ratio(outcome, other)}
