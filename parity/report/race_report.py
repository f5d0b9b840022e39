"""The report of a race: lines and a table on the terminal, race.json and race.png.

race.json has these keys:

- "recipe": the trainer's settings
- "race": seeds, margin, alpha, limit, threads
- "environment", "data"
- "memory": in MiB
- "seeds": a list of {"seed", "epochs"}, written after every epoch (see `race.run_epoch`)
- "result", once the race is over: "rows" (figure, gate and verdict of each), "equivalence", "speed"
"""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
from rich.table import Table

from jaxseg.base import config as settings
from jaxseg.base.files import replace
from jaxseg.base.terminal import console
from parity.judge import compare
from parity.judge.compare import Row

ALPHA = 0.05
START = 1e-3
"""Relative gate for the first losses, which have equal weights and an equal batch.

They differ by 6e-5 for 5 tiles of 256x256, and by more for more pixels. The cause is PyTorch's channels_last BatchNorm
on a CPU: its float32 variance is 1e-4 off, and 5e-8 in the contiguous layout. Other weights or another batch make 1e-2
and more."""
RATE = 1e-6
"""Gate for the learning rates relative to the peak; jaxseg computes them in float32."""

TABLE = "; speed: median of the epochs (least-most); peak memory: above that of the imports, with jaxseg's compilation"
HEADING = "each: jaxseg | PyTorch"
COLORS = {"jaxseg": "#c2410c", "PyTorch": "#2563eb"}


def new(options, data: dict) -> dict:
    """Record of a race that has not begun."""
    from parity.report.environment import environment

    race = dataclasses.asdict(options.race) | {"alpha": ALPHA}
    del race["out"], race["overwrite"]
    recipe = json.loads(settings.dumps(options.config))
    del recipe["run"]
    return {"recipe": recipe, "race": race, "environment": environment(), "data": data, "seeds": []}


def epoch_line(seed: int, epoch: dict, epochs: int) -> str:
    """Line on the terminal for one epoch of both sides."""

    def both(name: str, form: str) -> str:
        return " | ".join(format(epoch[side][name], form) for side in COLORS)

    speeds = " | ".join(f"{np.median(per_second(epoch, side)):.1f}" for side in COLORS)
    return (
        f"seed {seed} epoch {epoch['epoch']:>{len(str(epochs))}}/{epochs}  loss {both('train_loss', '.4f')}"
        f"  val {both('loss', '.4f')}  mIoU {both('miou', '.4f')}  agree {epoch['agreement']:.2%}  {speeds} images/s"
    )


def write(out: Path, record: dict) -> None:
    """Writes race.json and race.png after an epoch, each whole or not at all."""
    replace(out / "race.json", (json.dumps(record, indent=1, allow_nan=False) + "\n").encode())
    replace(out / "race.png", draw(record))


def finish(out: Path, record: dict) -> bool:
    """Judges a finished race, prints the table and writes the files; True if every row passes."""
    found = rows(record)
    equivalence = judge(record)
    if not all(row.passed for row in found[:2]):
        equivalence["verdict"] = "no verdict: the two sides were not given the same task"
    record["result"] = {
        "rows": [dataclasses.asdict(row) for row in found],
        "equivalence": equivalence,
        "speed": speed(record),
    }
    console.print()
    console.print(table(record))
    for row in found:
        console.print(
            f"{'ok  ' if row.passed else 'FAIL'}  {row.name}: {row.figure:.3g}, gate {row.gate:g}. {row.worst}"
        )
    console.print(f"\n{equivalence['verdict']}")
    for row in record["result"]["rows"]:
        row["figure"] = row["figure"] if math.isfinite(row["figure"]) else None
    write(out, record)
    return all(row.passed for row in found)


# Judgment -------------------------------------------------------------------------------------------------------------


def scores(record: dict, side: str) -> np.ndarray:
    """Final validation mIoU of each seed."""
    return np.array([seed["epochs"][-1][side]["miou"] for seed in record["seeds"]])


