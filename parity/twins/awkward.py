"""A small folder of tiles that are easy to read wrong, in the article's layout, for the data question."""

from pathlib import Path

import cv2
import numpy as np

from jaxseg.data.made.fields import write_png

# Names with dots; sorted, their masks come in another order than the images.
NAMES = ("a.b.c.png", "tile1.png", "tile10.2021.png", "tile1_b.png", "tile2.v1.final.png", "tile3.png", "z.jpg")
SIZE = (24, 40)


def make_awkward(root: Path, seed: int) -> Path:
    """Writes len(NAMES) tiles of SIZE pixels to each of train/ and val/, with antialiased masks.

    Masks are gray and in color by turns, and have every gray value from 0 to 255. Those in color also have pure
    colors, and four colors within 1 of white, whose gray is 254 or, by rounding, 255.
    """
    rng = np.random.default_rng(seed)
    for split in ("train", "val"):
        (root / split).mkdir(parents=True)
        for i, name in enumerate(NAMES):
            image = rng.integers(0, 256, (*SIZE, 3), np.uint8)
            (root / split / name).write_bytes(cv2.imencode(Path(name).suffix, image)[1].tobytes())
            write_png(root / f"L{split}" / f"{name.split('.')[0]}_mask.png", _mask(rng, color=i % 2 == 1))
    return root


def _mask(rng: np.random.Generator, color: bool) -> np.ndarray:
    """Mask uint8 [h w], or [h w 3] in color."""
    noise = cv2.GaussianBlur(rng.random(SIZE), (0, 0), 3)
    gray = np.clip((noise - np.median(noise)) * 30_000 + 128, 0, 255).astype(np.uint8)
    gray.flat[:256] = rng.permutation(256)
    if not color:
        return gray
    mask = cv2.cvtColor(gray, cv2.COLOR_GRAY2BGR)
    mask[-1, :7] = 255 * np.eye(3, dtype=np.uint8)[[0, 1, 2, 0, 1, 2, 0]]
    mask[-2, :4] = [(254, 255, 255), (255, 254, 255), (255, 255, 254), (254, 254, 255)]
    return mask
