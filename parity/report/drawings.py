"""Pictures of the evidence, as SVG: small figures, which a page sets side by side or, on a phone, in a column."""

import io
import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from matplotlib import rc_context, ticker
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

JAXSEG, TORCH, GRAY = "#d1495b", "#2b6cb0", "#777777"
SIZE = (4.6, 3.3)

Pictures = Iterator[tuple[str, str]]
"""Pairs of a caption and an SVG."""


def picture(draw: Callable[[Axes], None], size: tuple[float, float] = SIZE) -> str:
    """An SVG of what `draw` puts on the axes."""
    page = Figure(figsize=size, layout="constrained")
    canvas = FigureCanvasSVG(page)
    axes = page.subplots()
    axes.tick_params(labelsize=8)
    draw(axes)
    axes.title.set_size(9)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_size(8.5)
    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": "jaxseg"}):  # the same ids in every run
        canvas.print_svg(buffer, metadata={"Date": None})
    return buffer.getvalue()


def legend(axes: Axes, **how) -> None:
    """In small type."""
    axes.legend(fontsize=7.5, frameon=False, **how)


# Schedules ------------------------------------------------------------------------------------------------------------


def schedules(evidence: Mapping) -> Pictures:
    """The curves over each other, linear and logarithmic: PyTorch as lines, jaxseg as dots on them."""
    for scale in ("linear", "log"):

        def draw(axes: Axes, scale: str = scale) -> None:
            for i, curve in enumerate(evidence["curves"]):
                color = f"C{i}"
                axes.plot(evidence["epochs"], curve["torch"], color=color, lw=1.2, label=curve["name"])
                axes.plot(evidence["epochs"], curve["jaxseg"], ".", color=color, ms=4)
            axes.set(xlabel="epoch", ylabel="learning rate", yscale=scale)
            axes.grid(alpha=0.25)
            legend(axes)

        yield f"Learning rates, {scale} scale. Lines: PyTorch, whose cosine rises again. Dots: jaxseg.", picture(draw)


# Initial weights ------------------------------------------------------------------------------------------------------


def histograms(evidence: Mapping) -> Pictures:
    """Draws of both sides with the law that they are to follow."""
    for shown in evidence["histograms"]:

        def draw(axes: Axes, shown: Mapping = shown) -> None:
            edges = np.array(shown["edges"])
            for name, color in (("torch", TORCH), ("jaxseg", JAXSEG)):
                counts = np.array(shown[name], float)
                density = counts / max(counts.sum(), 1) / np.diff(edges)
                axes.stairs(density, edges, color=color, lw=1.1, label={"torch": "PyTorch"}.get(name, name))
            x = np.linspace(edges[0], edges[-1], 400)
            if shown["law"] == "normal":
                law = np.exp(-0.5 * (x / shown["sigma"]) ** 2) / shown["sigma"] / math.sqrt(2 * math.pi)
            else:
                law = np.where(np.abs(x) <= shown["bound"], 0.5 / shown["bound"], 0.0)
            axes.plot(x, law, color="black", lw=0.9, ls="--", label=f"the law ({shown['law']})")
            axes.set(xlabel="weight", yticks=[])
            axes.xaxis.set_major_locator(ticker.MaxNLocator(5))
            axes.set_ylim(0, 1.2 * axes.get_ylim()[1])  # room for the legend
            legend(axes, loc="upper center", ncols=3)

        yield shown["name"], picture(draw, (4.6, 2.6))


# A finished run -------------------------------------------------------------------------------------------------------


def run(evidence: Mapping) -> Pictures:
    """Losses and learning rates of both sides over the steps, and how far the losses are apart."""
    for curve in evidence["curves"]:
        steps = np.arange(len(curve["losses"]))
        ours = np.add(curve["losses"], curve["apart"])

        def losses(axes: Axes, curve: Mapping = curve, steps=steps, ours=ours) -> None:
            axes.plot(steps, curve["losses"], color=TORCH, lw=1.4, label="PyTorch")
            axes.plot(steps, ours, ".", color=JAXSEG, ms=5, label="jaxseg")
            axes.set(xlabel="step", ylabel="loss")
            axes.grid(alpha=0.25)
            legend(axes)

        def apart(axes: Axes, curve: Mapping = curve, steps=steps) -> None:
            axes.plot(steps, _positive(np.abs(curve["apart"]).tolist()), ".-", color=GRAY, lw=1)
            axes.set(xlabel="step", ylabel="|jaxseg - PyTorch|", yscale="log")
            axes.grid(alpha=0.25)

        def rates(axes: Axes, curve: Mapping = curve, steps=steps) -> None:
            axes.plot(steps, curve["rates"], ".-", color=TORCH, lw=1)
            axes.set(xlabel="step", ylabel="learning rate")
            axes.grid(alpha=0.25)

        yield f"{curve['name']}: loss of each step in float64.", picture(losses)
        yield "Distance of the losses; no dot where every bit is equal.", picture(apart)
        yield "Learning rates, the same on both sides.", picture(rates)


# Float32 and below ----------------------------------------------------------------------------------------------------


def rounding(evidence: Mapping) -> Pictures:
    """One pass: errors of three kinds, ULPs, and growth from layer to layer."""
    for case in dict.fromkeys(entry["case"] for entry in evidence["three_way"]):
        yield _three_way([entry for entry in evidence["three_way"] if entry["case"] == case], case)
    yield from (_ulps(name, pairs) for name, pairs in evidence["ulps"].items())
    yield from (_growth(evidence["layers"], direction) for direction in ("forward", "backward"))


