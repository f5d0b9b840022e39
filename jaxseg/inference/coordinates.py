"""Says which images have coordinates, also where the extra `geo` is missing."""

from pathlib import Path

import tifffile

from jaxseg.base.extra import missing
from jaxseg.data.find.ground import world_files

GEOTIFF = {33550, 33922, 34264, 34735}
"""Tags of a TIFF's pixel scale, tie points, transform and geographic keys."""

PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".pbm", ".pgm", ".ppm", ".npy"}
"""Suffixes of files that have coordinates only in another file beside them."""


def has_coordinates(image: Path) -> bool:
    """True if an image has coordinates: in itself, or in a world file or GDAL's .aux.xml beside it."""
    picture = image.suffix.lower() in PICTURES
    if picture and not _beside(image):
        return False
    if not missing("geo"):
        from jaxseg.geo.raster import open_placed

        if (scene := open_placed(image)) is None:
            return False
        scene.close()
        return True
    return bool(world_files(image)) or (not picture and _tagged(image))


def _beside(image: Path) -> bool:
    return bool(world_files(image)) or image.with_name(image.name + ".aux.xml").exists()


def _tagged(image: Path) -> bool:
    try:
        with tifffile.TiffFile(image) as file:
            return any(tag.code in GEOTIFF for tag in file.pages[0].tags)
    except Exception:  # tifffile raises errors of any type; reading the image names the fault
        return False
