"""PyTorch trained plainly on a folder in the article's layout: the other side of a comparison of final scores.

    python -m parity.reference.training --data ROOT --widths 16 32 64 128 256 --batch-size 8 --epochs 12

ROOT holds train/ Ltrain/ val/ Lval/ with tiles of one size. Float32, channels_last, the article's initial weights,
Adam; the learning rate warms up linearly and falls with the textbook cosine, step by step. One line per epoch, and
with `--out` the same as JSON lines.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from torch import nn

from parity.reference.dataset import TileDataset
from parity.reference.initialization import init_weights
from parity.reference.scheduler import textbook_warmup_cosine
from parity.reference.unet import UNet

CLASSES = 2
FLOOR = 1e-9  # learning rate at both ends, as in the article


def training_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: torch.Tensor, masks: torch.Tensor
) -> torch.Tensor:
    """One update on images float [b c h w] and masks int64 [b h w]; returns the mean cross-entropy before it."""
    return _update(optimizer, *_loss_and_logits(model, images, masks))[0]


def _loss_and_logits(model, images, masks) -> tuple[torch.Tensor, torch.Tensor]:
    logits = model(images)
    return F.cross_entropy(logits, masks), logits


def _update(optimizer, loss, logits) -> tuple[torch.Tensor, torch.Tensor]:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach(), logits.detach()


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Writes `lr` into every parameter group, the article's way of following a schedule."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def train(
    data: Path,
    widths: tuple[int, ...] = (16, 32, 64, 128, 256),
    batch_size: int = 8,
    epochs: int = 12,
    warmup_epochs: float = 1,
    learning_rate: float = 1e-3,
    seed: int = 0,
    augment: bool = False,
    threads: int | None = None,
    out: Path | None = None,
) -> list[dict]:
    """Trains the reference U-Net and returns one record per epoch.

    Args:
        data: Folder holding train/ Ltrain/ val/ Lval/.
        widths: Channels at each level, from full resolution down.
        batch_size: Tiles per step; the last short batch is kept.
        epochs: Passes over the training tiles.
        warmup_epochs: Linear warm-up.
        learning_rate: Peak learning rate.
        seed: Weights, order and augmentation follow from it.
        augment: Random flips and quarter turns of image and mask.
        threads: CPU threads, PyTorch's choice if not given; 1 is far faster when other programs keep the cores busy.
        out: File for the records, one JSON object per line.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    torch.manual_seed(seed)
    training = _decode(TileDataset(data / "train", data / "Ltrain"))
    validation = _decode(TileDataset(data / "val", data / "Lval"))
    model = UNet(classes=CLASSES, widths=widths).apply(init_weights).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    steps_per_epoch = -(-len(training[0]) // batch_size)

    records = []
    for epoch in range(epochs):
        start = time.perf_counter()
        model.train()
        loss_sum, confusion = 0.0, torch.zeros(CLASSES, CLASSES, dtype=torch.int64)
        order = torch.randperm(len(training[0]))
        for step, (images, masks) in enumerate(_batches(training, order, batch_size, augment)):
            ticks = (epoch * steps_per_epoch + step, learning_rate)
            spans = (warmup_epochs * steps_per_epoch, epochs * steps_per_epoch)
            set_learning_rate(optimizer, textbook_warmup_cosine(*ticks, *spans, FLOOR, FLOOR))
            loss, logits = _update(optimizer, *_loss_and_logits(model, images, masks))
            loss_sum += float(loss) * len(images)
            confusion += _confusion(logits, masks)
        seconds = time.perf_counter() - start
        val_loss, val_confusion = evaluate(model, validation, batch_size)
        records.append({
            "epoch": epoch + 1,
            "train_loss": loss_sum / len(order),
            "train_accuracy": _accuracy(confusion),
            "val_loss": val_loss,
            "val_accuracy": _accuracy(val_confusion),
            "val_miou": mean_iou(val_confusion),
            "images_per_second": len(order) / seconds,
        })  # fmt: skip
        print("  ".join(f"{key} {value:.5g}" for key, value in records[-1].items()), flush=True)
        if out is not None:
            out.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return records


@torch.no_grad()
def evaluate(model: nn.Module, tiles: tuple[torch.Tensor, torch.Tensor], batch_size: int) -> tuple[float, torch.Tensor]:
    """Mean cross-entropy per pixel and the confusion matrix (rows: truth) over decoded tiles, in evaluation mode."""
    model.eval()
    loss, confusion = 0.0, torch.zeros(CLASSES, CLASSES, dtype=torch.int64)
    for images, masks in _batches(tiles, torch.arange(len(tiles[0])), batch_size, augment=False):
        logits = model(images)
        loss += float(F.cross_entropy(logits, masks, reduction="sum"))
        confusion += _confusion(logits, masks)
    return loss / tiles[1].numel(), confusion


def mean_iou(confusion: torch.Tensor) -> float:
    """Mean over classes of intersection over union, over the whole data set; a class never seen counts for nothing."""
    hits = confusion.diag().double()
    return float((hits / (confusion.sum(0) + confusion.sum(1) - hits)).nanmean())


def _accuracy(confusion: torch.Tensor) -> float:
    return float(confusion.diag().sum() / confusion.sum())


def _confusion(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    pairs = masks * CLASSES + logits.argmax(dim=1)
    return torch.bincount(pairs.flatten(), minlength=CLASSES**2).reshape(CLASSES, CLASSES)


def _decode(dataset: TileDataset) -> tuple[torch.Tensor, torch.Tensor]:
    """Every tile of a set in memory, read once: images uint8 [n h w c] and masks uint8 [n h w]."""
    images, masks = zip(*(dataset.read(i) for i in range(len(dataset))), strict=True)
    return torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(masks))


def _batches(
    tiles: tuple[torch.Tensor, torch.Tensor], order: torch.Tensor, batch_size: int, augment: bool
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for indices in order.split(batch_size):
        images, masks = (part[indices] for part in tiles)
        if augment:
            pairs = (_flip_and_turn(*pair) for pair in zip(images, masks, strict=True))
            images, masks = (torch.stack(part) for part in zip(*pairs, strict=True))
        # A permuted [b h w c] is channels_last already.
        yield images.permute(0, 3, 1, 2).to(torch.float32).div(255), masks.to(torch.int64)


def _flip_and_turn(image: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same one of eight flips and quarter turns (four, when not square) for image [h w c] and mask [h w]."""
    square = mask.shape[0] == mask.shape[1]
    turns = int(torch.randint(4, ())) if square else 2 * int(torch.randint(2, ()))
    mirrored = bool(torch.randint(2, ()))
    turned = (torch.rot90(part, turns, (0, 1)) for part in (image, mask))
    return tuple(part.flip(1) if mirrored else part for part in turned)


if __name__ == "__main__":
    tyro.cli(train, prog="python -m parity.reference.training", description=__doc__)
