"""benchmark.png: a panel for each section that was run, jaxseg in one color and everything else in others."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.report import UNSAID

OURS, THEIRS, MEASURE = "#c2410c", ("#93c5fd", "#3b82f6", "#1e3a8a", "#0f766e"), "#a8a29e"


def draw(record: dict, path: Path) -> None:
    """Bars of medians, whiskers from quartile to quartile; the picture of a `benchmark.json`."""
    by_section: dict[str, list[dict]] = {}
    for found in record["matches"]:
        by_section.setdefault(found["section"], []).append(found)
    panels = [(draw_steps, by_section[name]) for name in ("step", "prediction") if name in by_section]
    panels += [(draw_rows, by_section[name]) for name in ("pipeline", "epoch", "startup") if name in by_section]
    page = Figure(figsize=(11, max(3.0, 3.6 * len(panels))), dpi=110, layout="constrained")
    FigureCanvasAgg(page)
    for axes, (draw_panel, found) in zip(page.subplots(max(1, len(panels)), squeeze=False).flat, panels):
        draw_panel(axes, found)
    page.suptitle(headline(record["machine"]), x=0.01, ha="left", fontsize=10)
    page.savefig(path)


def headline(machine: dict) -> str:
    """The machine and the versions."""
    versions = machine["versions"]
    where = machine["nvidia-smi"] if machine["gpu"] else machine["machine"]["processor"]
    return f"{where}, {machine['cores used']} cores; jax {versions['jax']}, torch {versions.get('torch', '?')}"


def color_of(name: str, theirs: list[str]) -> str:
    """Of a contender; `theirs`: all that are PyTorch's."""
    if name in theirs:
        return THEIRS[theirs.index(name) % len(THEIRS)]
    return OURS if name.startswith("jaxseg") or "jaxseg" in name or "first step" in name else MEASURE


def draw_steps(axes: Axes, matches: list[dict]) -> None:
    """A group of bars for each configuration: the rate as part of the fastest PyTorch's, and images/s written on it."""
    names = list(dict.fromkeys(name for found in matches for name in found["outcomes"]))
    theirs = [name for name in names if not name.startswith("jaxseg")]
    width = 0.8 / len(names)
    for j, name in enumerate(names):
        for i, found in enumerate(matches):
            figures, x = found["figures"].get(name) or {}, i + (j - (len(names) - 1) / 2) * width
            if not figures.get("rate"):
                axes.text(x, 0.02, "failed", rotation=90, ha="center", va="bottom", fontsize=8, color="0.4")
                continue
            low, ratio, high = figures["ratio"] or (1.0, 1.0, 1.0)
            axes.bar(x, ratio, width * 0.92, color=color_of(name, theirs), label=name if i == 0 else None)
            axes.plot([x, x], [low, high], color="0.2", lw=1)
            axes.text(x, max(ratio, high) + 0.02, f"{figures['rate'][1]:.3g}", ha="center", va="bottom", fontsize=8)
    axes.axhline(1, color="0.4", lw=0.8, ls=":")
    labels = ["base {base}, batch {batch}\n{precision}".format(**found["configuration"]) for found in matches]
    axes.set_xticks(range(len(matches)), labels)
    axes.set_ylabel("times the fastest PyTorch")
    what = {"step": "Training step", "prediction": "Prediction"}[matches[0]["section"]]
    side = matches[0]["configuration"]["side"]
    finish(axes, f"{what}, {side}x{side} (written above: images/s)")
    axes.margins(y=0.15)
    axes.legend(frameon=False, fontsize=8, ncols=len(names), loc="upper left", bbox_to_anchor=(0, 1))
    axes.set_ylim(top=axes.get_ylim()[1] * 1.1)
    axes.grid(axis="y", alpha=0.25)


def draw_rows(axes: Axes, matches: list[dict]) -> None:
    """A bar for each contender, from left to right: items a second, or of start-up seconds.

    A dot where the axis is logarithmic, because they are far apart: there a bar's length would say nothing.
    """
    (found,) = matches
    seconds = found["section"] == "startup"
    theirs = [name for name in found["figures"] if name.startswith(("DataLoader", "PyTorch", "import torch"))]
    rates = {name: figures["rate"] for name, figures in reversed(found["figures"].items())}
    if seconds:
        rates = {name: rate and [1 / r for r in rate[::-1]] for name, rate in rates.items()}
    ends = [end for rate in rates.values() if rate for end in (rate[0], rate[2])]
    logarithmic = bool(ends) and max(ends) > 30 * min(ends)
    if logarithmic:
        axes.set_xscale("log")
        axes.set_xlim(min(ends) / 2, max(ends) * 2)
    elif ends:
        axes.set_xlim(0, max(ends) * 1.12)
    for y, (name, rate) in enumerate(rates.items()):
        if rate is None:
            axes.text(0.01, y, "failed", va="center", fontsize=8, color="0.4", transform=axes.get_yaxis_transform())
            continue
        low, median, high = rate
        color = color_of(name, theirs)
        if logarithmic:
            axes.plot(median, y, "o", color=color, markersize=9)
        else:
            axes.barh(y, median, 0.75, color=color)
        axes.plot([low, high], [y, y], color="0.2", lw=1)
        shown = f"{median:.3g}" if median < 1000 else f"{median:.0f}"
        axes.annotate(shown, (high, y), (8, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_yticks(range(len(rates)), list(rates), fontsize=8)
    about = ", ".join(f"{name} {value}" for name, value in found["configuration"].items() if name not in UNSAID)
    titles = {"pipeline": "Input pipeline", "epoch": "Whole epoch", "startup": "Start-up"}
    finish(axes, f"{titles[found['section']]} ({about})")
    axes.set_xlabel("seconds" if seconds else f"{found['unit']}/s")
    axes.grid(axis="x", alpha=0.25)


def finish(axes: Axes, title: str) -> None:
    """What all panels share."""
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
