"""Predicts images of any size, with memory that does not grow with their height.

An image no larger than a tile is predicted whole. A larger one is cut into overlapping tiles. Their probabilities are
blended with Gaussian weights, as in nnU-Net (Isensee et al. 2021). A buffer rolls down the image and yields rows as
soon as no further tile covers them.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import jax
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Float, Num, UInt8

from jaxseg.base.errors import ArgumentError
from jaxseg.data.read.samples import Reading, read_image
from jaxseg.devices.mesh import Devices
from jaxseg.devices.processes import once
from jaxseg.inference.tiles import Axis, Place, Raster, axis, cut, round_up
from jaxseg.learn.compiled import compile_probability_step
from jaxseg.learn.step import Normalize, normalize
from jaxseg.nn.folded import folded
from jaxseg.nn.network import Network
from jaxseg.runs.checkpoint import load_model

T = TypeVar("T")
BAND = 32 << 20
"""Most bytes of probabilities that `Predictor.bands` yields at a time."""

Bands = Iterator[tuple[slice, UInt8[np.ndarray, "rows w"], Float[np.ndarray, "rows w k"]]]
"""Bands of an image from top to bottom, without overlap: rows, most probable classes, and probabilities."""


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
    - `devices`: devices that share the tiles, `batch_size` each; one if not given. If they are of several processes,
      all of these predict each image, and each runs the network on its share of the tiles

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
        check_tiling(net, tile, overlap, batch_size)
        least = net.least_side
        self.reading, self.names = reading, reading.labels.names
        self.tile, self.batch_size, self.tta, self.sides = tile, batch_size, tta, frozenset(sides)
        self._least = least
        self._stride = max(least, int(tile * (1 - overlap)) // least * least)  # tiles lie on the grid of the pooling
        self.devices = devices or Devices.of(jax.local_devices()[:1])
        net = folded(net)
        self.devices.replicate(net)
        step = compile_probability_step(net, normalize=normalization(reading), devices=self.devices)
        self._step = step if self.devices.count == 1 else lambda batch: step(self.devices.put(batch))

    def read(self, path: Path | str) -> Num[np.ndarray, "h w c"]:
        """Reads an image file as those of training were read: bands, order of channels and type. Raises DataError."""
        return read_image(Path(path), self.reading)

    def bands(self, image: Raster) -> Iterator[tuple[int, Float[np.ndarray, "rows w k"]]]:
        """Yields bands from top to bottom, without overlap: number of the first row, and probabilities [rows w k].

        Needs memory for about tile * w * k float32 values. Each band is a new array of at most `BAND` bytes, or a row.
        """
        return self._blended(image, self._tiles(image))

    def class_bands(self, image: Raster) -> Bands:
        """Yields bands from top to bottom as `bands` does: rows, most probable classes, and probabilities."""
        return _with_classes(self.bands(image))

    def is_small(self, image: Raster) -> bool:
        """True if an image is predicted as a single tile."""
        return max(image.shape[:2]) <= self.tile

    def start(self, images: Sequence[Raster]) -> list[Bands]:
        """Starts to predict images, and returns what `class_bands` yields for each.

        Small images whose tiles have one shape are predicted together, equally many on each device. Others are
        predicted when their bands are asked for.
        """
        together: dict[tuple, list[int]] = {}
        for i, image in enumerate(images):
            if self.is_small(image):
                rows, columns = self._axes(image)
                shape = rows.side, columns.side, image.shape[2], np.dtype(image.dtype)
                together.setdefault(shape, []).append(i)
        found = {}
        for members in together.values():
            cuts = [partial(cut, images[i], self._axes(images[i]), (0, 0)) for i in members]
            p = self._predict(cuts, len(members))
            found |= {i: self._blended(images[i], self._only(p, row)) for row, i in enumerate(members)}
        return [_with_classes(found.get(i) or self.bands(image)) for i, image in enumerate(images)]

    def classes(self, image: Raster) -> UInt8[np.ndarray, "h w"]:
        """Returns the most probable class of every pixel, uint8 [h w]."""
        result = np.empty(image.shape[:2], np.uint8)
        for rows, classes, _ in self.class_bands(image):
            result[rows] = classes
        return result

    def probabilities(self, image: Raster) -> Float[np.ndarray, "h w k"]:
        """Returns the probabilities of every pixel, float32 [h w k]."""
        return np.concatenate([p for _, p in self.bands(image)])

    def _blended(self, image: Raster, tiles: Iterable[tuple[Place, np.ndarray]]) -> Iterator:
        """Yields what `bands` does, from (row, column) and probabilities of each tile."""
        (h, w), total, top = image.shape[:2], None, 0
        rows, columns = self._axes(image)
        for (i, j), p in tiles:
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

    def _axes(self, image: Raster) -> tuple[Axis, Axis]:
        """Tiles along the height and the width."""
        return self._axis(image.shape[0]), self._axis(image.shape[1])

    def _axis(self, n: int) -> Axis:
        """Tiles a stride apart, the last of them at the border; a single tile if `n` is at most `tile`."""
        if n > self.tile:
            return axis([*range(0, n - self.tile, self._stride), n - self.tile], self.tile)
        return axis([0], n if n in self.sides and n >= self._least else min(round_up(n, self._least), self.tile))

    def _tiles(self, image: Raster) -> Iterator[tuple[Place, np.ndarray]]:
        """Yields (row, column) and probabilities [tile tile k] of each tile, row by row."""
        axes = self._axes(image)
        places = list(itertools.product(*(range(len(along.starts)) for along in axes)))
        each = -(-len(places) // self.devices.count)
        size = min(self.batch_size, 1 << (each - 1).bit_length())  # a power of two, for few compilations
        size *= self.devices.count
        groups = [places[first : first + size] for first in range(0, len(places), size)]
        started = ((group, self._predict([partial(cut, image, axes, at) for at in group], size)) for group in groups)
        for group, p in one_behind(started):
            yield from zip(group, self.devices.fetch(p))

    def _only(self, p: jax.Array | np.ndarray, row: int) -> Iterator[tuple[Place, np.ndarray]]:
        """Yields the only tile of an image, as `_tiles` does: a row of a batch, once it is computed."""
        yield (0, 0), self.devices.fetch(p)[row]

    def _predict(self, tiles: Sequence[Callable[[], np.ndarray]], size: int) -> jax.Array | np.ndarray:
        """Starts the network on tiles of one shape.

        - `tiles`: functions that cut them; called for the rows of this process
        - `size`: rows of the batch, filled up with the last tile to a multiple of the devices

        Returns probabilities [b h w k].
        """
        size = -(-size // self.devices.count) * self.devices.count
        batch = np.stack([tiles[min(row, len(tiles) - 1)]() for row in self.devices.rows(size).tolist()])
        return self._turned(batch) if self.tta else self._step(batch)

    def _turned(self, batch: Num[np.ndarray, "b h w c"]) -> Float[np.ndarray, "b h w k"]:
        """Mean over the symmetries of a tile: mirrored along each axis or not, and if square transposed or not."""
        square = batch.shape[1] == batch.shape[2]
        views = list(itertools.product((False, True) if square else (False,), (1, -1), (1, -1)))
        total = np.float32(0)
        for transposed, down, right in views:
            view = batch[:, ::down, ::right]
            p = self.devices.fetch(self._step(np.ascontiguousarray(view.swapaxes(1, 2) if transposed else view)))
            total = total + (p.swapaxes(1, 2) if transposed else p)[:, ::down, ::right]
        return total / np.float32(len(views))


def check_tiling(net: Network, tile: int, overlap: float, batch_size: int) -> None:
    """Raises ArgumentError naming arguments of `Predictor` that are out of range."""
    least = net.least_side
    near = max(1, round(tile / least)) * least
    rules = [
        (tile == near, "tile", f"is {tile}; this network needs a multiple of {least}, such as {near}"),
        (0 <= overlap <= 0.9, "overlap", f"is {overlap:g}; expected 0 to 0.9, the share of a tile"),
        (batch_size >= 1, "batch_size", f"is {batch_size}; expected 1 or more"),
    ]
    if wrong := [(name, message) for holds, name, message in rules if not holds]:
        raise ArgumentError(wrong)


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

    Of several processes that JAX joined all must call it, and the first one reads. Raises UserError, a ValueError, when
    the folder is no run, or its checkpoint is missing, damaged or of a newer version; ArgumentError as `Predictor`
    does.
    """

    def read() -> tuple[Network, dict]:
        net, description = load_model(Path(run), checkpoint)
        check_tiling(net, tile, overlap, batch_size)
        return net, description

    net, description = once(read)
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


def _pieces(top: int, rows: Float[np.ndarray, "rows wk"], k: int) -> Iterator[tuple[int, np.ndarray]]:
    """Copies rows [rows w*k] to bands [rows w k], so that whoever takes them makes no large arrays either."""
    count = max(1, BAND // rows[0].nbytes)
    for first in range(0, len(rows), count):
        piece = rows[first : first + count].copy()
        yield top + first, piece.reshape(len(piece), -1, k)


def _with_classes(bands: Iterable[tuple[int, Float[np.ndarray, "rows w k"]]]) -> Bands:
    for top, p in bands:
        yield slice(top, top + len(p)), p.argmax(-1).astype(np.uint8), p


def one_behind(items: Iterable[T]) -> Iterator[T]:
    """Yields each item after the next was made, so that the device works on that one meanwhile."""
    for earlier, _ in itertools.pairwise(itertools.chain(items, [None])):
        yield earlier
