"""Draws sheets of images with masks, predictions and errors, uint8 RGB."""

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, Integer, Shaped, UInt8

from jaxseg.base.config import IGNORE_INDEX
from jaxseg.base.files import replace
from jaxseg.data.read.masks import PALETTE
from jaxseg.runs.fonts import drawable, set_fonts

# matplotlib takes 0.6 s to import, so it is imported where it is used.

TILE_PIXELS = (160, 512)  # least and most pixels a side of a panel
LABEL, GAP = 26, 8  # pixels: height of a line of text, distance of panels
LETTER = 8  # pixels: average width of a character
STRETCH = (2, 98)  # percentiles shown as black and white

# Verdicts in the panel of errors, with their RGB colors.
RIGHT, MISSED, FALSE, WRONG = "agrees", "missed", "false", "other class"
VERDICTS = {RIGHT: (0, 158, 115), MISSED: (213, 94, 0), FALSE: (86, 180, 233), WRONG: (240, 228, 66)}


def draw_samples(
    images: Iterable[Shaped[np.ndarray, "_ _ _"]],
    masks: Iterable[Integer[np.ndarray, "_ _"]],
    predictions: Iterable[Integer[np.ndarray, "_ _"]] | None = None,
    class_names: Sequence[str] | None = None,
    captions: Sequence[str] | None = None,
    palette: UInt8[np.ndarray, "256 3"] = PALETTE,
) -> UInt8[np.ndarray, "height width 3"]:
    """Draws a row of panels per sample, with a legend: image, mask and, if given, prediction and errors; uint8 RGB.

    - `images`: [h w c] each, as `to_rgb` takes them; sizes may differ
    - `masks`: class numbers [h w] each; `IGNORE_INDEX` is ignored
    - `predictions`: class numbers [h w] each
    - `class_names`: one name per class; numbers if None
    - `captions`: one per sample
    - `palette`: RGB colors of the classes
    """
    palette, class_names = _gray_where_ignored(palette), class_names and drawable(class_names)
    images, masks = [thin(image) for image in images], [thin(mask) for mask in masks]
    panels = [[to_rgb(image, mask != IGNORE_INDEX), palette[mask]] for image, mask in zip(images, masks, strict=True)]
    heads = ["image", "mask"]
    if predictions is not None:
        heads += ["prediction", "errors"]
        predictions = [thin(prediction) for prediction in predictions]
        for row, mask, prediction in zip(panels, masks, predictions, strict=True):
            row += [palette[prediction], _errors(row[0], mask, prediction)]
    panels = [[_enlarge(panel) for panel in row] for row in panels]
    width = max(row[0].shape[1] for row in panels)

    groups = 1 if len(panels) < 3 else 2  # samples side by side
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


def to_rgb(
    image: Shaped[np.ndarray, "h w c"], valid: Bool[np.ndarray, "h w"] | None = None
) -> UInt8[np.ndarray, "h w 3"]:
    """Converts an image to RGB: channels 3, 2, 1 if there are three or more, else the first one as gray.

    - `image`: uint8 stays as it is; other types are stretched from the 2nd percentile (black) to the 98th (white)
    - `valid`: pixels for the percentiles; all if None

    Pixels that are not finite are left out of the percentiles and shown black.
    """
    bands = image[..., 2::-1] if image.shape[-1] >= 3 else image[..., :1]
    if bands.dtype != np.uint8:
        bands = _stretch(bands, valid)
    return np.ascontiguousarray(bands) if bands.shape[-1] == 3 else np.repeat(bands, 3, -1)


