"""The pictures of a run, uint8 RGB: a sheet of tiles with masks, predictions and errors, and the curves."""

import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Integer, UInt8

# matplotlib takes 0.6 s to import and is imported where it is used, so that `-h` answers at once.

IGNORE = 255
TRAIN, VALIDATION = "#0072b2", "#d55e00"
TILE_PIXELS = (160, 512)  # smaller tiles are enlarged, larger ones thinned out
LABEL, GAP = 26, 8  # pixels for a line of text, and between tiles


def _palette() -> UInt8[np.ndarray, "256 3"]:
    """Okabe and Ito's colors (2008), which color-blind people tell apart, after a dark class 0; then many hues.
    255, which is ignored, is gray."""
    okabe_ito = [[34, 34, 40], [230, 159, 0], [86, 180, 233], [0, 158, 115], [240, 228, 66], [0, 114, 178]]
    okabe_ito += [[213, 94, 0], [204, 121, 167]]
    number = np.arange(len(okabe_ito), 256)
    hsv = np.stack([number * 111 % 180, 120 + number * 53 % 120, 130 + number * 71 % 126], -1).astype(np.uint8)
    colors = np.concatenate([np.array(okabe_ito, np.uint8), cv2.cvtColor(hsv[None], cv2.COLOR_HSV2RGB)[0]])
    colors[IGNORE] = 128
    return colors


PALETTE = _palette()  # uint8 [256 3] RGB, by class

# What the last panel of a sample shows, RGB.
RIGHT, MISSED, FALSE, WRONG = "agrees", "missed", "false", "other class"
VERDICTS = {RIGHT: (0, 158, 115), MISSED: (213, 94, 0), FALSE: (86, 180, 233), WRONG: (240, 228, 66)}


