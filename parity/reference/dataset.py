"""The article's dataset and loader: BGR tiles read by OpenCV, masks where only gray 255 counts, shuffled batches."""

import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset


def to_tensor(image: np.ndarray) -> torch.Tensor:
    """Converts uint8 [h w c] to float32 [c h w] in 0..1 by a true division by 255, as torchvision's ToTensor does."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).to(torch.float32).div(255)


def gray_of(bgr: np.ndarray) -> np.ndarray:
    """Gray uint8 [...] of BGR colors uint8 [... 3] by the formula of OpenCV's COLOR_BGR2GRAY, in 15-bit fixed point.

    OpenCV used 14 bits until 2018 (pull request 12279), which differ by 1 for one color in 382.
    """
    blue, green, red = np.moveaxis(bgr.astype(np.int32), -1, 0)
    return ((3735 * blue + 19235 * green + 9798 * red + (1 << 14)) >> 15).astype(np.uint8)


def _pillow(bgr: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(np.ascontiguousarray(bgr[..., ::-1])).convert("L"))


def _rounded(bgr: np.ndarray) -> np.ndarray:
    return np.rint(bgr @ np.array([0.114, 0.587, 0.299])).astype(np.uint8)


OTHER_GRAYS = {"Pillow's L": _pillow, "0.114 B + 0.587 G + 0.299 R": _rounded}
"""Other conversions to gray than OpenCV's: uint8 [h w 3] BGR -> uint8 [h w]."""


class TileDataset(Dataset):
    """Tiles in `images_dir`, each with `<name up to its first dot>_mask.png` in `masks_dir`.

    Every file of `images_dir` is a tile, as in the article. The article keeps the order of `os.listdir`, which depends
    on the platform. Here names are sorted, so an index means the same tile everywhere.
    """

    def __init__(self, images_dir: str | Path, masks_dir: str | Path):
        self.images_dir, self.masks_dir = Path(images_dir), Path(masks_dir)
        self.names = sorted(os.listdir(images_dir))

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image uint8 [h w c] in BGR and mask uint8 [h w]: 1 where gray is 255, 0 below."""
        return _imread(self.images_dir / self.names[index]), self.read_gray(index) // 255

    def read_gray(self, index: int) -> np.ndarray:
        """Mask in gray as it is on disk, uint8 [h w]."""
        mask = _imread(self.masks_dir / f"{self.names[index].split('.')[0]}_mask.png")
        return cv2.cvtColor(mask, cv2.COLOR_BGR2GRAY)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Image float32 [c h w] in 0..1 and mask int64 [h w]."""
        image, mask = self.read(index)
        return to_tensor(image), torch.from_numpy(mask).to(torch.int64)


def _imread(path: Path) -> np.ndarray:
    """Image by `cv2.imread`; raises FileNotFoundError where that returns None, and the article fails a line later."""
    image = cv2.imread(str(path)) if path.is_file() else None
    if image is None:
        raise FileNotFoundError(f"{path}: OpenCV cannot read it; expected an image file")
    return image


def loader(
    dataset: Dataset, batch_size: int = 5, order: Sequence[int] | None = None, num_workers: int = 0
) -> DataLoader:
    """The article's DataLoader: shuffled by torch's global generator, with the short last batch kept.

    order: indices to follow instead of a shuffle, for the same batches as another framework.
    """
    if order is None:
        return DataLoader(dataset, batch_size, shuffle=True, num_workers=num_workers)
    return DataLoader(dataset, batch_size, sampler=list(order), num_workers=num_workers)