def rows(record: dict) -> list[Row]:
    """Rows of a race: equal first losses, equal learning rates and, from two seeds on, equivalent scores."""

    def gathered(name: str) -> list[np.ndarray]:
        values = [[epoch[side][name] for seed in record["seeds"] for epoch in seed["epochs"]] for side in COLORS]
        return [np.concatenate([np.atleast_1d(value) for value in side]) for side in values]

    firsts = [np.array([seed["epochs"][0][side]["first_loss"] for seed in record["seeds"]]) for side in COLORS]
    peak = record["recipe"]["optimization"]["learning_rate"] or 1.0
    found = [
        compare.close("race", "loss of the first step of a seed", *firsts, START),
        compare.close(
            "race", "learning rates", *(r / peak for r in gathered("learning_rates")), RATE, measure=compare.max_abs
        ),
    ]
    if len(record["seeds"]) > 1:
        finals = [scores(record, side) for side in COLORS]
        margin = record["race"]["margin"]
        found.append(compare.equivalent("race", "final mIoU, TOST p-value", *finals, margin, ALPHA))
    return found


def judge(record: dict) -> dict:
    """Test of the final mIoU (jaxseg minus PyTorch), with a verdict from the 90 % interval of the mean difference.

    - "equivalent": the interval lies inside the margins, even if it excludes 0
    - "different": the interval lies wholly beyond one margin
    - "not shown": anything else; more seeds may show either
    """
    margin, (ours, theirs) = record["race"]["margin"], (scores(record, side) for side in COLORS)
    test = compare.tost(ours - theirs, margin, ALPHA)
    low, high = test.interval
    if len(ours) < 2:
        verdict = f"not tested: one seed, difference {ours[0] - theirs[0]:+.4f} mIoU"
    elif test.p <= ALPHA:
        verdict = f"equivalent within {margin:g} mIoU"
    elif low > margin or high < -margin:
        verdict = f"different: by more than {margin:g} mIoU"
    else:
        verdict = f"not shown: {len(ours)} seeds leave room for a difference of {max(-low, high):.4f} mIoU"
    constant = record["data"]["constant_miou"]
    if min(ours.min(), theirs.min()) <= constant:
        verdict += f"; little evidence: a side learned nothing in a seed (one class everywhere has {constant:.4f})"
    values = {"mean_difference": test.mean, "interval_90": [low, high], "p": test.p}
    return {"verdict": verdict, "differences": (ours - theirs).tolist()} | (values if len(ours) > 1 else {})


def per_second(epoch: dict, side: str, clock: str = "seconds", first: int = 0) -> np.ndarray:
    """Images per second of each step of an epoch, without the first `first` steps."""
    return (np.array(epoch["images"]) / np.array(epoch[side][clock]))[first:]


def speed(record: dict) -> dict:
    """Images per second of each side and their ratio, as {name: [median, least, most]} over the epochs.

    An epoch counts with the median of its steps. Ratios are taken step by step, because both sides of a step meet the
    same load. The very first step, which compiles, is left out and given in seconds as "<side> first step".
    """
    found: dict[str, list[float]] = {}
    epochs = [epoch for seed in record["seeds"] for epoch in seed["epochs"]]
    for number, epoch in enumerate(epochs):
        first = int(number == 0 and len(epoch["images"]) > 1)
        for clock in ("seconds", "cpu_seconds"):
            speeds = {side: per_second(epoch, side, clock, first) for side in COLORS}
            ratio = speeds["jaxseg"] / speeds["PyTorch"]
            for name, values in (speeds | {"ratio": ratio}).items():
                found.setdefault(f"{name} per {clock}", []).append(float(np.median(values)))
    spreads = {name: [float(f(values)) for f in (np.median, min, max)] for name, values in found.items()}
    return spreads | {f"{side} first step": epochs[0][side]["seconds"][0] for side in COLORS}


# What a person sees ---------------------------------------------------------------------------------------------------


