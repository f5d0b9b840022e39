"""Reads pairs on disk as batches, in an order that depends on (seed, epoch) alone.

Threads decode ahead (OpenCV releases the GIL). The position is two integers, epoch and batch: `epoch(e, start=b)`
resumes a stopped run. It gives the same batches for any number of threads and any cache.
"""

import functools
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import jax
import numpy as np
from jaxtyping import Bool

from jaxseg.base.config import IGNORE_INDEX
from jaxseg.base.errors import DataError, problem
from jaxseg.data.feed.resident import Resident
from jaxseg.data.feed.store import DiskStore, SharedStore, Store, by_itself
from jaxseg.data.feed.windows import Size, Window, place, windows
from jaxseg.data.find.listing import Pair
from jaxseg.data.read.samples import ARTICLE_READING, Reading, read_sample
from jaxseg.devices.mesh import Devices
from jaxseg.devices.processes import once_here

Sample = dict[str, np.ndarray]
Batch = dict[str, np.ndarray | jax.Array]
Cache = Literal["none", "memory", "disk", "device"]
Draw = tuple[int, int, int]
"""Seed of a crop: the pipeline's seed, the epoch, and the sample's position in the epoch."""


class Pipeline:
    """Iterates over pairs of image and mask in batches.

    A batch is {"image": [b h w c] of `reading.dtype`, "mask": uint8 [b h w], "valid": bool [b]}. A short batch is
    padded to the full shape: image 0, mask `IGNORE_INDEX`, `valid` false.

    - `pairs`: one or more pairs of files.
    - `batch_size`: samples per batch, b.
    - `reading`: how files become samples.
    - `shuffle`: draw a new order each epoch. Otherwise the order is that of `pairs`, shape by shape.
    - `seed`: seed of the order and of the crops.
    - `workers`: number of reader threads; 0 reads in the calling thread.
    - `cache`: where decoded samples are kept; batches do not depend on it:
        - "none": nowhere; memory does not grow with the number of pairs.
        - "memory": filled during the first epoch; processes on one machine share it (on Linux).
        - "disk": likewise, in a file that later runs reuse (see `DiskStore`).
        - "device": filled before the first epoch; batches are then device arrays.
    - `sizes`: height and width of every pair, in pixels; required if they differ. Images are then padded at the bottom
      and on the right to one of a few shapes: the image is mirrored, the mask ignored.
    - `largest`: longest side in pixels; larger images are cut into a grid first. Needs `sizes`.
    - `crop`: height and width of random crops, which replace whole images; smaller images are padded likewise.
    - `crops`: number of crops per image and epoch.
    - `devices`: devices that share each batch; one if not given. The batch then has the rows of this process alone, in
      the order of `Devices.rows`, and "position": int32, the place of each in the whole batch.
    - `parts`: micro-batches per batch. Each micro-batch is divided over the devices.

    Raises ValueError for no pairs, and for crops of different sizes on the device. Raises DataError naming a file that
    can no longer be read, or whose size differs from `sizes` or from the rest of its batch.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        *,
        batch_size: int,
        reading: Reading = ARTICLE_READING,
        shuffle: bool = False,
        seed: int = 0,
        workers: int = 0,
        cache: Cache = "none",
        sizes: Sequence[Size] | None = None,
        largest: int | None = None,
        crop: Size | None = None,
        crops: int = 1,
        devices: Devices | None = None,
        parts: int = 1,
    ):
        if not pairs:
            raise ValueError("`pairs` is empty; expected one or more")
        self.pairs, self.batch_size, self.reading, self.crop = tuple(pairs), batch_size, reading, crop
        self.shuffle, self.seed, self.workers, self.cache = shuffle, seed, workers, cache
        self.devices = devices or Devices.of(jax.local_devices()[:1])
        self._places = self.devices.rows(batch_size, parts)
        self._position = {}
        if self.devices.count > 1:
            self._position = {"position": np.maximum(self._places, 0).astype(np.int32)}
        first = None
        if sizes is None and cache != "none":
            first = read_sample(self.pairs[0], reading)
            sizes = [first["mask"].shape] * len(pairs)
        self._sizes = sizes
        if crop and cache == "device" and len(set(sizes)) > 1:
            raise ValueError('`cache` is "device" and `sizes` differ; expected one size to crop from')
        self._windows = [Window(i) for i in range(len(pairs))] * crops
        if crop is None and sizes is not None and (len(set(sizes)) > 1 or max(sizes[0]) > (largest or math.inf)):
            self._windows = windows(sizes, largest)
        shapes = list(dict.fromkeys(window.shape for window in self._windows))
        self._shapes = np.array([shapes.index(window.shape) for window in self._windows])
        self._store = None
        if cache in ("memory", "disk"):
            several = self.devices.processes > 1
            share = once_here if several else by_itself
            if cache == "disk":
                self._store = DiskStore(self.pairs, sizes, reading, share)
            elif several and hasattr(os, "memfd_create"):
                self._store = SharedStore(sizes, reading, share)
            else:
                self._store = Store(sizes, reading)
            if first is not None and 0 not in self._store:
                self._store.write(0, first)
        elif len(self._windows) > len(pairs) * crops:  # windows of an image are adjacent: decode it once
            self._decode = functools.lru_cache(maxsize=workers + 1)(self._decode)

    def __len__(self) -> int:
        """Number of batches in an epoch, including short ones."""
        return int(sum(-(-count // self.batch_size) for count in np.bincount(self._shapes)))

    def order(self, epoch: int) -> np.ndarray:
        """Returns the order of the samples in `epoch`, int [n]: a permutation if shuffled, else 0 to n - 1.

        Samples are the windows of all pairs, or `crops` for each pair: sample i is then of pair i % len(pairs).
        """
        count = len(self._windows)
        return np.random.default_rng((self.seed, epoch)).permutation(count) if self.shuffle else np.arange(count)

    def _slots(self, epoch: int) -> np.ndarray:
        """Returns the sample of every slot of every batch, -1 for padding. All samples of a batch have one shape."""
        order, slots = self.order(epoch), []
        for shape in range(self._shapes.max() + 1):
            members = order[self._shapes[order] == shape]
            slots += [members, np.full(-len(members) % self.batch_size, -1)]
        return np.concatenate(slots)

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """Yields the batches of `epoch` from number `start` on.

        They are NumPy arrays that are never reused, or device arrays if `cache` is "device". Raises DataError.
        """
        slots = self._slots(epoch)
        numbers = range(start, len(slots) // self.batch_size)

        def make(number: int) -> Batch:
            first = number * self.batch_size
            held = (self._places >= 0) & (slots[first + self._places] >= 0)
            # a process without any sample reads the first one, whose shape its padding needs
            at = (first + (self._places[held] if held.any() else np.zeros(1, int))).tolist()
            members = [self._windows[slots[place]] for place in at]
            draws = [(self.seed, epoch, place) for place in at]
            return (self._gather if self.cache == "device" else self._batch)(held, members, draws) | self._position

        if self.cache == "device" or (self.cache == "memory" and self._store.full):
            return map(make, numbers)
        return self._ahead(numbers, make)

    def _ahead(self, items: Iterable, make: Callable) -> Iterator:
        """Yields `make(item)` for each item, in order; each reader thread works up to two items ahead."""
        if not self.workers:
            yield from map(make, items)
            return
        waiting = deque()
        with ThreadPoolExecutor(self.workers, "reader") as readers:
            try:
                for item in items:
                    waiting.append(readers.submit(make, item))
                    if len(waiting) > 2 * self.workers:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:  # the caller stopped early, or an item failed
                readers.shutdown(cancel_futures=True)

    def _batch(self, held: Bool[np.ndarray, " b"], members: Sequence[Window], draws: Sequence[Draw]) -> Sample:
        """Makes a batch whose rows in `held` are `members`; the others are padding."""
        batch: Sample = {}
        for row, window, sample, draw in zip(_rows(held), members, self._samples(members), draws):
            if self.crop is not None:
                sample = place(sample, self.crop, self._corner(sample["mask"].shape, draw))
            elif window.shape is not None:
                sample = place(sample, window.shape, window.corner, window.size)
            for name, array in sample.items():
                if name not in batch:
                    batch[name] = np.empty((len(held), *array.shape), array.dtype)
                kept = batch[name]
                if array.shape != kept.shape[1:]:
                    raise _other_size(self.pairs[window.index], sample["mask"].shape, kept.shape[1:3])
                kept[row] = array
        batch["image"][~held] = 0
        batch["mask"][~held] = IGNORE_INDEX
        return batch | {"valid": held}

    def _corner(self, size: Size, draw: Draw) -> Size:
        room = np.maximum(np.subtract(size, self.crop), 0)
        return tuple(np.random.default_rng(draw).integers(0, room + 1).tolist())

    def _samples(self, members: Sequence[Window]) -> Iterable[Sample]:
        indices = [window.index for window in members]
        if self._store is None:
            return map(self._decode, indices)
        for index in indices:
            if index not in self._store:
                self._store.write(index, self._decode(index))
        return self._store.read(indices)

    def _decode(self, index: int) -> Sample:
        sample = read_sample(self.pairs[index], self.reading)
        if self._sizes is not None and sample["mask"].shape != self._sizes[index]:
            raise _other_size(self.pairs[index], sample["mask"].shape, self._sizes[index])
        return sample

    def _gather(
        self, held: Bool[np.ndarray, " b"], members: Sequence[Window], draws: Sequence[Draw]
    ) -> dict[str, jax.Array]:
        corners = [self._corner(self._sizes[0], draw) for draw in draws] if self.crop else None
        return self._resident.batch(held, members, corners, self.crop)

    @functools.cached_property
    def _resident(self) -> Resident:
        def placed(window: Window) -> Sample:
            sample = self._decode(window.index)
            if self.crop is not None:
                return place(sample, tuple(np.maximum(self._sizes[0], self.crop).tolist()))
            return sample if window.shape is None else place(sample, window.shape, window.corner, window.size)

        return Resident(self._windows, lambda members: self._ahead(members, placed), self.devices)


def _rows(held: Bool[np.ndarray, " b"]) -> list[int]:
    """Rows to fill: those in `held`, or the first if there are none."""
    return np.flatnonzero(held).tolist() or [0]


def _other_size(pair: Pair, found: Size, expected: Size) -> DataError:
    (h, w), (height, width) = found, expected
    return problem(pair.image, f"is {w}x{h}; expected {width}x{height}, as when it was examined or as in its batch")


def to_device(
    batches: Iterable[Batch], ahead: int = 2, devices: Devices | None = None
) -> Iterator[dict[str, jax.Array]]:
    """Yields batches as arrays on the devices; the next `ahead` batches are transferred while one is in use."""
    waiting, put = deque(), jax.device_put if devices is None else devices.put
    for batch in batches:
        waiting.append(put(batch))
        if len(waiting) > ahead:
            yield waiting.popleft()
    yield from waiting
