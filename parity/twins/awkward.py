"""A small folder of tiles that is easy to read wrong, in the article's layout: what the data question asks beside real
data.
"""

from pathlib import Path

import cv2
import numpy as np

from jaxseg.data.made.fields import write_png

# Dots within names; and sorted, the masks of these come in another order than the images.
NAMES = ("a.b.c.png", "tile1.png", "tile10.2021.png", "tile1_b.png", "tile2.v1.final.png", "tile3.png", "z.jpg")
SIZE = (24, 40)


def make_awkward(root: Path, seed: int) -> Path:
    """Writes len(NAMES) tiles of SIZE pixels to train/ and val/ each, with masks whose borders are antialiased.

    Masks are gray and in color in turn; each has every gray value from 0 to 255, pure colors, and the four colors
    within 1 of white whose gray is 254 or, by rounding, 255.
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
    """uint8 [h w] or, in color, [h w 3]."""
    noise = cv2.GaussianBlur(rng.random(SIZE), (0, 0), 3)
    gray = np.clip((noise - np.median(noise)) * 30_000 + 128, 0, 255).astype(np.uint8)
    gray.flat[:256] = rng.permutation(256)
    if not color:
        return gray
    mask = cv2.cvtColor(gray, cv2.COLOR_GRAY2BGR)
    mask[-1, :7] = 255 * np.eye(3, dtype=np.uint8)[[0, 1, 2, 0, 1, 2, 0]]
    mask[-2, :4] = [(254, 255, 255), (255, 254, 255), (255, 255, 254), (254, 254, 255)]
    return mask
