"""Tiny made-up data sets of every kind that the recipes ask for, in the article's layout."""

from pathlib import Path

import cv2
import numpy as np
import tifffile

SIZES = {
    "square": ([(16, 16)], [(16, 16)]),
    "oblong": ([(24, 16)], [(24, 16)]),
    "large": ([(40, 32)], [(40, 32)]),
    "mixed": ([(16, 24), (24, 16), (20, 20)], [(16, 16), (20, 36)]),
}
"""Heights and widths of training and of validation images, in turn."""
TRAINING = 7
VALIDATION = {"square": 5, "oblong": 37, "large": 5, "mixed": 5}
"""Number of images; 37 make more batches of four than a validation keeps under way."""
CHANNELS = {"uint8 color": 3, "uint16 bands": 4, "int16 bands": 3, "float32 bands": 2}
VALUES = {
    "binarized": (0, 255, 200),
    "numbers": (0, 1, 2, 255),
    "chosen numbers": (3, 7, 9, 5),
    "absent class": (0, 1, 2, 255),
    "colors": ((0, 0, 0), (255, 160, 0)),
}
"""Mask values, the most frequent first; the last of four is ignored."""


def make(root: Path, images: str, masks: str, sizes: str, seed: int = 0) -> Path:
    """Writes train/ Ltrain/ val/ Lval/ and returns `root`. Classes follow from the images, so they can be learned.

    Every image has pixels of 0 in all bands, and float images a pixel that is not a number.
    """
    for part, (name, count) in enumerate((("train", TRAINING), ("val", VALIDATION[sizes]))):
        for folder in (root / name, root / f"L{name}"):
            folder.mkdir(parents=True)
        for number in range(count):
            h, w = SIZES[sizes][part][number % len(SIZES[sizes][part])]
            rng = np.random.default_rng((seed, part, number))
            image, where = draw(rng, h, w, images)
            where[where == 1] = 1 if number % 3 else 0  # the second class does not occur in every image
            stem = f"{name}_{number}"
            if images == "uint8 color":
                cv2.imwrite(str(root / name / f"{stem}.png"), image)
            else:
                tifffile.imwrite(root / name / f"{stem}.tif", image, photometric="minisblack", planarconfig="contig")
            values = np.array(VALUES[masks])[where % len(VALUES[masks])]
            mask = values[..., ::-1] if values.ndim == 3 else values
            cv2.imwrite(str(root / f"L{name}" / f"{stem}_mask.png"), np.ascontiguousarray(mask.astype(np.uint8)))
    return root


def draw(rng: np.random.Generator, h: int, w: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """An image [h w c] of the kind, and the number of the class at each pixel, int [h w], 0 to 3."""
    channels = CHANNELS[kind]
    noise = rng.random((h + 4, w + 4, channels))
    smooth = sum(noise[i : i + h, j : j + w] for i in range(5) for j in range(5)) / 25
    level = np.clip((smooth - 0.5) * 4 + 0.5 + rng.normal(0, 0.05, smooth.shape), 0.02, 0.98)
    where = np.digitize(smooth[..., :2].mean(-1), [0.49, 0.53])
    where[rng.integers(h), :2] = 3
    level[: h // 4, : w // 4] = 0
    dtype = kind.split()[0]
    if dtype == "float32":
        image = (4 * level).astype(np.float32)
        image[h // 2, w // 2] = np.nan
        image[h // 2, 0, 0] = np.nan
        return image, where
    if dtype == "int16":
        return np.where(level == 0, 0, level * 9000 - 2000).astype(np.int16), where
    return (level * np.iinfo(dtype).max).astype(dtype), where
