"""Writing image files, shared by several tests."""

from pathlib import Path

import cv2
import numpy as np


def write(path: Path, pixels: np.ndarray) -> Path:
    """Writes pixels [h w] or BGR [h w c] as the suffix says, with the folders above."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix.lower(), pixels)[1].tobytes())
    return path
