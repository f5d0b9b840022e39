"""Are the batches the reference's, byte for byte?

Both sides read the same folder, jaxseg through its pipeline (decode, order, batch, transfer, normalize on the device)
and the reference through its DataLoader: once in the order of the files, once in jaxseg's shuffled order replayed
there. Nothing is computed in floating point but one division by 255, which has one right answer, so the gate is
equality. Not seen: what both sides share, which is OpenCV's decoder and its conversion to gray.
"""

from pathlib import Path

import jax
import numpy as np

from jaxseg.config import Data
from jaxseg.data import tiles
from jaxseg.data.pipeline import Pipeline, to_device
from jaxseg.step import normalize
from parity import compare
from parity.answer import Answer, Settings
from parity.compare import Row
from parity.reference.dataset import TileDataset, loader, to_tensor

QUESTION = "data"
BATCH_SIZE = 5  # the article's


def run(settings: Settings) -> Answer:
    """The data question, on the folder `settings.data` with train/ Ltrain/ val/ Lval/."""
    root, seed = settings.data, settings.seed
    training, validation = tiles.find_splits(Data(data=root), seed)
    rows = [
        bytes_row(),
        batches_row("validation tiles, in order", Pipeline(validation, batch_size=BATCH_SIZE), root, "val"),
        *shuffled_rows(training, root, seed),
    ]
    return Answer(QUESTION, tuple(rows))


def bytes_row() -> Row:
    """All 256 values of a byte, normalized inside a compiled function, against a division by 255."""
    values = np.arange(256, dtype=np.uint8)
    with jax.enable_x64(False):
        found = jax.jit(normalize)(values)
    expected = to_tensor(values.reshape(16, 16, 1)).numpy().ravel()
    differing = int((np.asarray(jax.jit(lambda x: x.astype(np.float32) / 255)(values)) != expected).sum())
    note = f"a plain x / 255 compiled by XLA differs for {differing} of 256"
    return compare.equal_bytes(QUESTION, "all 256 bytes / 255", found, expected, note)


def batches_row(name: str, pipeline: Pipeline, root: Path, split: str, epoch: int = 0) -> Row:
    """Every batch of an epoch, images in float32 and masks, against the DataLoader's in the same order."""
    dataset = TileDataset(root / split, root / f"L{split}")
    expected = iter(loader(dataset, pipeline.batch_size, order=pipeline.order(epoch).tolist()))
    compiled, rows = jax.jit(normalize), []
    for i, batch in enumerate(to_device(pipeline.epoch(epoch))):
        images, masks = next(expected)
        valid = np.asarray(batch["valid"])
        found = {"image": np.asarray(compiled(batch["image"]))[valid], "mask": np.asarray(batch["mask"])[valid]}
        wanted = {"image": images.permute(0, 2, 3, 1).numpy(), "mask": masks.numpy().astype(np.uint8)}
        rows.append(compare.equal_bytes(QUESTION, f"batch {i}", found, wanted))
    left = sum(1 for _ in expected)
    rows.append(compare.at_most(QUESTION, "batches that only the reference has", left, 0))
    note = f"{len(dataset)} tiles of {root.name}, batches of {pipeline.batch_size}, the last of {int(valid.sum())}"
    return compare.worst_of(QUESTION, name, rows, note)


def shuffled_rows(training: list[tiles.Pair], root: Path, seed: int) -> list[Row]:
    """A shuffled epoch replayed by the reference, and what makes it an order."""
    pipeline = Pipeline(training, batch_size=BATCH_SIZE, shuffle=True, seed=seed, workers=2)
    orders = [pipeline.order(epoch) for epoch in range(2)]
    sorted_orders = {f"epoch {i}": np.sort(order) for i, order in enumerate(orders)}
    every = {name: np.arange(len(training)) for name in sorted_orders}
    unmoved = float((orders[0] == orders[1]).mean())
    return [
        batches_row("training tiles, shuffled", pipeline, root, "train", epoch=1),
        compare.equal_bytes(QUESTION, "each epoch has each tile once", sorted_orders, every),
        compare.at_most(
            QUESTION, "epochs differ in order", unmoved, 0.5, "share of tiles at the same place in two epochs"
        ),
    ]
