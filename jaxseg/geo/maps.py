"""Writes maps with the coordinates of their scene: tiled, compressed GeoTIFFs, from top to bottom."""

import contextlib
import errno
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal
from xml.sax.saxutils import escape

import numpy as np
import rasterio
import rasterio.shutil
import tifffile
from jaxtyping import Float, Int, Shaped, UInt8
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from jaxseg.base.config import IGNORE_INDEX
from jaxseg.geo.raster import Scene

BLOCK = 256
"""Side of a file's blocks in pixels. Whole rows of blocks are written, since a block written twice takes more room."""

FULL = 254
"""Value of probability 1 in a map of uint8; 255 has no data."""

ProbabilityType = Literal["uint8", "float16", "float32"]
Append = Callable[[np.ndarray], None]


@contextlib.contextmanager
def open_map(
    path: Path,
    scene: Scene,
    bands: int,
    dtype: str,
    *,
    nodata: float | int | None,
    predictor: int = 1,
    **options: object,
) -> Iterator[rasterio.io.DatasetWriter]:
    """Creates a GeoTIFF of a scene's size and coordinates, open for writing. A file over 4 GB becomes a BigTIFF.

    - `path`: file to write
    - `scene`: raster whose CRS, transform, ground control points and RPCs are taken
    - `bands`, `dtype`: number of bands, and their type
    - `nodata`: value without data, or None
    - `predictor`: of the compression: 1 none, 2 for gradual integers, 3 for floats
    - `options`: further creation options of GDAL's driver GTiff

    Raises OSError when the file cannot be written.
    """
    source, (height, width, _) = scene.dataset, scene.shape
    points, points_crs = source.gcps
    place = {"crs": source.crs, "transform": source.transform}
    if points:
        place = {"crs": points_crs, "gcps": points}
    if source.rpcs:
        place["rpcs"] = source.rpcs
    profile = {"driver": "GTiff", "height": height, "width": width, "count": bands, "dtype": dtype, "nodata": nodata}
    profile |= {"tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "interleave": "band", "bigtiff": "if_safer"}
    profile |= {"compress": "deflate", "predictor": predictor, "num_threads": "all_cpus"} | options
    with _writing(path), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "w", **profile, **place) as file:
            yield file
        _check(path)


