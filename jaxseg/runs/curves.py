"""Draws curves of a run: loss, scores, class IoU and learning rate by epoch."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from jaxseg.data.read.masks import PALETTE
from jaxseg.runs.fonts import drawable
from jaxseg.runs.pictures import draw, shorten

TRAIN, VALIDATION = "#0072b2", "#d55e00"


def draw_curves(epochs: list[dict], class_names: Sequence[str] | None = None) -> UInt8[np.ndarray, "h w 3"]:
    """Draws loss, scores and learning rate by epoch; uint8 RGB. The gap from training to validation is shaded.

    - `epochs`: lines of log.jsonl, at least one
    - `class_names`: one name per class; numbers if None

    If the log has them, the validation IoU of every class is drawn below. A missing value is a gap in its line.
    """
    from matplotlib.figure import Figure

    classes = max((len(record["validation"].get("iou", [])) for record in epochs), default=0)
    figure = Figure(figsize=(13, 8 if classes else 4), dpi=100, layout="constrained")
    rows = figure.subfigures(2, 1) if classes else [figure]
    loss, scores, rate = rows[0].subplots(1, 3)
    x = [record["epoch"] + 1 for record in epochs]

    def value(split: str, name: str) -> np.ndarray:
        return np.array([record[split].get(name) for record in epochs], float)  # None becomes NaN, which is not drawn

    def pair(axes, name: str, label: str, style: str) -> None:
        for split, color in (("train", TRAIN), ("validation", VALIDATION)):
            axes.plot(x, value(split, name), style, color=color, label=f"{label} {split}".strip(), markersize=3, lw=1.6)
        axes.fill_between(x, value("train", name), value("validation", name), color="0.5", alpha=0.18, lw=0)

    pair(loss, "loss", "", "o-")
    pair(scores, "accuracy", "accuracy", "s:")
    pair(scores, "miou", "mIoU", "o-")
    miou, best_text = value("validation", "miou"), ""
    if np.isfinite(miou).any():
        best = int(np.nanargmax(miou))
        scores.plot(x[best], miou[best], "*", color=VALIDATION, markersize=14, markeredgecolor="white", zorder=5)
        best_text = f", best {miou[best]:.3f} in epoch {x[best]}"
    rates = np.array([record["learning_rate"] for record in epochs], float)
    rate.plot(x, np.where(rates > 0, rates, np.nan), "o-", color="#009e73", markersize=3, lw=1.6)
    if (rates > 0).any():
        rate.set_yscale("log")

    titles = {loss: "Loss (shaded: gap)", scores: f"Accuracy, mIoU{best_text}", rate: "Learning rate"}
    if classes:
        by_class = rows[1].subplots()
        names = drawable(class_names or [f"class {number}" for number in range(classes)])
        _class_lines(by_class, x, [record["validation"].get("iou", [None] * classes) for record in epochs], names)
        titles[by_class] = "Validation IoU of each class, best at the end first"
    for axes, title in titles.items():
        axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    loss.legend(frameon=False)
    scores.legend(frameon=False, loc="lower right", fontsize=9)
    return draw(figure)


def _class_lines(axes, x: list[int], iou: list[list[float | None]], names: Sequence[str]) -> None:
    """A line per class. The legend is sorted by the last score, with at most 20 names a column."""
    iou = np.array(iou, float)
    last = np.nan_to_num(iou[-1], nan=-1)
    for number in np.argsort(-last, kind="stable").tolist():
        color = np.minimum(PALETTE[number], 200) / 255  # darker, as yellow is invisible on white
        value = "absent" if last[number] < 0 else f"{last[number]:.3f}"
        style = ("o-", "s--", "^:")[number // 8 % 3]
        label = f"{value}  {shorten(names[number], 28)}"
        axes.plot(x, iou[:, number], style, color=color, label=label, markersize=3, lw=1.4)
    columns = -(-len(names) // 20)
    place = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.06), "ncols": columns}
    legend = axes.legend(frameon=False, fontsize=8, labelspacing=0.35, **place)
    for text in legend.get_texts():
        text.set_parse_math(False)
    axes.set_ylim(-0.02, 1.02)
