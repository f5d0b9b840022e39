"""Predicts images of any size, with memory that does not grow with their height.

An image no larger than a tile is predicted whole. A larger one is cut into overlapping tiles. Their probabilities are
blended with Gaussian weights, as in nnU-Net (Isensee et al. 2021). A buffer rolls down the image and yields rows as
soon as no further tile covers them.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Float, Num, UInt8

from jaxseg.base.errors import ArgumentError
from jaxseg.data.read.samples import Reading, read_image
from jaxseg.devices.mesh import Devices
from jaxseg.learn.compiled import compile_probability_step
from jaxseg.learn.step import Normalize, normalize
from jaxseg.nn.folded import folded
from jaxseg.nn.network import Network
from jaxseg.runs.checkpoint import load_model

BAND = 32 << 20
"""Most bytes of probabilities that `Predictor.bands` yields at a time."""


@runtime_checkable
class Raster(Protocol):
    """An image [h w c]: an array, or an object with shape and dtype whose slices are arrays, such as a mapped file."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def __getitem__(self, where: tuple[slice, slice]) -> Num[np.ndarray, "h w c"]:
        """Returns the slice of rows and columns as an array."""


def normalization(reading: Reading, dtype: DTypeLike = np.float32) -> Normalize:
    """Returns the normalization of a run: from images [b h w c] as `reading` reads them to `dtype`."""
    return partial(normalize, mean=reading.mean or None, std=reading.std or None, dtype=dtype)


