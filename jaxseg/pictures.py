"""The pictures of a run, uint8 RGB: a sheet of tiles with masks, predictions and errors, overlays, and the curves."""

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, Integer, Shaped, UInt8

from jaxseg.files import replace

# matplotlib takes 0.6 s to import and is imported where it is used, so that `-h` answers at once.

IGNORE = 255
TRAIN, VALIDATION = "#0072b2", "#d55e00"
TILE_PIXELS = (160, 512)  # smaller tiles are enlarged, larger ones thinned out
LABEL, GAP = 26, 8  # pixels for a line of text, and between tiles
LETTER = 8  # pixels, about
STRETCH = (2, 98)  # percentiles that become black and white


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


def draw_curves(epochs: list[dict], class_names: Sequence[str] | None = None) -> UInt8[np.ndarray, "h w 3"]:
    """Loss, scores and learning rate over the epochs, RGB; the gap between training and validation is shaded.

    Where the log has them, the validation IoU of every class comes below. What an epoch lacks is a gap in its line.
    """
    from matplotlib.figure import Figure

    classes = max((len(record["validation"].get("iou", [])) for record in epochs), default=0)
    figure = Figure(figsize=(13, 8 if classes else 4), dpi=100, layout="constrained")
    rows = figure.subfigures(2, 1) if classes else [figure]
    loss, scores, rate = rows[0].subplots(1, 3)
    x = [record["epoch"] + 1 for record in epochs]

    def value(split: str, name: str) -> np.ndarray:
        return np.array([record[split].get(name) for record in epochs], float)  # None becomes nan, which is not drawn

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
        names = class_names or [f"class {number}" for number in range(classes)]
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
    """A line for each class, named beside the picture in the order of their ends; at most 20 names a column."""
    iou = np.array(iou, float)
    last = np.nan_to_num(iou[-1], nan=-1)
    for number in np.argsort(-last, kind="stable").tolist():
        color = np.minimum(PALETTE[number], 200) / 255  # yellow is not seen on white
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


