"""Writing image files, shared by several tests."""

from pathlib import Path

import cv2
import numpy as np
import tifffile


def write(path: Path, pixels: np.ndarray) -> Path:
    """Writes pixels [h w] or BGR [h w c] as the suffix says, bands [h w c] into a .tif, with the folders above."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        tifffile.imwrite(path, pixels, photometric="minisblack", planarconfig="contig")
        return path
    path.write_bytes(cv2.imencode(path.suffix.lower(), pixels)[1].tobytes())
    return path
