"""Draws a confusion matrix."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Integer, UInt8

from jaxseg.learn.metrics import ratio
from jaxseg.runs.fonts import drawable
from jaxseg.runs.pictures import draw, shorten

CELL = 0.62  # side of a cell in inches
MOST_WRITTEN = 40  # with more classes, cells are small and without text
NAME = 28  # most characters of a class name


def draw_confusion(confusion: Integer[np.ndarray, "k k"], class_names: Sequence[str]) -> UInt8[np.ndarray, "h w 3"]:
    """Draws each cell's share of its row in percent, and below it the number of pixels. Returns uint8 RGB [h w 3].

    - `confusion`: pixel counts [label prediction]
    - `class_names`: one name per class

    Recall is on the diagonal. A class without labels has an empty row.
    """
    from matplotlib.figure import Figure

    classes = len(class_names)
    written = classes <= MOST_WRITTEN
    cell = max(CELL if written else 0.2, 2.4 / classes)
    names = [shorten(name, NAME) for name in drawable(class_names)]
    side, margin = cell * classes, 0.6 + 0.08 * max(map(len, names))
    left, top, width, height = margin + 0.7, side + 0.12, side + margin + 2.2, side + margin + 0.6
    figure = Figure(figsize=(width, height), dpi=100)
    axes = figure.add_axes([left / width, 0.12 / height, side / width, side / height])

    shares = ratio(confusion, np.broadcast_to(confusion.sum(1, keepdims=True), confusion.shape))
    axes.imshow(np.nan_to_num(shares), cmap="Blues", vmin=0, vmax=1)
    large = min(2.0, cell / CELL)  # few classes have large cells, and larger text
    for (row, column), count in np.ndenumerate(confusion if written else confusion[:0]):
        if count:
            place = {"ha": "center", "va": "center", "color": "white" if shares[row, column] > 0.55 else "black"}
            axes.text(column, row - 0.16, percent(shares[row, column]), fontsize=8 * large, fontweight="bold", **place)
            axes.text(column, row + 0.2, human(int(count)), fontsize=6.5 * large, **place)

    text = {"fontsize": 9 if written else 7, "parse_math": False}
    support = [human(int(count)) for count in confusion.sum(1)]
    axes.set_yticks(range(classes), [f"{name}  {n}" for name, n in zip(names, support, strict=True)], **text)
    upright = cell < 0.1 * max(map(len, names))
    axes.set_xticks(range(classes), names, rotation=90 if upright else 0, **text)
    axes.xaxis.tick_top()
    for ticks in (axes.set_xticks, axes.set_yticks):
        ticks(np.arange(classes - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="0.85", lw=0.6)
    axes.tick_params(which="both", length=0)
    title = {"fontsize": 10, "fontweight": "bold"}
    axes.set_ylabel("label, with its pixels", **title)
    above = top + (margin - 0.25 if upright else 0.35)
    figure.text(left / width, above / height, "prediction, percent of the label's pixels", **title)
    return _without_white_borders(draw(figure))


def _without_white_borders(picture: np.ndarray, keep: int = 12) -> np.ndarray:
    inked = (picture < 255).any(-1)
    rows, columns = np.flatnonzero(inked.any(1)), np.flatnonzero(inked.any(0))
    picture = picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return np.pad(picture, ((keep, keep), (keep, keep), (0, 0)), constant_values=255)


def percent(share: float) -> str:
    """Formats a share as percent. Only exactly 0 and 1 are shown as 0.0 and 100.0."""
    if 0 < share < 0.0005:
        return "<0.1"
    return ">99.9" if 0.9995 <= share < 1 else f"{100 * share:.1f}"


def human(count: int) -> str:
    """Formats a count in a few characters: 950, 9.5k, 950k, 9.5M."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.1f}{unit}" if count < 99.95 * size else f"{count / size:.0f}{unit}"
    return str(count)