@contextlib.contextmanager
def rows_of(file: rasterio.io.DatasetWriter) -> Iterator[Append]:
    """Yields a function that appends rows [rows w] or [rows w bands] to a file, from top to bottom."""
    waiting, top = np.empty((0, file.width, file.count), file.dtypes[0]), 0

    def append(rows: np.ndarray) -> None:
        nonlocal waiting
        waiting = np.concatenate([waiting, rows.reshape(len(rows), file.width, file.count)])
        write(len(waiting) // BLOCK * BLOCK)

    def write(count: int) -> None:
        nonlocal waiting, top
        if count:
            file.write(np.moveaxis(waiting[:count], -1, 0), window=Window(0, top, file.width, count))
            waiting, top = waiting[count:], top + count

    yield append
    write(len(waiting))


@contextlib.contextmanager
def class_map(
    path: Path, scene: Scene, names: Sequence[str], palette: UInt8[np.ndarray, "256 3"]
) -> Iterator[Callable[[UInt8[np.ndarray, "rows w"]], None]]:
    """Yields a function that appends rows of classes to a GeoTIFF with a color table and the classes' names as tags.

    - `path`: file to write
    - `scene`: raster whose size and coordinates the map takes
    - `names`: names of the classes
    - `palette`: RGB color of each class

    255 has no data. Raises OSError when the file cannot be written.
    """
    with open_map(path, scene, 1, "uint8", nodata=IGNORE_INDEX, photometric="palette") as file:
        colors = {i: (*map(int, palette[i]), 255) for i in range(len(names))}
        file.write_colormap(1, colors | {IGNORE_INDEX: (0, 0, 0, 0)})
        file.set_band_description(1, "class")
        file.update_tags(**{f"class_{i}": name for i, name in enumerate(names)})
        with rows_of(file) as append:
            yield append


def categories(names: Sequence[str]) -> bytes:
    """Returns the text of the file NAME.tif.aux.xml from which GDAL and QGIS take the names of the classes."""
    listed = "".join(f"\n      <Category>{escape(name)}</Category>" for name in names)
    band = f'  <PAMRasterBand band="1">\n    <CategoryNames>{listed}\n    </CategoryNames>\n  </PAMRasterBand>'
    return f"<PAMDataset>\n{band}\n</PAMDataset>\n".encode()


@contextlib.contextmanager
def value_map(
    path: Path, scene: Scene, table: Shaped[np.ndarray, "256 ..."]
) -> Iterator[Callable[[UInt8[np.ndarray, "rows w"]], None]]:
    """Yields a function that appends rows of classes to a GeoTIFF of mask values or colors.

    - `path`: file to write
    - `scene`: raster whose size and coordinates the map takes
    - `table`: value, or RGB color, of each class; that of 255 has no data

    Raises OSError when the file cannot be written.
    """
    color = table.ndim == 2
    nodata, more = None if color else int(table[IGNORE_INDEX]), {"photometric": "rgb"} if color else {}
    with (
        open_map(path, scene, 3 if color else 1, table.dtype.name, nodata=nodata, **more) as file,
        rows_of(file) as append,
    ):
        yield lambda classes: append(table[classes])


@contextlib.contextmanager
def probability_map(
    path: Path, scene: Scene, names: Sequence[str], kind: ProbabilityType = "uint8"
) -> Iterator[Callable[[Float[np.ndarray, "rows w k"]], None]]:
    """Yields a function that appends rows of probabilities to a GeoTIFF with one band per class; NaN has no data.

    - `path`: file to write
    - `scene`: raster whose size and coordinates the map takes
    - `names`: names of the classes, which become those of the bands
    - `kind`: "uint8" holds steps of 1 / 254, with the scale in the file, and 255 without data

    Raises OSError when the file cannot be written.
    """
    packed, bands = kind == "uint8", len(names)
    dtype, nodata, predictor = ("uint8", 255, 2) if packed else ("float32", np.nan, 3)
    more = {"nbits": 16} if kind == "float16" else {}
    with open_map(
        path, scene, bands, dtype, nodata=nodata, predictor=predictor, photometric="minisblack", **more
    ) as file:
        file.descriptions = tuple(names)
        if packed:
            file.scales, file.offsets = (1 / FULL,) * bands, (0.0,) * bands
        with rows_of(file) as append:
            # GDAL cuts digits off to write 16 bits; NumPy rounds
            yield lambda p: append(pack(p) if packed else p.astype(np.float16) if kind == "float16" else p)


def pack(p: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Rounds probabilities to uint8 in steps of 1 / 254; NaN becomes 255."""
    return np.nan_to_num(np.rint(p * np.float32(FULL)), nan=255).astype(np.uint8)


def block_map(
    path: Path,
    scene: Scene,
    blocks: Iterable[tuple[tuple[int, int], Int[np.ndarray, "h w"]]],
    dtype: str,
    nodata: int,
) -> None:
    """Writes a GeoTIFF of one band from blocks. Raises OSError when the file cannot be written.

    - `path`: file to write
    - `scene`: raster whose size and coordinates the map takes
    - `blocks`: (row, column) and values of each block
    - `dtype`, `nodata`: type, and value without data
    """
    with open_map(path, scene, 1, dtype, nodata=nodata) as file:
        for (row, column), values in blocks:
            height, width = values.shape
            file.write(values.astype(dtype), 1, window=Window(column, row, width, height))


def to_cog(source: Path, path: Path, averaged: bool = False) -> None:
    """Copies a GeoTIFF to a cloud-optimized one, with overviews.

    - `source`: GeoTIFF
    - `path`: file to write
    - `averaged`: overviews hold means; if False the most frequent value

    Raises OSError when the file cannot be written.
    """
    with _writing(path), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(source) as file:
            bits = file.tags(1, ns="IMAGE_STRUCTURE").get("NBITS")
        options = {"compress": "deflate", "predictor": "yes" if averaged else "no", "num_threads": "all_cpus"}
        options |= {"bigtiff": "if_safer", "overview_resampling": "average" if averaged else "mode"}
        rasterio.shutil.copy(source, path, driver="COG", **options, **({"nbits": bits} if bits else {}))
        _check(path)


def _check(path: Path) -> None:
    """Raises OSError if a block is missing: GDAL says nothing where the disk becomes full while a file is closed."""
    size = path.stat().st_size
    try:
        with tifffile.TiffFile(path) as file:
            blocks = [block for page in file.pages for block in zip(page.dataoffsets, page.databytecounts)]
        whole = all(count and start + count <= size for start, count in blocks)
    except Exception:  # tifffile raises errors of any type for a damaged file
        whole = False
    if not whole:
        raise OSError(errno.EIO, "parts of it are missing; is the disk full?", str(path))


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turns GDAL's errors into an OSError that names the file."""
    try:
        yield
    except RasterioError as error:
        raise OSError(errno.EIO, str(error.__cause__ or error), str(path)) from None