def draw_curves(epochs: list[dict]) -> UInt8[np.ndarray, "h w 3"]:
    """Loss, scores and learning rate over the epochs, RGB; the gap between training and validation is shaded."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), dpi=100, layout="constrained")
    loss, scores, rate = figure.subplots(1, 3)
    x = [record["epoch"] + 1 for record in epochs]

    def value(split: str, name: str) -> np.ndarray:
        return np.array([record[split][name] for record in epochs], float)  # null becomes nan, which is not drawn

    def pair(axes, name: str, label: str, style: str) -> None:
        for split, color in (("train", TRAIN), ("validation", VALIDATION)):
            axes.plot(x, value(split, name), style, color=color, label=f"{label} {split}".strip(), markersize=3, lw=1.6)
        axes.fill_between(x, value("train", name), value("validation", name), color="0.5", alpha=0.18, lw=0)

    pair(loss, "loss", "", "o-")
    pair(scores, "accuracy", "accuracy", "s:")
    pair(scores, "miou", "mIoU", "o-")
    miou = value("validation", "miou")
    if np.isfinite(miou).any():
        best = int(np.nanargmax(miou))
        scores.plot(x[best], miou[best], "*", color=VALIDATION, markersize=14, markeredgecolor="white", zorder=5)
        best_text = f", best {miou[best]:.3f} in epoch {x[best]}"
    else:
        best_text = ""
    rates = np.array([record["learning_rate"] for record in epochs], float)
    rate.plot(x, np.where(rates > 0, rates, np.nan), "o-", color="#009e73", markersize=3, lw=1.6)
    if (rates > 0).any():
        rate.set_yscale("log")

    titles = {loss: "Loss (shaded: gap)", scores: f"Accuracy, mIoU{best_text}", rate: "Learning rate"}
    for axes, title in titles.items():
        axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    loss.legend(frameon=False)
    scores.legend(frameon=False, loc="lower right", fontsize=9)
    return _pixels(figure)


def draw_samples(
    images: UInt8[np.ndarray, "b h w c"],
    masks: Integer[np.ndarray, "b h w"],
    predictions: Integer[np.ndarray, "b h w"] | None = None,
    class_names: Sequence[str] | None = None,
    captions: Sequence[str] | None = None,
) -> UInt8[np.ndarray, "height width 3"]:
    """A sheet of tiles, RGB: image, mask and, where there are predictions, prediction and errors; with a legend."""
    panels = [[_rgb(image), PALETTE[mask]] for image, mask in zip(images, masks, strict=True)]
    heads = ["image", "mask"]
    if predictions is not None:
        heads += ["prediction", "errors"]
        for row, mask, prediction in zip(panels, masks, predictions, strict=True):
            row += [PALETTE[prediction], _errors(row[0], mask, prediction)]
    panels = [[_resize(panel) for panel in row] for row in panels]
    height, width = panels[0][0].shape[:2]

    groups = 1 if len(panels) < 3 else 2  # tiles side by side
    line = height + GAP + (LABEL if captions else 0)
    group = len(heads) * (width + GAP) + 3 * GAP
    sheet_width = groups * group
    legend = _legend(masks, predictions, class_names)
    legend_places = _flow([42 + 8 * len(name) for name, _ in legend], sheet_width - GAP)
    bottom = LABEL + -(-len(panels) // groups) * line
    canvas = np.full((bottom + LABEL * (1 + legend_places[-1][1]), sheet_width, 3), 255, np.uint8)
    columns = [GAP + g * group + i * (width + GAP) for g in range(groups) for i in range(len(heads))]
    texts = [(x, 0, head, "bold") for x, head in zip(columns, heads * groups, strict=True)]
    for number, row in enumerate(panels):
        y, x = LABEL + number // groups * line, GAP + number % groups * group
        if captions:
            texts.append((x, y, captions[number], "normal"))
            y += LABEL
        for i, panel in enumerate(row):
            canvas[y : y + height, x + i * (width + GAP) :][:, :width] = panel
    for (name, color), (x, row) in zip(legend, legend_places, strict=True):
        x, y = GAP + x, bottom + row * LABEL
        if color is None:
            texts.append((x + 10, y, name, "bold"))
        else:
            canvas[y + 5 : y + 21, x : x + 16] = color
            texts.append((x + 22, y, name, "normal"))
    return _write(canvas, texts)


def _legend(masks, predictions, class_names: Sequence[str] | None) -> list[tuple[str, object]]:
    """Names and colors of the classes that are named, or else found, then of the errors, behind a title (None)."""
    found = set(np.unique(masks).tolist()) | (set() if predictions is None else set(np.unique(predictions).tolist()))
    classes = range(len(class_names)) if class_names else sorted(found - {IGNORE})
    legend = [(class_names[k] if class_names else f"class {k}", PALETTE[k]) for k in classes]
    if IGNORE in found:
        legend.append(("ignored", PALETTE[IGNORE]))
    if predictions is not None:
        verdicts = [item for item in VERDICTS.items() if item[0] != WRONG or len(classes) > 2]
        legend += [("errors", None), *verdicts]
    return legend


def _flow(widths: list[int], room: int) -> list[tuple[int, int]]:
    """Places things of some widths from left to right, line under line: (x, line) of each."""
    places, x, line = [], 0, 0
    for width in widths:
        if x and x + width > room:
            x, line = 0, line + 1
        places.append((x, line))
        x += width
    return places


def _rgb(image: UInt8[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h w 3"]:
    """BGR, or the first three channels of more, to RGB; fewer than three channels are shown as gray."""
    return np.ascontiguousarray(image[..., 2::-1]) if image.shape[-1] >= 3 else np.repeat(image[..., :1], 3, -1)


def _errors(image: np.ndarray, mask: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """The image in gray, colored by what the prediction is: right, missed (0 instead of a class), false or another."""
    shown = np.repeat(image.mean(-1, keepdims=True), 3, -1) * 0.75 + 32
    wrong = mask != prediction
    verdicts = {
        RIGHT: (~wrong & (mask > 0), 0.3),
        MISSED: (wrong & (prediction == 0), 0.85),
        FALSE: (wrong & (mask == 0), 0.85),
        WRONG: (wrong & (mask > 0) & (prediction > 0), 0.85),
    }
    for verdict, (where, strength) in verdicts.items():
        shown[where] = shown[where] * (1 - strength) + np.array(VERDICTS[verdict]) * strength
    shown[mask == IGNORE] = PALETTE[IGNORE]
    return shown.astype(np.uint8)


def _resize(panel: np.ndarray) -> np.ndarray:
    """Whole pixels only: labels have no colors in between."""
    smallest, largest = TILE_PIXELS
    side = max(panel.shape[:2])
    thinned = panel[:: -(-side // largest), :: -(-side // largest)]
    times = max(1, -(-smallest // side))
    return thinned.repeat(times, 0).repeat(times, 1)


def _write(canvas: UInt8[np.ndarray, "h w 3"], texts: list[tuple]) -> UInt8[np.ndarray, "h w 3"]:
    """Puts texts (x and y of the line's upper left corner in pixels, string, weight) on a canvas."""
    from matplotlib.figure import Figure

    height, width = canvas.shape[:2]
    figure = Figure(figsize=(width / 100, height / 100), dpi=100)
    figure.figimage(canvas)
    for x, y, text, weight in texts:
        place = {"va": "center", "fontsize": 10.5, "fontweight": weight, "parse_math": False}
        figure.text(x / width, 1 - (y + LABEL / 2) / height, text, **place)
    return _pixels(figure)


def _pixels(figure) -> UInt8[np.ndarray, "h w 3"]:
    """Draws a matplotlib figure that belongs to no window and no global state, RGB."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]


def write_png(path: Path, image: UInt8[np.ndarray, "h w 3"]) -> None:
    """Writes RGB as a PNG."""
    replace(path, cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]))[1].tobytes())


def replace(path: Path, content: bytes) -> None:
    """Writes a file, whole or not at all: nobody reads a half of it, and a crash leaves the old one."""
    draft = path.with_name(f".{path.name}.tmp")
    draft.write_bytes(content)
    os.replace(draft, path)
