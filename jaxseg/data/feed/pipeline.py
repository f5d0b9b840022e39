"""Pairs on disk -> batches of integers on the device, in an order that follows from (seed, epoch) alone.

Threads decode ahead (OpenCV releases the GIL). The position is two integers, epoch and batch:
`epoch(e, start=b)` goes on where a stopped run was, whatever the number of threads and wherever samples are kept.
"""

import functools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import jax
import numpy as np

from jaxseg.base.config import IGNORE_INDEX
from jaxseg.base.errors import DataError, problem
from jaxseg.data.feed.resident import Resident
from jaxseg.data.feed.store import DiskStore, Store
from jaxseg.data.feed.windows import Size, Window, place, windows
from jaxseg.data.find.listing import Pair
from jaxseg.data.read.samples import ARTICLE_READING, Reading, read_sample

Sample = dict[str, np.ndarray]
Batch = dict[str, np.ndarray | jax.Array]
Cache = Literal["none", "memory", "disk", "device"]
Draw = tuple[int, int, int]
"""Seed, epoch and place in it, from which a crop is drawn."""


class Pipeline:
    """An iterator of batches over pairs of image and mask.

    A batch is {"image": [b h w c] in the type of `reading`, "mask": uint8 [b h w], "valid": bool [b]}. Where samples
    are too few to fill one, it is padded to the full shape: image 0, mask `IGNORE_INDEX`, `valid` false. `shuffle`
    draws a new order each epoch; without it the order is that of `pairs`, or shape by shape.

    `sizes`, height and width of every pair, is needed when they are not all the same. Then images are padded at the
    bottom and on the right (mirrored, the mask ignored) to one of a few shapes, and those with a side above `largest`
    are cut into a grid first. With `crop`, a sample is that large instead: a random part, drawn anew each epoch and
    `crops` times in each, of every image.

    `workers`: reader threads, 0 for none. `cache` says where decoded samples are kept, and changes nothing else:
    "memory" and "disk" (a file that later runs find again, see `DiskStore`) are filled during the first epoch, "device"
    before it, and then batches are arrays of the device; with "none" memory does not grow with the number of pairs.
    Crops of images of different sizes cannot be made on the device: ValueError. A file that can no longer be read, or
    has another size than its like or than in `sizes`, raises DataError with its name.
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
    ):
        if not pairs:
            raise ValueError("`pairs` is empty; expected one or more")
        self.pairs, self.batch_size, self.reading, self.crop = tuple(pairs), batch_size, reading, crop
        self.shuffle, self.seed, self.workers, self.cache = shuffle, seed, workers, cache
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
            self._store = Store(sizes, reading) if cache == "memory" else DiskStore(self.pairs, sizes, reading)
            if first is not None and 0 not in self._store:
                self._store.write(0, first)
        elif len(self._windows) > len(pairs) * crops:  # windows of one image come one after the other: decode it once
            self._decode = functools.lru_cache(maxsize=workers + 1)(self._decode)

    def __len__(self) -> int:
        """Batches in an epoch, the short ones included."""
        return int(sum(-(-count // self.batch_size) for count in np.bincount(self._shapes)))

    def order(self, epoch: int) -> np.ndarray:
        """Numbers of the samples in the order in which `epoch` reads them: those of the pairs, `crops` times over."""
        count = len(self._windows)
        return np.random.default_rng((self.seed, epoch)).permutation(count) if self.shuffle else np.arange(count)

    def _slots(self, epoch: int) -> np.ndarray:
        """Sample of each place in each batch of `epoch`, -1 where it stays empty: a batch has one shape."""
        order, slots = self.order(epoch), []
        for shape in range(self._shapes.max() + 1):
            members = order[self._shapes[order] == shape]
            slots += [members, np.full(-len(members) % self.batch_size, -1)]
        return np.concatenate(slots)

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """The batches of `epoch` from number `start` on: NumPy arrays that nobody else uses, or the device's."""
        slots = self._slots(epoch)
        numbers = range(start, len(slots) // self.batch_size)

        def make(number: int) -> Batch:
            first = number * self.batch_size
            members = [self._windows[slot] for slot in slots[first : first + self.batch_size] if slot >= 0]
            draws = [(self.seed, epoch, first + row) for row in range(len(members))]
            return self._gather(members, draws) if self.cache == "device" else self._batch(members, draws)

        if self.cache == "device" or (self.cache == "memory" and self._store.full):
            return map(make, numbers)
        return self._ahead(numbers, make)

    def _ahead(self, items: Iterable, make: Callable) -> Iterator:
        """What `make` makes of each item, in order and in the reader threads, which are two items each ahead."""
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
            finally:  # where the rest is not asked for, or one failed
                readers.shutdown(cancel_futures=True)

    def _batch(self, members: Sequence[Window], draws: Sequence[Draw]) -> Sample:
        batch: Sample = {}
        for row, (window, sample, draw) in enumerate(zip(members, self._samples(members), draws)):
            if self.crop is not None:
                sample = place(sample, self.crop, self._corner(sample["mask"].shape, draw))
            elif window.shape is not None:
                sample = place(sample, window.shape, window.corner, window.size)
            for name, array in sample.items():
                if name not in batch:
                    batch[name] = np.empty((self.batch_size, *array.shape), array.dtype)
                kept = batch[name]
                if array.shape != kept.shape[1:]:
                    raise _other_size(self.pairs[window.index], sample["mask"].shape, kept.shape[1:3])
                kept[row] = array
        batch["image"][len(members) :] = 0
        batch["mask"][len(members) :] = IGNORE_INDEX
        return batch | {"valid": np.arange(self.batch_size) < len(members)}

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

    def _gather(self, members: Sequence[Window], draws: Sequence[Draw]) -> dict[str, jax.Array]:
        corners = [self._corner(self._sizes[0], draw) for draw in draws] if self.crop else None
        return self._resident.batch(members, self.batch_size, corners, self.crop)

    @functools.cached_property
    def _resident(self) -> Resident:
        def placed(window: Window) -> Sample:
            sample = self._decode(window.index)
            if self.crop is not None:
                return place(sample, tuple(np.maximum(self._sizes[0], self.crop).tolist()))
            return sample if window.shape is None else place(sample, window.shape, window.corner, window.size)

        return Resident(self._windows, lambda members: self._ahead(members, placed))


def _other_size(pair: Pair, found: Size, expected: Size) -> DataError:
    (h, w), (height, width) = found, expected
    return problem(pair.image, f"is {w}x{h}; expected {width}x{height}, as when the data were looked over or as others")


def to_device(batches: Iterable[Batch], ahead: int = 2) -> Iterator[dict[str, jax.Array]]:
    """The same batches as device arrays; the transfer of the next `ahead` runs while one is in use."""
    waiting = deque()
    for batch in batches:
        waiting.append(jax.device_put(batch))
        if len(waiting) > ahead:
            yield waiting.popleft()
    yield from waiting
