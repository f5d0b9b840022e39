"""Draws predicted polygons over their scene, beside the scene: `python scripts/map_picture.py SCENE POLYGONS OUT`.

SCENE is a north-up GeoTIFF of red, green, blue; POLYGONS a file of `jaxseg.predict --vector`. FIRST and SIDE may
follow: the first row and column of the square to show, and its side in pixels.
"""

import sys

import cv2
import numpy as np
import pyogrio
import rasterio
import shapely
from rasterio.features import rasterize
from rasterio.windows import Window, bounds, transform

from jaxseg.data.read.masks import PALETTE


def main(scene: str, polygons: str, out: str, first: str = "200", side: str = "520") -> None:
    window = Window(int(first), int(first), int(side), int(side))
    with rasterio.open(scene) as file:
        image = np.moveaxis(file.read((3, 2, 1), window=window), 0, -1)
        place, area = transform(window, file.transform), bounds(window, file.transform)
    _, _, found, (classes,) = pyogrio.raw.read(polygons, columns=["class"], bbox=area)
    fields = shapely.from_wkb(found)
    numbers = rasterize(zip(fields, classes), image.shape[:2], transform=place, dtype=np.uint8)
    image = np.ascontiguousarray(image)
    colored = np.where(numbers[..., None] > 0, image // 2 + PALETTE[numbers][..., ::-1] // 2, image)
    for ring in shapely.get_rings(fields):
        points = (shapely.get_coordinates(ring) - (place.c, place.f)) / (place.a, place.e) * 16
        cv2.polylines(colored, [points.round().astype(np.int32)], True, (255, 255, 255), 1, cv2.LINE_AA, shift=4)
    gap = np.full((len(image), 8, 3), 255, np.uint8)
    cv2.imwrite(out, np.hstack([image, gap, colored]), [cv2.IMWRITE_JPEG_QUALITY, 85])


if __name__ == "__main__":
    main(*sys.argv[1:])
