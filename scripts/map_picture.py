"""Draws a class map over its scene, beside the scene: `python scripts/map_picture.py SCENE MAP OUT [FIRST SIDE]`.

Takes a square of SIDE pixels from row and column FIRST of both files, GeoTIFF of equal size.
"""

import sys

import cv2
import numpy as np
import rasterio
from rasterio.windows import Window

from jaxseg.data.read.masks import PALETTE


def main(scene: str, classes: str, out: str, first: str = "0", side: str = "512") -> None:
    window = Window(int(first), int(first), int(side), int(side))
    with rasterio.open(scene) as file:
        image = np.moveaxis(file.read((3, 2, 1), window=window), 0, -1)
    with rasterio.open(classes) as file:
        found = file.read(1, window=window)
    inside = (found > 0) & (found < 255)
    colored = np.where(inside[..., None], image // 2 + PALETTE[found][..., ::-1] // 2, image)
    borders = cv2.morphologyEx(found, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    colored[borders] = 255
    gap = np.full((len(image), 8, 3), 255, np.uint8)
    cv2.imwrite(out, np.hstack([image, gap, colored]), [cv2.IMWRITE_JPEG_QUALITY, 85])


if __name__ == "__main__":
    main(*sys.argv[1:])
