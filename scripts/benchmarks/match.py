"""Contenders that take turns.

In a round every contender takes one turn. The order rotates from round to round, so all meet the same load of the
machine and none always follows the same other.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping


class Failed(RuntimeError):
    """A contender cannot go on; the message says why. It becomes a row of the table."""


@dataclasses.dataclass(frozen=True)
class Rules:
    """Length of a match: `least` to `most` rounds, within `budget` seconds. Turns last `turn` seconds or more."""

    least: int = 3
    most: int = 50
    budget: float = 30.0
    turn: float = 0.2


@dataclasses.dataclass
class Outcome:
    """Result of a contender. A turn that it did not take is None."""

    facts: dict = dataclasses.field(default_factory=dict)
    turns: list[dict | None] = dataclasses.field(default_factory=list)
    failed: str | None = None


@dataclasses.dataclass
class Match:
    """One comparison; `unit` is what a turn counts."""

    section: str
    configuration: dict
    unit: str
    outcomes: dict[str, Outcome] = dataclasses.field(default_factory=dict)


def play(match: Match, entrants: Mapping[str, Callable], rules: Rules, clock=time.monotonic) -> Match:
    """Starts all entrants, gives each an untimed turn, then plays rounds, and fills `match`.

    `entrants` start a `workers.Worker` each. One that raises `Failed` is out; the match goes on without it.
    """
    playing, times = {}, {}

    def attempt(name: str, what: Callable[[], dict]) -> dict | None:
        try:
            return what()
        except Failed as error:
            match.outcomes[name].failed = str(error)
            if name in playing:
                playing.pop(name).close()
            return None

    def start(name: str) -> dict:
        playing[name] = entrants[name]()
        match.outcomes[name].facts |= playing[name].facts
        return playing[name].turn(1)

    try:
        for name in entrants:
            match.outcomes[name] = Outcome()
            if (warm := attempt(name, lambda name=name: start(name))) is not None:
                times[name] = max(1, math.ceil(rules.turn / max(warm["seconds"], 1e-9)))
        began, done = clock(), 0
        while playing and done < rules.most and (done < rules.least or clock() - began < rules.budget):
            for outcome in match.outcomes.values():
                outcome.turns.append(None)
            first = done % len(playing)
            for name in [*list(playing)[first:], *list(playing)[:first]]:
                match.outcomes[name].turns[-1] = attempt(name, lambda name=name: playing[name].turn(times[name]))
            done += 1
        for name in list(playing):
            match.outcomes[name].facts |= attempt(name, playing[name].finish) or {}
    finally:
        for contender in playing.values():
            contender.close()
    return match
