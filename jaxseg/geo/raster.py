"""Opens rasters with coordinates and reads them by windows: GeoTIFF, COG, VRT, JPEG 2000 and whatever GDAL reads."""

import contextlib
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import rasterio
from jaxtyping import Bool, Shaped
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NodataShadowWarning, NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from jaxseg.base.errors import problem
from jaxseg.data.read.mapped import Mapped, Place
from jaxseg.data.read.pixels import Pixels
from jaxseg.data.read.samples import Reading, convert

CACHE = 64 << 20
"""Bytes of GDAL's cache of decoded blocks, shared by all files. `Scene` enlarges it for wide scenes."""

MOST_CACHE = 1 << 30
RGB = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)


@contextlib.contextmanager
def environment(cache: int = CACHE) -> Iterator[None]:
    """Limits GDAL's cache to `cache` bytes within a block; its default is 5 % of the machine's memory."""
    with rasterio.Env(GDAL_CACHEMAX=cache):
        yield


class Scene:
    """Raster file that is read by windows; a context manager that closes it.

    - `path`: file that GDAL opens

    Raises DataError if GDAL cannot open it, or its bands differ in type or hold complex numbers. Slices of a scene are
    arrays [h w c] in the file's own type and order of bands. One thread at a time may read it.

    >>> with Scene(Path("scene.tif")) as scene:  # doctest: +SKIP
    ...     window = scene[:256, :256]
    """

    def __init__(self, path: Path):
        self.path = path
        with _naming(path), warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.Env(GDAL_NUM_THREADS="ALL_CPUS"):
                self.dataset = rasterio.open(path)
        data = self.dataset
        self.shape = (data.height, data.width, data.count)
        types = set(data.dtypes)
        if len(types) != 1 or (kind := next(iter(types))).startswith("complex"):
            found = ", ".join(sorted(types))
            data.close()
            raise problem(path, f"holds {found or 'no bands'}; expected bands of one type, integers or floats")
        self.dtype = np.dtype(kind)
        self._lock = threading.Lock()

    def __enter__(self) -> "Scene":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self.dataset.close()

    @property
    def crs(self) -> rasterio.crs.CRS | None:
        """Coordinate reference system; None if the file has none."""
        return self.dataset.crs or self.dataset.gcps[1]

    @property
    def transform(self) -> rasterio.Affine:
        """Affine transform from (column, row) to coordinates. It may be rotated or south-up."""
        return self.dataset.transform

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Least and largest coordinates: left, bottom, right, top, of the corners of the scene."""
        a, b, c, d, e, f = self.transform[:6]
        height, width, _ = self.shape
        x, y = (np.add.outer((0, i * width), (0, j * height)) + k for i, j, k in ((a, b, c), (d, e, f)))
        return float(x.min()), float(y.min()), float(x.max()), float(y.max())

    @property
    def nodata(self) -> float | None:
        """Value without data in all bands; None if there is none, it is NaN, or it differs between bands."""
        values = set(self.dataset.nodatavals)
        value = next(iter(values)) if len(values) == 1 else None
        return None if value is None or np.isnan(value) else value

    @property
    def alpha(self) -> int | None:
        """Index of the alpha band; None if there is none."""
        bands = self.dataset.colorinterp
        return bands.index(ColorInterp.alpha) if ColorInterp.alpha in bands else None

    @property
    def color(self) -> bool:
        """True for a color picture: red, green, blue and perhaps alpha, or a palette."""
        bands = self.dataset.colorinterp
        named = bands[:3] == RGB and len(bands) - (self.alpha == 3) == 3
        return named or bands[0] == ColorInterp.palette

    @property
    def placed(self) -> bool:
        """True if the file says where it lies: by a transform, a CRS, ground control points or RPCs."""
        data = self.dataset
        return bool(data.crs or not data.transform.is_identity or data.gcps[0] or data.rpcs)

    def __getitem__(self, where: Place) -> Shaped[np.ndarray, "h w c"]:
        """Reads rows and columns, which may have steps; raises DataError for damaged parts."""
        return self.read(where)

    def read(self, where: Place, bands: tuple[int, ...] | None = None) -> Shaped[np.ndarray, "h w c"]:
        """Reads rows and columns of `bands`, counted from 1, or of all: an array [h w c]. Raises DataError."""
        window, steps = self._window(where)
        with self._lock, _naming(self.path):
            array = self.dataset.read(list(bands) if bands else None, window=window)
        return np.moveaxis(array[:, :: steps[0], :: steps[1]], 0, -1)

    def has_data(self, where: Place) -> Bool[np.ndarray, "h w"]:
        """Reads GDAL's mask of rows and columns: by nodata, alpha, or a mask in the file or beside it."""
        window, steps = self._window(where)
        with self._lock, _naming(self.path), warnings.catch_warnings():
            warnings.simplefilter("ignore", NodataShadowWarning)
            return self.dataset.dataset_mask(window=window)[:: steps[0], :: steps[1]] != 0

    def pixels(self, where: Place, alpha: bool = True) -> Pixels:
        """Reads rows and columns as `read_pixels` reads a whole file: palettes as colors, colors as BGR.

        With `alpha` False an alpha band becomes the mask of the data instead of a channel.
        """
        array, data = self.read(where), self.dataset
        if data.colorinterp[0] == ColorInterp.palette:
            colors = np.zeros((max(256, max(data.colormap(1)) + 1), 3), np.uint8)
            for value, color in data.colormap(1).items():
                colors[value] = color[2::-1]
            array = colors[array[..., 0]]
        elif data.tags(ns="IMAGE_STRUCTURE").get("MINISWHITE") == "YES":
            array = np.iinfo(array.dtype).max - array
        elif (bits := data.tags(1, ns="IMAGE_STRUCTURE").get("NBITS")) and int(bits) < 8:
            array = array * np.uint8(255 // (2 ** int(bits) - 1))
        elif self.color:
            array = array[..., [2, 1, 0, 3][: array.shape[2]]]
        mask = self._mask(where)
        if self.alpha is not None and not alpha:
            opaque = array[..., self.alpha] != 0
            mask = opaque if mask is None else mask & opaque
            array = np.delete(array, self.alpha, -1)
        nodata = None if mask is not None and self.alpha is None else self.nodata
        return Pixels(np.ascontiguousarray(array), nodata, self.color, mask=mask)

    def _mask(self, where: Place) -> np.ndarray | None:
        """Data mask by a mask in the file or beside it, or by bands with different nodata; None for others."""
        flags = set(self.dataset.mask_flag_enums[0])
        beside = MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags
        return self.has_data(where) if beside or len(set(self.dataset.nodatavals)) > 1 else None

    def sizes(self, where: Place) -> tuple[int, ...]:
        """Returns the numbers of rows and columns in a slice."""
        return tuple(len(range(*part.indices(size))) for part, size in zip(where, self.shape))

    def _window(self, where: Place) -> tuple[Window, tuple[int, int]]:
        rows, columns = (slice(*part.indices(size)) for part, size in zip(where, self.shape))
        size = max(0, columns.stop - columns.start), max(0, rows.stop - rows.start)
        return Window(columns.start, rows.start, *size), (rows.step, columns.step)


def open_placed(path: Path) -> Scene | None:
    """Opens a raster that has coordinates; None if it has none, or GDAL cannot open it."""
    try:
        scene = Scene(path)
    except ValueError:
        return None
    if scene.placed:
        return scene
    scene.close()
    return None


def as_read(scene: Scene, reading: Reading) -> tuple[Mapped, Mapped]:
    """Returns a scene's image [h w c] and data mask, bool [h w], as `read_tile` does; both load windows on demand.

    - `scene`: open scene
    - `reading`: how the network's files are read

    An alpha that is no channel of the network masks the data. Raises DataError, as `read_tile` does.
    """
    alpha = scene.alpha
    if alpha is not None:
        used = alpha + 1 in reading.bands if reading.bands else reading.channels == scene.shape[2]
        alpha = alpha if used else None

    def read(where: Place) -> tuple[np.ndarray, np.ndarray]:
        return convert(scene.pixels(where, alpha=alpha is not None), scene.path, reading)

    def has_data(where: Place) -> np.ndarray:
        return read(where)[1] if may_lack else np.ones(scene.sizes(where), bool)

    flags = {flag for band in scene.dataset.mask_flag_enums for flag in band}
    may_lack = flags != {MaskFlags.all_valid} or scene.dtype.kind == "f" or reading.nodata is not None
    size = scene.shape[:2]
    return Mapped(size, lambda where: read(where)[0]), Mapped(size, has_data)


def cache_for(scene: Scene, rows: int) -> int:
    """Returns the bytes of GDAL's cache with which windows of `rows` rows, read from left to right, decode once.

    Until a row of windows comes back to a block that the one above it touched, the cache takes in the blocks of one
    row of windows, and as many pixels of maps.
    """
    block = scene.dataset.block_shapes[0][0]
    needed = (rows + 2 * block) * scene.shape[1] * (scene.shape[2] * scene.dtype.itemsize + 2)
    return min(max(CACHE, needed), MOST_CACHE)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turns GDAL's errors into a DataError that names the file."""
    try:
        yield
    except RasterioError as error:
        what = str(error.__cause__ or error).removeprefix(f"{path}: ")
        raise problem(path, f"cannot be read as a raster ({what})") from None
