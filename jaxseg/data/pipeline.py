"""Pairs on disk -> batches of integers on the device, in an order that follows from (seed, epoch) alone.

Grain's reader threads decode ahead (OpenCV releases the GIL). The position is two integers, epoch and batch:
`epoch(e, start=b)` goes on where a stopped run was, whatever the number of threads.
"""

import functools
import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

import grain
import jax
import numpy as np

from jaxseg.config import IGNORE_INDEX
from jaxseg.data.shapes import Size, Window, place, windows
from jaxseg.data.tiles import ARTICLE_READING, Pair, Reading, read_sample

Batch = dict[str, np.ndarray]


class Pipeline:
    """An iterator of batches over pairs of image and mask.

    A batch is {"image": [b h w c] in the type of `reading`, "mask": uint8 [b h w], "valid": bool [b]}. Where samples
    are too few to fill one, it is padded to the full shape: image 0, mask `IGNORE_INDEX`, `valid` false. `shuffle`
    draws a new order each epoch; without it the order is that of `pairs`, or shape by shape.

    `sizes`, height and width of every pair, is needed when they are not all the same. Then images are padded at the
    bottom and on the right (mirrored, the mask ignored) to one of a few shapes, and those with a side above `largest`
    are cut into a grid first. With `crop`, a sample is that large instead: a random part, drawn anew each epoch and
    `crops` times in each, of every image.

    `workers`: reader threads, 0 for none. `cache` keeps every decoded sample in memory; without it, memory does not
    grow with the number of pairs. A file that can no longer be read raises DataError with its name.
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
        cache: bool = False,
        sizes: Sequence[Size] | None = None,
        largest: int | None = None,
        crop: Size | None = None,
        crops: int = 1,
    ):
        if not pairs:
            raise ValueError("`pairs` is empty; expected one or more")
        self.pairs, self.batch_size, self.reading, self.crop = tuple(pairs), batch_size, reading, crop
        self.shuffle, self.seed, self.workers = shuffle, seed, workers
        self._windows = [Window(i) for i in range(len(pairs))] * crops
        if crop is None and sizes is not None and (len(set(sizes)) > 1 or max(sizes[0]) > (largest or math.inf)):
            self._windows = windows(sizes, largest)
        self._cache: dict[int, Batch] | None = {} if cache else None
        if len(self._windows) > len(pairs) * crops:  # windows of one image come one after the other: decode it once
            self._decode = functools.lru_cache(maxsize=workers + 1)(self._decode)

    def __len__(self) -> int:
        """Batches in an epoch, the short ones included."""
        return len(self._slots(0)) // self.batch_size

    def order(self, epoch: int) -> np.ndarray:
        """Numbers of the samples in the order in which `epoch` reads them: those of the pairs, `crops` times over."""
        count = len(self._windows)
        return np.random.default_rng((self.seed, epoch)).permutation(count) if self.shuffle else np.arange(count)

    def _slots(self, epoch: int) -> np.ndarray:
        """Sample of each place in each batch of `epoch`, -1 where it stays empty: a batch has one shape."""
        order, slots = self.order(epoch), []
        for shape in dict.fromkeys(window.shape for window in self._windows):
            members = order[[self._windows[i].shape == shape for i in order]]
            slots += [members, np.full(-len(members) % self.batch_size, -1)]
        return np.concatenate(slots)

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """The batches of `epoch` from number `start` on, as NumPy arrays."""
        slots = self._slots(epoch)
        rest = range(start * self.batch_size, len(slots))
        if not rest:
            return iter(())

        def sample(slot: int) -> Batch | None:
            return None if slots[slot] < 0 else self._sample(self._windows[slots[slot]], (self.seed, epoch, slot))

        batches = grain.MapDataset.source(rest).map(sample).batch(self.batch_size, batch_fn=self._collate)
        ahead = grain.ReadOptions(
            num_threads=self.workers, prefetch_buffer_size=max(2, self.workers) if self.workers else 0
        )
        return iter(batches.to_iter_dataset(ahead))

    def _sample(self, window: Window, draw: tuple[int, int, int]) -> Batch:
        sample = self._read(window.index)
        if self.crop is not None:
            room = np.maximum(np.subtract(sample["mask"].shape, self.crop), 0)
            corner = np.random.default_rng(draw).integers(0, room + 1)
            return place(sample, self.crop, tuple(corner.tolist()))
        return sample if window.shape is None else place(sample, window.shape, window.corner, window.size)

    def _read(self, index: int) -> Batch:
        if self._cache is None:
            return self._decode(index)
        if index not in self._cache:
            self._cache[index] = self._decode(index)
        return self._cache[index]

    def _decode(self, index: int) -> Batch:
        return read_sample(self.pairs[index], self.reading)

    def _collate(self, samples: Sequence[Batch | None]) -> Batch:
        there = [sample for sample in samples if sample is not None]
        padding = self.batch_size - len(there)

        def stack(name: str, fill: int) -> np.ndarray:
            array = np.stack([sample[name] for sample in there])
            return (
                np.pad(array, [(0, padding)] + [(0, 0)] * (array.ndim - 1), constant_values=fill) if padding else array
            )

        valid = np.arange(self.batch_size) < len(there)
        return {"image": stack("image", 0), "mask": stack("mask", IGNORE_INDEX), "valid": valid}


def to_device(batches: Iterable[Batch], ahead: int = 2) -> Iterator[dict[str, jax.Array]]:
    """The same batches as device arrays; the transfer of the next `ahead` runs while one is in use."""
    waiting = deque()
    for batch in batches:
        waiting.append(jax.device_put(batch))
        if len(waiting) > ahead:
            yield waiting.popleft()
    yield from waiting