def draw_samples(
    images: Iterable[Shaped[np.ndarray, "_ _ _"]],
    masks: Iterable[Integer[np.ndarray, "_ _"]],
    predictions: Iterable[Integer[np.ndarray, "_ _"]] | None = None,
    class_names: Sequence[str] | None = None,
    captions: Sequence[str] | None = None,
    palette: UInt8[np.ndarray, "256 3"] = PALETTE,
) -> UInt8[np.ndarray, "height width 3"]:
    """A sheet of tiles, RGB: image, mask and, where there are predictions, prediction and errors; with a legend.

    images: [h w c] as `to_rgb` takes them, of one size or of several; masks: class numbers, 255 is ignored; palette:
    colors of the classes.
    """
    palette = _gray_where_ignored(palette)
    images, masks = [thin(image) for image in images], [thin(mask) for mask in masks]
    panels = [[to_rgb(image, mask != IGNORE), palette[mask]] for image, mask in zip(images, masks, strict=True)]
    heads = ["image", "mask"]
    if predictions is not None:
        heads += ["prediction", "errors"]
        predictions = [thin(prediction) for prediction in predictions]
        for row, mask, prediction in zip(panels, masks, predictions, strict=True):
            row += [palette[prediction], _errors(row[0], mask, prediction)]
    panels = [[_enlarge(panel) for panel in row] for row in panels]
    width = max(row[0].shape[1] for row in panels)

    groups = 1 if len(panels) < 3 else 2  # tiles side by side
    group = len(heads) * (width + GAP) + 3 * GAP
    sheet_width = groups * group
    lines = [max(row[0].shape[0] for row in panels[i : i + groups]) for i in range(0, len(panels), groups)]
    tops = LABEL + np.cumsum([0] + [height + GAP + (LABEL if captions else 0) for height in lines])
    legend = _legend(masks, predictions, class_names, palette, (sheet_width - GAP - 42) // LETTER)
    legend_places = _flow([42 + LETTER * len(name) for name, _ in legend], sheet_width - GAP)
    bottom = int(tops[-1])
    canvas = np.full((bottom + LABEL * (1 + legend_places[-1][1]), sheet_width, 3), 255, np.uint8)
    columns = [GAP + g * group + i * (width + GAP) for g in range(groups) for i in range(len(heads))]
    texts = [(x, 0, head, "bold") for x, head in zip(columns, heads * groups, strict=True)]
    for number, row in enumerate(panels):
        y, x = int(tops[number // groups]), GAP + number % groups * group
        if captions:
            texts.append((x, y, shorten(captions[number], (group - 3 * GAP) // LETTER), "normal"))
            y += LABEL
        for i, panel in enumerate(row):
            canvas[y : y + panel.shape[0], x + i * (width + GAP) :][:, : panel.shape[1]] = panel
    for (name, color), (x, row) in zip(legend, legend_places, strict=True):
        x, y = GAP + x, bottom + row * LABEL
        if color is None:
            texts.append((x + 10, y, name, "bold"))
        else:
            canvas[y + 5 : y + 21, x : x + 16] = color
            texts.append((x + 22, y, name, "normal"))
    return _write(canvas, texts)


def overlay(
    image: Shaped[np.ndarray, "h w c"],
    classes: Integer[np.ndarray, "h w"],
    palette: UInt8[np.ndarray, "256 3"] = PALETTE,
    opacity: float = 0.5,
) -> UInt8[np.ndarray, "h w 3"]:
    """An image, as `to_rgb` takes it, under the colors of its classes, RGB; `opacity` from 0 (image) to 1 (classes)."""
    return cv2.addWeighted(to_rgb(image), 1 - opacity, _gray_where_ignored(palette)[classes], opacity, 0)


def to_rgb(
    image: Shaped[np.ndarray, "h w c"], valid: Bool[np.ndarray, "h w"] | None = None
) -> UInt8[np.ndarray, "h w 3"]:
    """BGR, or the first three channels of more, to RGB; fewer than three channels are shown as gray.

    uint8 stays as it is. Of any other type the 2nd percentile of each channel becomes black and the 98th white; they
    are taken where `valid`, and never of what is not finite, which is black.
    """
    bands = image[..., 2::-1] if image.shape[-1] >= 3 else image[..., :1]
    if bands.dtype != np.uint8:
        bands = _stretch(bands, valid)
    return np.ascontiguousarray(bands) if bands.shape[-1] == 3 else np.repeat(bands, 3, -1)


def _stretch(bands: np.ndarray, valid: np.ndarray | None) -> UInt8[np.ndarray, "h w c"]:
    known = np.isfinite(thin(bands)).all(-1)
    if valid is not None and (known & thin(valid)).any():
        known &= thin(valid)
    sample = thin(bands)[known].astype(np.float64)
    if not len(sample):
        return np.zeros(bands.shape, np.uint8)
    low, high = np.percentile(sample, STRETCH, axis=0)
    flat = high <= low  # nearly everywhere the same
    low, high = np.where(flat, sample.min(0), low), np.where(flat, sample.max(0), high)
    shown = (bands.astype(np.float32) - low.astype(np.float32)) / np.maximum(high - low, 1e-30).astype(np.float32)
    return (np.clip(np.nan_to_num(shown, posinf=0, neginf=0), 0, 1) * 255).astype(np.uint8)


def shorten(text: str, most: int) -> str:
    """At most so many characters: what is too many is left out of the middle."""
    half = max(1, (most - 1) // 2)
    return text if len(text) <= most else f"{text[: most - 1 - half]}…{text[-half:]}"


def _gray_where_ignored(palette: np.ndarray) -> np.ndarray:
    return np.concatenate([palette[:IGNORE], PALETTE[IGNORE:]])


def _legend(
    masks: list, predictions: list | None, class_names: Sequence[str] | None, palette: np.ndarray, most: int
) -> list[tuple[str, object]]:
    """Names, of so many characters at most, and colors: of the classes that are named, or else found, then of the
    errors, behind a title (None)."""
    found = set(np.concatenate([np.unique(array) for array in [*masks, *(predictions or [])]]).tolist())
    classes = range(len(class_names)) if class_names else sorted(found - {IGNORE})
    legend = [(shorten(class_names[k] if class_names else f"class {k}", most), palette[k]) for k in classes]
    if IGNORE in found:
        legend.append(("ignored", palette[IGNORE]))
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


def thin(array: np.ndarray) -> np.ndarray:
    """Every second row and column, or third, ..., so that neither side is longer than a tile of a sheet."""
    step = -(-max(array.shape[:2]) // TILE_PIXELS[1])
    return array[::step, ::step]


def _enlarge(panel: np.ndarray) -> np.ndarray:
    """Whole pixels only: labels have no colors in between."""
    times = max(1, -(-TILE_PIXELS[0] // max(panel.shape[:2])))
    return panel.repeat(times, 0).repeat(times, 1)


def _write(canvas: UInt8[np.ndarray, "h w 3"], texts: list[tuple]) -> UInt8[np.ndarray, "h w 3"]:
    """Puts texts (x and y of the line's upper left corner in pixels, string, weight) on a canvas."""
    from matplotlib.figure import Figure

    height, width = canvas.shape[:2]
    figure = Figure(figsize=(width / 100, height / 100), dpi=100)
    figure.figimage(canvas)
    for x, y, text, weight in texts:
        place = {"va": "center", "fontsize": 10.5, "fontweight": weight, "parse_math": False}
        figure.text(x / width, 1 - (y + LABEL / 2) / height, text, **place)
    return draw(figure)


def draw(figure) -> UInt8[np.ndarray, "h w 3"]:
    """Draws a matplotlib figure that belongs to no window and no global state, RGB."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a name in a script that the font lacks
        canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]


def write_png(path: Path, image: UInt8[np.ndarray, "h w 3"]) -> None:
    """Writes RGB as a PNG."""
    replace(path, cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]))[1].tobytes())