SIDES = (("jaxseg", "jaxseg to float64", JAXSEG), ("torch", "PyTorch to float64", TORCH), ("between", "apart", GRAY))


def _three_way(entries: list[Mapping], case: str) -> tuple[str, str]:
    def draw(axes: Axes) -> None:
        places = np.arange(len(entries))
        for i, (key, label, color) in enumerate(SIDES):
            values = [[value or np.nan for value in entry[key]] for entry in entries]
            for j in range(len(values[0])):  # a dot a seed
                dots = [value[j] for value in values]
                axes.plot(dots, places + 0.2 * (i - 1), "o", ms=4, color=color, label=label if j == 0 else None)
        axes.set(xscale="log", xlabel="relative l2", yticks=places, yticklabels=[e["quantity"] for e in entries])
        axes.grid(alpha=0.25, axis="x")
        axes.set_ylim(len(entries) - 0.3, -0.7)
        legend(axes, loc="lower center", bbox_to_anchor=(0.4, 1), ncols=3, handletextpad=0.1, columnspacing=1)

    return f"Errors of one pass, {case}; a dot is a seed.", picture(draw)


def _ulps(name: str, pairs: Mapping[str, Mapping]) -> tuple[str, str]:
    bounds = ("0", "1", "4", "16", "64", "256")

    def draw(axes: Axes) -> None:
        places = np.arange(len(bounds))
        for i, ((pair, found), color) in enumerate(zip(pairs.items(), (JAXSEG, TORCH, "#8fb8de", GRAY))):
            share = np.diff([found[bound] for bound in bounds], prepend=0.0)
            label = pair if pair == "jaxseg" else f"PyTorch, {pair}"
            axes.bar(
                places + 0.27 * (i - 1), 100 * share, 0.25, color=color, label=f"{label}: median {found['median']:.3g}"
            )
        ticks = ["0", "1", *(f"to {bound}" for bound in bounds[2:])]
        axes.set(xlabel="ULPs from PyTorch", ylabel="% of elements", xticks=places, xticklabels=ticks)
        legend(axes, loc="best")

    return (
        f"ULPs between {name} of one pass in float32, and PyTorch from itself; the rest up to 100 % is farther.",
        picture(draw),
    )


def _growth(layers: list[Mapping], direction: str) -> tuple[str, str]:
    shown = [layer for layer in layers if layer.get(direction)]

    def draw(axes: Axes) -> None:
        for key, label, color in (*SIDES, ("float64", "apart in float64", "black")):
            values = [layer[direction].get(key) or np.nan for layer in shown]
            axes.plot(np.arange(len(shown)), values, ".-", color=color, label=label, lw=1, ms=4)
        axes.set(yscale="log", ylabel="relative l2", xlabel="layer, in the order of the forward pass")
        axes.grid(alpha=0.25)
        legend(axes, loc="best")

    first, last = shown[0]["name"], shown[-1]["name"]
    return f"Error by layer, {direction}s, from {first} to {last}; no dot where every bit is equal.", picture(draw)


def divergence(evidence: Mapping) -> Pictures:
    """Distances over the steps beside PyTorch's from itself, and the branches that explain the jumps."""
    yield from map(_envelope, evidence["recipes"])
    yield _flips(evidence["flips"])


def _envelope(recipe: Mapping) -> tuple[str, str]:
    def draw(axes: Axes) -> None:
        styles = (("-", "C0"), ("-", "C2"), ("-", "C4"), ("-", "C5"))
        for (name, runs), (style, color) in zip(recipe["variations"].items(), styles):
            for i, run in enumerate(runs):
                label = f"PyTorch, {name}" if i == 0 else None
                axes.plot(recipe["steps"], _positive(run), style, color=color, lw=0.8, alpha=0.7, label=label)
        for i, run in enumerate(recipe["jaxseg"]):
            axes.plot(recipe["steps"], _positive(run), color=JAXSEG, lw=1.6, label="jaxseg" if i == 0 else None)
        axes.set(yscale="log", xlabel="step", ylabel="distance of parameters from PyTorch")
        axes.grid(alpha=0.25)
        legend(axes, loc="lower right")

    return f"{recipe['name']}: distance from PyTorch over the steps, a line for each seed.", picture(draw)


def _flips(flips: Mapping) -> tuple[str, str]:
    def draw(axes: Axes) -> None:
        counts = np.array(flips["counts"], float)  # [step, layer]
        total = counts.sum(axis=1)
        axes.bar(flips["steps"], total, color="#e9b8a6", label="branches that differ")
        axes.set(xlabel="step", ylabel="ReLU signs and pooling choices that differ")
        axes.set_yscale("symlog", linthresh=1)
        twin = axes.twinx()
        twin.plot(flips["steps"], _positive(flips["distance"]), color=JAXSEG, lw=1.4, label="distance of parameters")
        twin.set_yscale("log")
        twin.tick_params(labelsize=8)
        handles = [h for a in (axes, twin) for h in a.get_legend_handles_labels()[0]]
        axes.legend(handles, [h.get_label() for h in handles], fontsize=7.5, frameon=False, loc="upper left")

    return "Branches taken differently by jaxseg and PyTorch, and the distance that follows.", picture(draw)


def _positive(values: list[float]) -> list[float]:
    return [value if value else np.nan for value in values]
