"""The files that both sides read: the same pairs of tiles, by jaxseg's pipeline and by the article's loader."""

import dataclasses
import itertools
from pathlib import Path

import cv2

from jaxseg.base.config import Data
from jaxseg.base.errors import UserError
from jaxseg.data.find.folders import find_split
from jaxseg.data.find.listing import Pair
from jaxseg.data.made.fields import make_fields


@dataclasses.dataclass(frozen=True)
class Source:
    """Training pairs of a folder in the article's layout, so many as `tiles`, over and over where there are fewer."""

    folder: Path
    tiles: int
    workers: int
    """Threads of jaxseg's pipeline; processes of PyTorch's loader."""

    @property
    def pairs(self) -> list[Pair]:
        """In the order of their names."""
        return list(itertools.islice(itertools.cycle(find_split(Data(data=self.folder), 0).training), self.tiles))

    def side(self) -> int:
        """Pixels of a side of the tiles. Raises UserError if they are not squares of a size that the network takes."""
        sizes = {cv2.imread(str(pair.image)).shape[:2] for pair in dict.fromkeys(self.pairs)}
        h, w = min(sizes)
        if len(sizes) > 1 or h != w or h % 16:
            found = ", ".join(f"{w}x{h}" for h, w in sorted(sizes)[:3])
            raise UserError(f"--data {self.folder}: tiles of {found}; expected squares of one size, a multiple of 16")
        return h

    def pipeline(self, batch: int, cache: str):
        """jaxseg's, shuffled; `cache`: "none", "memory", "disk" or "device"."""
        from jaxseg.data.feed.pipeline import Pipeline

        return Pipeline(self.pairs, batch_size=batch, shuffle=True, workers=self.workers, cache=cache)

    def torch_loader(self, batch: int, workers: int, keep: bool):
        """The article's; `keep` its processes from epoch to epoch, which the article does not."""
        from torch.utils.data import DataLoader

        from parity.reference.dataset import TileDataset

        dataset = TileDataset(self.folder / "train", self.folder / "Ltrain")
        dataset.names = [pair.image.name for pair in self.pairs]
        return DataLoader(dataset, batch, shuffle=True, num_workers=workers, persistent_workers=keep and workers > 0)


def open_folder(given: Path | None, temporary: Path, side: int) -> Path:
    """The folder that was given, or 64 made-up crop fields in `temporary`. Raises UserError for one that the article's
    loader cannot read.
    """
    if given is None:
        return make_fields(temporary / "fields", train=64, val=8, size=side)
    needed = [given / name for name in ("train", "Ltrain")]
    problems = [f"no folder {folder}" for folder in needed if not folder.is_dir()]
    if not problems:
        images = {pair.image for pair in find_split(Data(data=given), 0).training}
        masks = [given / "Ltrain" / f"{image.name.split('.')[0]}_mask.png" for image in sorted(images)]
        problems = [f"no mask {mask}" for mask in masks if not mask.is_file()][:3]
    if problems:
        raise UserError(
            f"--data {given}: {', '.join(problems)}. The article's loader is compared, which needs train/NAME.EXT and "
            "Ltrain/NAME_mask.png."
        )
    return given
