"""Picture of the efficiency on many devices, and of where the time goes."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from many_devices.network import Parts

COLORS = {"computation": "#9aa5b1", "BatchNorm's and the loss's sums": "#d1495b", "gradient's sum": "#2b6cb0"}
AIMS = {8: 0.95, 256: 0.9}
STYLES = {"beside": ":", "16": "--"}


def draw(curves: Mapping[str, Mapping[int, Parts]], path: Path, subtitle: str) -> None:
    """Draws efficiency over devices, and the parts of a step at the largest number of them.

    - `curves`: parts of a step by the number of devices, by what is shown in the legend
    - `subtitle`: what the picture is of
    """
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.1, 1))
    figure.suptitle(subtitle, fontsize=10)
    networks = list(dict.fromkeys(name.partition(",")[0] for name in curves))
    lines: dict[tuple[float, ...], list[str]] = {}
    for name, curve in curves.items():
        lines.setdefault(tuple(parts.efficiency for parts in curve.values()), []).append(name)
    for values, (name, *same) in lines.items():
        about = name.partition(", ")[2]
        dashes = next((dashes for word, dashes in STYLES.items() if word in about), "-")
        color = f"C{networks.index(name.partition(',')[0])}"
        label = " and ".join([name, *(other.rpartition(" ")[2] for other in same)])
        left.plot(list(curves[name]), values, lw=1.8, label=label, color=color, ls=dashes)
    left.plot(list(AIMS), list(AIMS.values()), "k*", ms=9, label="aim")
    most = max(max(curve) for curve in curves.values())
    ticks = [2**i for i in range(most.bit_length())]
    left.set_xscale("log", base=2)
    left.set(xlabel="GPUs, eight in a node", ylabel="efficiency", xticks=ticks, ylim=(0, 1.03))
    left.set_xticklabels(ticks)
    left.axvline(8, color="0.8", lw=0.8, zorder=0)
    left.grid(alpha=0.25)
    left.legend(frameon=False, fontsize=8, loc="lower left", handlelength=2.6)

    names = list(curves)[::-1]
    starts = [0.0] * len(names)
    for label, field in zip(COLORS, ("compute", "between", "gradient")):
        values = [1e3 * getattr(curves[name][most], field) for name in names]
        right.barh(names, values, left=starts, color=COLORS[label], label=label, height=0.6)
        starts = [start + value for start, value in zip(starts, values)]
    right.set(xlabel=f"milliseconds of a step on {most} GPUs", xlim=(0, 1.05 * max(starts)))
    right.grid(axis="x", alpha=0.25)
    right.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.4, 1.13), ncols=3, columnspacing=1)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8.5)
    figure.savefig(path, dpi=110)
