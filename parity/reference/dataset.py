"""The article's dataset and loader: OpenCV's BGR tiles, masks of which only gray 255 counts, shuffled batches."""

import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset


def to_tensor(image: np.ndarray) -> torch.Tensor:
    """What torchvision's ToTensor does to uint8 [h w c]: float32 [c h w] in 0..1, by a true division by 255."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).to(torch.float32).div(255)


class TileDataset(Dataset):
    """Tiles in `images_dir`, each with `<name up to its first dot>_mask.png` in `masks_dir`.

    Every file of `images_dir` is taken for a tile, as the article does. The article keeps the order of `os.listdir`,
    which the platform chooses; here names are sorted, so that an index means the same tile everywhere.
    """

    def __init__(self, images_dir: str | Path, masks_dir: str | Path):
        self.images_dir, self.masks_dir = Path(images_dir), Path(masks_dir)
        self.names = sorted(os.listdir(images_dir))

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image uint8 [h w c] in BGR and mask uint8 [h w] of 0 and 1: gray 255 becomes 1, everything below it 0."""
        name = self.names[index]
        image = _imread(self.images_dir / name)
        mask = _imread(self.masks_dir / f"{name.split('.')[0]}_mask.png")
        return image, cv2.cvtColor(mask, cv2.COLOR_BGR2GRAY) // 255

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Image float32 [c h w] in 0..1 and mask int64 [h w]."""
        image, mask = self.read(index)
        return to_tensor(image), torch.from_numpy(mask).to(torch.int64)


def _imread(path: Path) -> np.ndarray:
    """`cv2.imread`, but raising FileNotFoundError where that returns None and the article fails a line later."""
    image = cv2.imread(str(path))
    if image is None:
        raise FileNotFoundError(f"{path}: OpenCV finds no image there; expected a picture it can decode")
    return image


def loader(
    dataset: Dataset, batch_size: int = 5, order: Sequence[int] | None = None, num_workers: int = 0
) -> DataLoader:
    """The article's DataLoader: shuffled by torch's global generator, the last short batch kept.

    `order` replays an explicit list of indices instead, so that another framework can be given the same batches.
    """
    if order is None:
        return DataLoader(dataset, batch_size, shuffle=True, num_workers=num_workers)
    return DataLoader(dataset, batch_size, sampler=list(order), num_workers=num_workers)
