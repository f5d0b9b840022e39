"""Random crops and the order of an epoch, a part of the augmentation question (`parity/checks/augmentation.py`).

A picture whose pixels name their place goes through `Pipeline` as a file, so each crop tells its corner.
"""

import itertools
import tempfile
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from scipy import stats

from jaxseg.data.feed.pipeline import Pipeline
from jaxseg.data.find.listing import Pair
from parity.judge import compare, laws
from parity.judge.compare import Row

QUESTION = "augmentation"
SIZE, ROOM = 16, (4, 6)  # of a crop, and the number of places along each side
CROPS, BATCH = 600, 50
RUNS = ((0, 0), (0, 1), (1, 1), (2, 0))  # seed and epoch: neighbors differ in one, the last two have one sum


def rows(seed: int, alpha: float) -> Iterable[Row]:
    """Rows for the corners of crops from memory and on the device, and for the order of the samples."""
    with tempfile.TemporaryDirectory() as folder:
        pair = picture(Path(folder))
        corners = {cache: [drawn(pair, cache, seed + s, epoch) for s, epoch in RUNS] for cache in ("memory", "device")}
    order = np.stack([pipeline(pair, "none", seed + s, CROPS).order(epoch) for s, epoch in RUNS])
    for cache, found in corners.items():
        counts = np.bincount(np.ravel_multi_index(np.concatenate(found).T, ROOM), minlength=ROOM[0] * ROOM[1])
        worst = f"{counts.min()} to {counts.max()} times each of {counts.size} places"
        p = float(stats.chisquare(counts).pvalue)
        yield laws.chance(QUESTION, f"crops, {cache}: all places equally likely", p, alpha, worst=worst)
        never = int((counts == 0).sum())
        yield compare.at_most(QUESTION, f"crops, {cache}: places that never occur", never, 0, worst=worst)
        y, x = np.moveaxis(np.stack(found), -1, 0) - (np.array(ROOM).reshape(2, 1, 1) - 1) / 2
        signs = {"row": y, "column": x, "order": order - (CROPS - 1) / 2}
        note = "of seeds, epochs, rows, columns and the order"
        yield laws.independent(QUESTION, f"crops, {cache}: independence", signs, alpha, note)
        neighbors = {"a crop's row": y[:, ::2], "the next's row": y[:, 1::2]}
        neighbors |= {"a crop's column": x[:, ::2], "the next's column": x[:, 1::2]}
        yield laws.independent(QUESTION, f"crops, {cache}: neighbors in a batch", neighbors, alpha)
        shifted = {"a crop's row": y[:1, 1:], "the row of the crop before in the next epoch": y[1:2, :-1]}
        yield laws.independent(QUESTION, f"crops, {cache}: neighbors in two epochs", shifted, alpha)
        batches = {f"batch {i}": y[:, BATCH * i : BATCH * (i + 1)] for i in range(3)}
        yield laws.independent(QUESTION, f"crops, {cache}: batches", batches, alpha)
    yield order_row(order, alpha)


def order_row(order: np.ndarray, alpha: float) -> Row:
    """Row for the first and the last place of an epoch: every sample comes, and no place keeps its sample."""
    wrong = [i for i, one in enumerate(order) if not np.array_equal(np.sort(one), np.arange(one.size))]
    same = [
        f"{a} and {b}" for a, b in itertools.combinations(range(len(order)), 2) if (order[a] == order[b]).sum() > 20
    ]
    note = "not every sample once, or more than 20 places alike in two epochs"
    return compare.at_most(QUESTION, "order of an epoch", len(wrong) + len(same), 0, note, f"{wrong} {same}")


def picture(folder: Path) -> Pair:
    """A picture of 19x21 pixels with row and column in the first two channels, and its mask."""
    y, x = np.mgrid[: SIZE + ROOM[0] - 1, : SIZE + ROOM[1] - 1].astype(np.uint8)
    for name, array in (("image", np.stack([y, x, 0 * y], -1)), ("mask", 10 * (x % 2))):
        (folder / f"{name}.png").write_bytes(cv2.imencode(".png", array)[1].tobytes())
    return Pair(folder / "image.png", folder / "mask.png")


def pipeline(pair: Pair, cache: str, seed: int, crops: int) -> Pipeline:
    """Crops of one picture, shuffled."""
    size = (SIZE + ROOM[0] - 1, SIZE + ROOM[1] - 1)
    options = {"crop": (SIZE, SIZE), "crops": crops, "sizes": [size], "shuffle": True}
    return Pipeline([pair], batch_size=BATCH, cache=cache, seed=seed, **options)


def drawn(pair: Pair, cache: str, seed: int, epoch: int) -> np.ndarray:
    """Corners [crops 2] of an epoch."""
    batches = pipeline(pair, cache, seed, CROPS).epoch(epoch)
    return np.concatenate([np.asarray(batch["image"])[:, 0, 0, :2].astype(int) for batch in batches])
