"""Figures and tables of a match."""

import math

import numpy as np
from rich import box
from rich.table import Table

from benchmarks import roofline
from benchmarks.match import Match, Outcome

AGAINST = {"pipeline": "decoder alone", "epoch": "jaxseg, the step alone", "startup": "import jax"}
"""Contender that the others are compared with; in other sections the fastest of PyTorch."""
START = 0.02
"""Largest relative difference between first losses that start from the same weights, in bfloat16 too."""
UNSAID = ("levels",)
"""Settings that titles leave out."""


def costs(outcome: Outcome) -> np.ndarray:
    """Seconds per item of every turn, NaN for one that was not taken."""
    return np.array([turn["seconds"] / turn["count"] if turn else math.nan for turn in outcome.turns])


def quartiles(values: np.ndarray) -> tuple[float, float, float] | None:
    """First quartile, median and third quartile; None if there is no value."""
    there = values[~np.isnan(values)]
    return tuple(float(q) for q in np.percentile(there, (25, 50, 75))) if there.size else None


def figures(played: Match) -> dict[str, dict]:
    """Figures of each contender, None for what is not known.

    - "rate": quartiles of the items per second
    - "ratio": quartiles, round by round, of how many times as fast it is as the one it is compared with
    - "best_ratio": the same by the best turn of each
    - "compile_seconds", "peak_mib": of a step
    - "roofline": share of the GPU's roofline that a step reaches
    - "waited": share of an epoch in which no step ran because its batch was missing
    """
    rates = {name: quartiles(1 / costs(outcome)) for name, outcome in played.outcomes.items()}
    others = {name: rate[1] for name, rate in rates.items() if rate and not name.startswith("jaxseg")}
    others = {name: rate for name, rate in others.items() if not played.outcomes[name].failed}
    other = played.outcomes.get(AGAINST.get(played.section) or max(others, key=others.get, default=""))
    found = {}
    for name, outcome in played.outcomes.items():
        mine, theirs = costs(outcome), costs(other) if other else np.full(len(outcome.turns), math.nan)
        compared = rates[name] is not None and not np.isnan(theirs).all()
        found[name] = {
            "rate": rates[name],
            "ratio": quartiles(theirs / mine) if compared else None,
            "best_ratio": float(np.nanmin(theirs) / np.nanmin(mine)) if compared else None,
            "peak_mib": outcome.facts.get("peak_mib"),
        }
        if rates[name] and "first_seconds" in outcome.facts:
            step = played.configuration["batch"] / rates[name][1]
            found[name]["compile_seconds"] = max(0.0, outcome.facts["first_seconds"] - step)
            found[name]["roofline"] = roofline.share(outcome.facts, played.configuration["precision"], step)
        if waited := [turn["waited"] / turn["seconds"] for turn in outcome.turns if turn and "waited" in turn]:
            found[name]["waited"] = float(np.median(waited))
    return found


def notes(played: Match) -> list[str]:
    """Who failed, and whose first loss differs from jaxseg's."""
    lines = [f"{name}: {outcome.failed}" for name, outcome in played.outcomes.items() if outcome.failed]
    losses = {name: outcome.facts.get("first_loss") for name, outcome in played.outcomes.items()}
    ours = losses.get("jaxseg")
    for name, loss in losses.items():
        if ours is not None and loss is not None and abs(loss - ours) > START * abs(ours):
            lines.append(f"{name}: its first loss is {loss:.5f}, jaxseg's {ours:.5f}: not the same work")
    return lines


def table(played: Match, found: dict[str, dict]) -> Table:
    """Medians of a match, quartiles in brackets."""
    about = ", ".join(f"{name} {value}" for name, value in played.configuration.items() if name not in UNSAID)
    rounds = max((len(outcome.turns) for outcome in played.outcomes.values()), default=0)
    page = Table(title=f"{played.section}: {about}; {rounds} rounds", title_justify="left", box=box.SIMPLE_HEAD)
    compared = AGAINST.get(played.section, "best PyTorch")
    columns = {
        "seconds" if played.unit == "processes" else f"{played.unit}/s": lambda f: speed(f["rate"], played.unit),
        f"x {compared}": lambda f: spread(f["ratio"]),
        "best turns": lambda f: number(f["best_ratio"], ".2f"),
    }
    if played.section == "step":
        columns["compile s"] = lambda f: number(f.get("compile_seconds"), ".1f")
        columns["peak MiB"] = lambda f: number(f["peak_mib"], ".0f")
        columns["of roofline"] = lambda f: number(f.get("roofline"), ".2f")
    if played.section == "epoch":
        columns["waited"] = lambda f: number(f.get("waited"), ".1%")
    page.add_column("", no_wrap=True)
    for heading in columns:
        page.add_column(heading, justify="right")
    for name, figures in found.items():
        cells = [show(figures) for show in columns.values()] if figures["rate"] else ["failed"]
        page.add_row(name, *cells)
    return page


def speed(rate: tuple[float, float, float], unit: str) -> str:
    return spread(tuple(1 / x for x in reversed(rate)) if unit == "processes" else rate)


def spread(values: tuple[float, float, float] | None) -> str:
    """The median (first to third quartile)."""
    if values is None:
        return "-"
    low, median, high = (f"{value:.3g}" if value < 1000 else f"{value:.0f}" for value in values)
    return f"{median} ({low}-{high})"


def number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
