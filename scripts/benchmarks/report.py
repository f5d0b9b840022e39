"""What the benchmark says: benchmark.json, which holds every turn of every contender, and tables of its medians.

`benchmark.json`: "command" (the options), "created", "machine" (see `machine.Facts`), "matches": a list of {"section",
"configuration", "unit", "outcomes", "figures"}; "outcomes" by contender {"facts", "turns", "failed"}, "figures" by
contender what `figures` makes of them.
"""

import json
from pathlib import Path

import numpy as np
from rich import box
from rich.table import Table

from benchmarks import match
from benchmarks.match import Match, Outcome
from jaxseg.base import files

JAXSEG = "jaxseg"
START = 0.02
"""Most by which first losses may differ, relative: the same weights and batch, in bfloat16 too."""


def write(folder: Path, record: dict) -> None:
    """benchmark.json, whole or not at all."""
    text = json.dumps(record, indent=1, default=str, allow_nan=False) + "\n"
    files.replace(folder / "benchmark.json", text.encode())


def figures(played: Match) -> dict[str, dict]:
    """Of each contender its "rate" (quartiles), how it compares to the measure of its section ("ratio", quartiles, and
    "best_ratio"), and what the section is about besides; None for what is not known.
    """
    measure = AGAINST.get(played.section) or match.fastest(played.outcomes, without=JAXSEG)
    found = {}
    for name, outcome in played.outcomes.items():
        rate = match.rates(outcome)
        found[name] = {"rate": rate} | match.against(outcome, played.outcomes.get(measure))
        if rate is None:
            continue
        if played.section == "step":
            found[name] |= of_step(played, outcome, rate[1])
        if played.section == "epoch":
            waited = [turn["waited"] / turn["seconds"] for turn in outcome.turns if turn and "waited" in turn]
            found[name]["waited"] = float(np.median(waited)) if waited else None
        if played.section == "startup" and name.startswith("import jaxseg"):
            over = match.costs(outcome) - match.costs(played.outcomes["import jax"])
            found[name]["over_jax_seconds"] = match.quartiles(over)
    return found


AGAINST = {"pipeline": "decoder alone", "epoch": "jaxseg, the step alone"}
"""To whom the others are compared; elsewhere it is the fastest of PyTorch."""


def of_step(played: Match, outcome: Outcome, rate: float) -> dict:
    """Seconds of compilation, peak memory and cores used; None where something was not measured."""
    cores = match.quartiles(match.costs(outcome, "cpu_seconds") / match.costs(outcome))
    return {
        "compile_seconds": max(0.0, outcome.facts["first_seconds"] - played.configuration["batch"] / rate),
        "peak_mib": outcome.facts.get("peak_mib"),
        "cores": cores[1],
    }


def notes(played: Match) -> list[str]:
    """What a reader must know: who failed, and whose first loss differs from jaxseg's."""
    lines = [f"{name}: {outcome.failed}" for name, outcome in played.outcomes.items() if outcome.failed]
    losses = {name: outcome.facts.get("first_loss") for name, outcome in played.outcomes.items()}
    if (ours := losses.pop(JAXSEG, None)) is not None:
        lines += [
            f"{name}: its first loss is {loss:.5f}, jaxseg's {ours:.5f}: not the same work"
            for name, loss in losses.items()
            if loss is not None and abs(loss - ours) > START * abs(ours)
        ]
    return lines


UNSAID = ("conv_bias", "levels", "learning_rate")
"""What titles leave out of a configuration."""
WIDTH = 130
"""Columns of a table."""

# Tables ---------------------------------------------------------------------------------------------------------------


def table(played: Match, found: dict[str, dict]) -> Table:
    """The medians of a match, quartiles in brackets."""
    about = ", ".join(f"{name} {value}" for name, value in played.configuration.items() if name not in UNSAID)
    rounds = max((len(outcome.turns) for outcome in played.outcomes.values()), default=0)
    page = Table(title=f"{played.section}: {about}; {rounds} rounds", title_justify="left", box=box.SIMPLE_HEAD)
    columns = COLUMNS[played.section]
    page.add_column("", no_wrap=True)
    for heading in columns:
        page.add_column(heading, justify="right", no_wrap=True)
    for name in played.outcomes:
        if found[name]["rate"] is None:
            page.add_row(name, "failed", *[""] * (len(columns) - 1))
        else:
            page.add_row(name, *(show(found[name]) for show in columns.values()))
    return page


def spread(values: tuple[float, float, float] | None, scale: float = 1.0) -> str:
    """The median (first to third quartile)."""
    if values is None:
        return "-"
    low, median, high = (f"{value * scale:.3g}" if value * scale < 1000 else f"{value * scale:.0f}" for value in values)
    return f"{median} ({low}-{high})"


def _number(name: str, form: str, scale: float = 1.0):
    return lambda found: "-" if found.get(name) is None else format(found[name] * scale, form)


def _rate(scale: float = 1.0):
    return lambda found: spread(found["rate"], scale)


def _ratio(found: dict) -> str:
    return spread(found["ratio"])


def _seconds(found: dict) -> str:
    low, median, high = (1 / rate for rate in found["rate"][::-1])
    return spread((low, median, high))


BEST = _number("best_ratio", ".2f")
STEP = {
    "images/s": _rate(),
    "x best\nPyTorch": _ratio,
    "by best\nturns": BEST,
    "compile\ns": _number("compile_seconds", ".1f"),
    "peak\nMiB": _number("peak_mib", ".0f"),
    "CPU\ncores": _number("cores", ".1f"),
}
COLUMNS = {
    "step": STEP,
    "pipeline": {"pairs/s": _rate(), "x decoder": _ratio, "by best\nturns": BEST},
    "epoch": {
        "images/s": _rate(),
        "x the step\nalone": _ratio,
        "by best\nturns": BEST,
        "waited": _number("waited", ".1%"),
    },
    "startup": {"seconds": _seconds, "over import jax": lambda found: spread(found.get("over_jax_seconds"))},
}
