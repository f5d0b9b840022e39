"""What both sides compute and read."""

import dataclasses
import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from benchmarks.workers import Contender
from jaxseg.base.config import Data
from jaxseg.data.find.folders import find_split
from jaxseg.data.find.listing import Pair

LEARNING_RATE = 1e-3


@dataclasses.dataclass(frozen=True)
class Task:
    """A U-Net with transposed convolutions, or one with an encoder, 3 channels and 2 classes, and its batch.

    - `base`: channels at full resolution, doubled at each level below; of an encoder, those of its first convolution
    - `batch`, `side`: square uint8 images, and pixels a side
    - `precision`: "f32" (TF32 on a GPU, both sides), or "bf16": autocast with parameters in float32
    """

    base: int
    batch: int
    side: int
    precision: str
    levels: int = 5
    encoder: str | None = None

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels at each level."""
        return tuple(self.base << level for level in range(self.levels))

    def made_up_batch(self) -> dict[str, np.ndarray]:
        """A batch as the pipeline's: noise, with a mask that follows from it."""
        image = np.random.default_rng(0).integers(0, 256, (self.batch, self.side, self.side, 3), np.uint8)
        return {"image": image, "mask": image[..., 0] // 128, "valid": np.ones(self.batch, bool)}


@dataclasses.dataclass(frozen=True)
class Source:
    """Training pairs of a folder in the article's layout, repeated up to `tiles`.

    - `folder`: with train/ and Ltrain/
    - `tiles`: pairs in an epoch
    - `workers`: threads of jaxseg's pipeline, processes of PyTorch's loader
    """

    folder: Path
    tiles: int
    workers: int

    @property
    def pairs(self) -> list[Pair]:
        """Pairs in the order of their names."""
        return list(itertools.islice(itertools.cycle(find_split(Data(data=self.folder), 0).training), self.tiles))

    def side(self) -> int:
        """Pixels a side of the first tile; all are expected to be such squares."""
        return cv2.imread(str(self.pairs[0].image)).shape[0]


def decoder(source: Source) -> Contender:
    """`cv2.imread` of image and mask in a pool of threads, and nothing else: the rate that a reader can reach."""
    cv2.setNumThreads(0)
    pairs = source.pairs

    def decode(pair: Pair) -> int:
        return sum(cv2.imread(str(path), cv2.IMREAD_UNCHANGED).nbytes for path in (pair.image, pair.mask))

    def run(times: int) -> None:
        with ThreadPoolExecutor(source.workers) as pool:
            for _ in range(times):
                sum(pool.map(decode, pairs))

    return Contender(run, len(pairs))