class Predictor:
    """Classes and probabilities of images by a network in evaluation. `load` makes one of a trained run.

    - `reading`: how the network's files are read; images have its type and channels
    - `tile`: side of the square tiles in pixels, a multiple of the network's `least_side`
    - `overlap`: share of a tile that the next one overlaps, 0 to 0.9
    - `batch_size`: tiles at a time, 1 or more
    - `tta`: average over the flips and quarter turns of a tile: eight, or four if it is not square
    - `sides`: image sides in pixels that are never padded, such as those of the training tiles
    - `devices`: devices that share the tiles, `batch_size` each; one if not given

    A side shorter than a tile is padded by reflection to one of a few lengths, so that images of many sizes need few
    compilations. Lengths of `least_side` times a power of two, or one and a half times that, are not padded.
    Raises ArgumentError, a ValueError, naming the arguments that are out of range.

    >>> import numpy as np
    >>> from flax import nnx
    >>> from jaxseg import Predictor, Reading, UNet
    >>> predictor = Predictor(UNet(widths=(2, 4), rngs=nnx.Rngs(0)), Reading(), tile=32)
    >>> predictor.classes(np.zeros((40, 50, 3), np.uint8)).shape
    (40, 50)
    """

    checkpoint: str | None = None
    """Checkpoint that `load` took: "best" or "last"."""

    def __init__(
        self,
        net: Network,
        reading: Reading,
        *,
        tile: int = 512,
        overlap: float = 0.5,
        batch_size: int = 4,
        tta: bool = False,
        sides: Sequence[int] = (),
        devices: Devices | None = None,
    ):
        least = net.least_side
        near = max(1, round(tile / least)) * least
        rules = [
            (tile == near, "tile", f"is {tile}; this network needs a multiple of {least}, such as {near}"),
            (0 <= overlap <= 0.9, "overlap", f"is {overlap:g}; expected 0 to 0.9, the share of a tile"),
            (batch_size >= 1, "batch_size", f"is {batch_size}; expected 1 or more"),
        ]
        if wrong := [(name, message) for holds, name, message in rules if not holds]:
            raise ArgumentError(wrong)
        self.reading, self.names = reading, reading.labels.names
        self.tile, self.batch_size, self.tta, self.sides = tile, batch_size, tta, frozenset(sides)
        self._least = least
        self._stride = max(least, int(tile * (1 - overlap)) // least * least)  # tiles lie on the grid of the pooling
        self._devices = devices or Devices.of(jax.local_devices()[:1])
        net = folded(net)
        self._devices.replicate(net)
        step = compile_probability_step(net, normalize=normalization(reading), devices=self._devices)
        self._step = step if self._devices.count == 1 else lambda batch: step(self._devices.put(batch))

    def read(self, path: Path | str) -> Num[np.ndarray, "h w c"]:
        """Reads an image file as those of training were read: bands, order of channels and type. Raises DataError."""
        return read_image(Path(path), self.reading)

    def bands(self, image: Raster) -> Iterator[tuple[int, Float[np.ndarray, "rows w k"]]]:
        """Yields bands from top to bottom, without overlap: number of the first row, and probabilities [rows w k].

        Needs memory for about tile * w * k float32 values. Each band is a new array of at most `BAND` bytes, or a row.
        """
        (h, w), total, top = image.shape[:2], None, 0
        rows, columns = self._axis(h), self._axis(w)
        for (i, j), p in self._tiles(image, rows, columns):
            k, y, x = p.shape[-1], rows.starts[i], columns.starts[j]
            if total is None:
                total = np.zeros((rows.side, w * k), np.float32)  # NumPy is slow over a short last axis
            if y > top:
                done = y - top
                yield from _pieces(top, total[:done], k)
                total[:-done] = total[done:]
                total[-done:] = 0
                top = y
            right = min(columns.side, w - x) * k
            weights = rows.weights[i][:, None] * np.repeat(columns.weights[j], k)[None, :right]
            total[:, x * k : x * k + right] += weights * p.reshape(rows.side, -1)[:, :right]
        yield from _pieces(top, total[: h - top], k)

    def class_bands(
        self, image: Raster
    ) -> Iterator[tuple[slice, UInt8[np.ndarray, "rows w"], Float[np.ndarray, "rows w k"]]]:
        """Yields bands from top to bottom as `bands` does: rows, most probable classes, and probabilities."""
        for top, p in self.bands(image):
            yield slice(top, top + len(p)), p.argmax(-1).astype(np.uint8), p

    def classes(self, image: Raster) -> UInt8[np.ndarray, "h w"]:
        """Returns the most probable class of every pixel, uint8 [h w]."""
        result = np.empty(image.shape[:2], np.uint8)
        for rows, classes, _ in self.class_bands(image):
            result[rows] = classes
        return result

    def probabilities(self, image: Raster) -> Float[np.ndarray, "h w k"]:
        """Returns the probabilities of every pixel, float32 [h w k]."""
        return np.concatenate([p for _, p in self.bands(image)])

    def _axis(self, n: int) -> "_Axis":
        """Tiles a stride apart, the last of them at the border; a single tile if `n` is at most `tile`."""
        if n > self.tile:
            return _axis([*range(0, n - self.tile, self._stride), n - self.tile], self.tile)
        return _axis([0], n if n in self.sides and n >= self._least else min(_round_up(n, self._least), self.tile))

    def _tiles(self, image: Raster, rows: "_Axis", columns: "_Axis") -> Iterator[tuple[tuple[int, int], np.ndarray]]:
        """Yields (row, column) and probabilities [tile tile k] of each tile, row by row."""
        places = list(itertools.product(range(len(rows.starts)), range(len(columns.starts))))
        each = -(-len(places) // self._devices.count)
        size = min(self.batch_size, 1 << (each - 1).bit_length())  # a power of two, for few compilations
        size *= self._devices.count

        def batches():
            for first in range(0, len(places), size):
                group = places[first : first + size]
                batch = np.zeros((size, rows.side, columns.side, image.shape[2]), image.dtype)  # the last may be padded
                for tile, (i, j) in zip(batch, group):
                    y, x = rows.starts[i], columns.starts[j]
                    cut = image[y : y + rows.side, x : x + columns.side]
                    missing = [(0, side - have) for side, have in zip(tile.shape, cut.shape)]
                    tile[:] = np.pad(cut, missing, mode="reflect")
                yield group, self._turned(batch) if self.tta else self._step(batch)

        for group, p in _one_behind(batches()):
            yield from zip(group, np.asarray(p))

    def _turned(self, batch: Num[np.ndarray, "b h w c"]) -> Float[np.ndarray, "b h w k"]:
        """Mean over the symmetries of a tile: mirrored along each axis or not, and if square transposed or not."""
        square = batch.shape[1] == batch.shape[2]
        views = list(itertools.product((False, True) if square else (False,), (1, -1), (1, -1)))
        total = np.float32(0)
        for transposed, down, right in views:
            view = batch[:, ::down, ::right]
            p = np.asarray(self._step(np.ascontiguousarray(view.swapaxes(1, 2) if transposed else view)))
            total = total + (p.swapaxes(1, 2) if transposed else p)[:, ::down, ::right]
        return total / np.float32(len(views))


def load(
    run: Path | str,
    *,
    checkpoint: Literal["best", "last"] = "best",
    tile: int = 512,
    overlap: float = 0.5,
    batch_size: int = 4,
    tta: bool = False,
    devices: Devices | None = None,
) -> Predictor:
    """Loads the network of a trained run, ready to predict.

    - `run`: folder of the run
    - `checkpoint`: "best" validation mIoU, or "last"; averaged weights where the run averages them (`--ema`). If it is
      damaged the other one is taken, with a line on stderr
    - `tile`, `overlap`, `batch_size`, `tta`, `devices`: see `Predictor`

    Raises UserError, a ValueError, when the folder is no run, or its checkpoint is missing, damaged or of a newer
    version; ArgumentError as `Predictor` does.
    """
    net, description = load_model(Path(run), checkpoint)
    predictor = Predictor(
        net,
        Reading.from_dict(description["reading"]),
        tile=tile,
        overlap=overlap,
        batch_size=batch_size,
        tta=tta,
        sides=description.get("tile") or (),
        devices=devices,
    )
    predictor.checkpoint = description["checkpoint"]
    return predictor


class _Axis(NamedTuple):
    """Tiles along one side of an image: starts, length, and weights. The weights at a pixel add up to 1."""

    starts: list[int]
    side: int
    weights: Float[np.ndarray, "tiles side"]


def _axis(starts: list[int], side: int) -> _Axis:
    """Gaussian weights with standard deviation side / 8. The product over both axes is nnU-Net's importance map."""
    gaussian = np.exp(-0.5 * ((np.arange(side) - (side - 1) / 2) / (side / 8)) ** 2)
    total = np.zeros(starts[-1] + side)
    for start in starts:
        total[start : start + side] += gaussian
    return _Axis(starts, side, np.array([gaussian / total[s : s + side] for s in starts], np.float32))


def _pieces(top: int, rows: Float[np.ndarray, "rows wk"], k: int) -> Iterator[tuple[int, np.ndarray]]:
    """Copies rows [rows w*k] to bands [rows w k], so that whoever takes them makes no large arrays either."""
    count = max(1, BAND // rows[0].nbytes)
    for first in range(0, len(rows), count):
        piece = rows[first : first + count].copy()
        yield top + first, piece.reshape(len(piece), -1, k)


def _round_up(n: int, least: int) -> int:
    """The smallest of least * (1, 2, 3, 4, 6, 8, 12, 16, 24, ...) that is at least `n`."""
    times = -(-n // least)
    power = 1 << (times - 1).bit_length()
    return least * (power * 3 // 4 if times <= power * 3 // 4 else power)


def _one_behind(items: Iterable) -> Iterator:
    """Yields each item after the next was made, so that the device works on that one meanwhile."""
    for earlier, _ in itertools.pairwise(itertools.chain(items, [None])):
        yield earlier