def table(record: dict) -> Table:
    """Table of both sides of a finished race."""
    result = record["result"]
    equivalence, speeds, memory = result["equivalence"], result["speed"], record["memory"]
    page = Table(title=f"final validation mIoU{TABLE}", title_justify="left")
    for heading in ("", *COLORS, "jaxseg to PyTorch"):
        page.add_column(heading, justify="right" if heading else "left")
    for seed, a, b in zip(record["seeds"], *(scores(record, side) for side in COLORS)):
        page.add_row(f"mIoU, seed {seed['seed']}", f"{a:.4f}", f"{b:.4f}", f"{a - b:+.2g}")
    if len(record["seeds"]) > 1:
        low, high = equivalence["interval_90"]
        finals = [scores(record, side) for side in COLORS]
        page.add_section()
        page.add_row("mean", *(f"{f.mean():.4f}" for f in finals), f"{equivalence['mean_difference']:+.2g}")
        deviations = [f.std(ddof=1) for f in (*finals, finals[0] - finals[1])]
        page.add_row("deviation of seeds", *(f"{d:.4f}" for d in deviations[:2]), f"{deviations[2]:.2g}")
        page.add_row("90 % interval", "", "", f"{low:+.2g} to {high:+.2g}")
        page.add_row(f"TOST, margin {record['race']['margin']:g}", "", "", f"p = {equivalence['p']:.2g}")
    page.add_section()
    for clock, label in (("seconds", "images/s"), ("cpu_seconds", "images/CPU s")):
        cells = [_range(speeds[f"{name} per {clock}"]) for name in (*COLORS, "ratio")]
        page.add_row(label, *cells[:2], f"x {cells[2]}")
    page.add_row("first step", *(f"{speeds[f'{side} first step']:.1f} s" for side in COLORS), "")
    page.add_row("peak memory", *(_mib(memory[side]) for side in COLORS), "")
    return page


def _range(values: list[float]) -> str:
    median, low, high = values
    return f"{median:.3g} ({low:.3g}-{high:.3g})"


def _mib(measured: dict | None) -> str:
    return f"{measured['training']:.0f} MiB" if measured else "not measured"


def draw(record: dict) -> bytes:
    """PNG with losses and validation mIoU of both sides for all seeds, and the difference with its margin."""
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    page = Figure(figsize=(12, 7.5), dpi=100, layout="constrained")
    panels = {
        "train_loss": "Training loss",
        "loss": "Validation loss",
        "miou": "Validation mIoU",
        "difference": "Validation mIoU, jaxseg less PyTorch",
    }
    axes = dict(zip(panels, page.subplots(2, 2).flat))
    markers = "osD^vP*X"
    for number, seed in enumerate(record["seeds"]):
        x, marker = [epoch["epoch"] for epoch in seed["epochs"]], markers[number % len(markers)]
        for name in ("train_loss", "loss", "miou"):
            for side, style in (("PyTorch", {"lw": 4, "alpha": 0.35}), ("jaxseg", {"lw": 1.2, "markersize": 4})):
                y = [epoch[side][name] for epoch in seed["epochs"]]
                axes[name].plot(x, y, color=COLORS[side], marker=marker if side == "jaxseg" else None, **style)
        y = [epoch["jaxseg"]["miou"] - epoch["PyTorch"]["miou"] for epoch in seed["epochs"]]
        axes["difference"].plot(x, y, color="0.25", lw=1.2, marker=marker, markersize=4, label=f"seed {seed['seed']}")
    margin = record["race"]["margin"]
    axes["difference"].axhspan(-margin, margin, color="#16a34a", alpha=0.12, label=f"margin {margin:g}")
    for name, panel in axes.items():
        panel.set_title(panels[name], loc="left", fontsize=11, fontweight="bold")
        panel.set_xlabel("epoch")
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    axes["loss"].plot([], [], color=COLORS["PyTorch"], lw=4, alpha=0.35, label="PyTorch")
    axes["loss"].plot([], [], color=COLORS["jaxseg"], lw=1.2, label="jaxseg")
    axes["loss"].legend(frameon=False)
    axes["difference"].legend(frameon=False, fontsize=9)
    buffer = io.BytesIO()
    FigureCanvasAgg(page)
    page.savefig(buffer)
    return buffer.getvalue()