def thin(array: np.ndarray) -> np.ndarray:
    """Subsamples rows and columns evenly, until no side exceeds the largest panel; a view."""
    step = -(-max(array.shape[:2]) // TILE_PIXELS[1])
    return array[::step, ::step]


def shorten(text: str, most: int) -> str:
    """Shortens text to at most `most` characters, by leaving out its middle."""
    half = max(1, (most - 1) // 2)
    return text if len(text) <= most else f"{text[: most - 1 - half]}…{text[-half:]}"


def draw(figure) -> UInt8[np.ndarray, "h w 3"]:
    """Renders a matplotlib figure without pyplot's global state; uint8 RGB."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    set_fonts(figure)
    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # names of files may have letters that no font has
        canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]


def write_png(path: Path, image: UInt8[np.ndarray, "h w 3"]) -> None:
    """Writes an RGB image as a PNG, atomically. Raises OSError when it cannot be written."""
    replace(path, cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]))[1].tobytes())


def _stretch(bands: np.ndarray, valid: np.ndarray | None) -> UInt8[np.ndarray, "h w c"]:
    known = np.isfinite(thin(bands)).all(-1)
    if valid is not None and (known & thin(valid)).any():
        known &= thin(valid)
    sample = thin(bands)[known].astype(np.float64)
    if not len(sample):
        return np.zeros(bands.shape, np.uint8)
    low, high = np.percentile(sample, STRETCH, axis=0)
    flat = high <= low  # nearly constant
    low, high = np.where(flat, sample.min(0), low), np.where(flat, sample.max(0), high)
    shown = (bands.astype(np.float32) - low.astype(np.float32)) / np.maximum(high - low, 1e-30).astype(np.float32)
    return (np.clip(np.nan_to_num(shown, posinf=0, neginf=0), 0, 1) * 255).astype(np.uint8)


def _gray_where_ignored(palette: np.ndarray) -> np.ndarray:
    return np.concatenate([palette[:IGNORE_INDEX], PALETTE[IGNORE_INDEX:]])


def _legend(
    masks: list, predictions: list | None, class_names: Sequence[str] | None, palette: np.ndarray, most: int
) -> list[tuple[str, object]]:
    """Names, at most `most` characters long, and colors: of the classes, then of the errors under a title (None)."""
    found = set(np.concatenate([np.unique(array) for array in [*masks, *(predictions or [])]]).tolist())
    classes = range(len(class_names)) if class_names else sorted(found - {IGNORE_INDEX})
    legend = [(shorten(class_names[k] if class_names else f"class {k}", most), palette[k]) for k in classes]
    if IGNORE_INDEX in found:
        legend.append(("ignored", palette[IGNORE_INDEX]))
    if predictions is not None:
        verdicts = [item for item in VERDICTS.items() if item[0] != WRONG or len(classes) > 2]
        legend += [("errors", None), *verdicts]
    return legend


def _flow(widths: list[int], room: int) -> list[tuple[int, int]]:
    """Lays out items of these widths in lines of width `room`; (x, line) of each."""
    places, x, line = [], 0, 0
    for width in widths:
        if x and x + width > room:
            x, line = 0, line + 1
        places.append((x, line))
        x += width
    return places


def _errors(image: np.ndarray, mask: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """The image in gray, with each pixel tinted by its verdict. Missed is 0 for a class, false a class for 0."""
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
    shown[mask == IGNORE_INDEX] = PALETTE[IGNORE_INDEX]
    return shown.astype(np.uint8)


def _enlarge(panel: np.ndarray) -> np.ndarray:
    """Repeats pixels, as labels cannot be interpolated."""
    times = max(1, -(-TILE_PIXELS[0] // max(panel.shape[:2])))
    return panel.repeat(times, 0).repeat(times, 1)


def _write(canvas: UInt8[np.ndarray, "h w 3"], texts: list[tuple]) -> UInt8[np.ndarray, "h w 3"]:
    """Writes texts on a canvas: (x, y, string, weight) each, x and y of the upper left corner in pixels."""
    from matplotlib.figure import Figure

    height, width = canvas.shape[:2]
    figure = Figure(figsize=(width / 100, height / 100), dpi=100)
    figure.figimage(canvas)
    for x, y, text, weight in texts:
        place = {"va": "center", "fontsize": 10.5, "fontweight": weight, "parse_math": False}
        figure.text(x / width, 1 - (y + LABEL / 2) / height, text, **place)
    return draw(figure)
