"""Pairs on disk -> batches of uint8 on the device, in an order that follows from (seed, epoch) alone.

Grain's reader threads decode ahead (OpenCV releases the GIL). The position is two integers, epoch and batch:
`epoch(e, start=b)` goes on where a stopped run was, whatever the number of threads.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence

import grain
import jax
import numpy as np

from jaxseg.data.tiles import Pair, read_sample
from jaxseg.losses import IGNORE_INDEX

Batch = dict[str, np.ndarray]


class Pipeline:
    """An iterator of batches over pairs of image and mask, all of one size.

    A batch is {"image": uint8 [b h w c], "mask": uint8 [b h w], "valid": bool [b]}. The last of an epoch is padded to
    the full shape: image 0, mask `IGNORE_INDEX`, `valid` false. `shuffle` draws a new order each epoch; without it
    the order is that of `pairs`. `workers`: reader threads, 0 for none. `cache` keeps every decoded sample (uint8) in
    memory; without it, memory does not grow with the number of pairs. A file that can no longer be read raises
    DataError with its name.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        *,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        workers: int = 0,
        cache: bool = False,
    ):
        if not pairs:
            raise ValueError("`pairs` is empty; expected one or more")
        self.pairs, self.batch_size, self.shuffle, self.seed, self.workers = (
            tuple(pairs),
            batch_size,
            shuffle,
            seed,
            workers,
        )
        self._cache: dict[int, Batch] | None = {} if cache else None

    def __len__(self) -> int:
        """Batches in an epoch, the last short one included."""
        return -(-len(self.pairs) // self.batch_size)

    @property
    def names(self) -> list[str]:
        """Names of the images, in the order of `pairs`."""
        return [pair.image.name for pair in self.pairs]

    def order(self, epoch: int) -> np.ndarray:
        """Indices of the pairs in the order in which `epoch` reads them."""
        if not self.shuffle:
            return np.arange(len(self.pairs))
        return np.random.default_rng((self.seed, epoch)).permutation(len(self.pairs))

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """The batches of `epoch` from number `start` on, as NumPy arrays."""
        rest = self.order(epoch)[start * self.batch_size :]
        if not len(rest):
            return iter(())
        batches = grain.MapDataset.source(rest).map(self._sample).batch(self.batch_size, batch_fn=self._collate)
        ahead = grain.ReadOptions(
            num_threads=self.workers, prefetch_buffer_size=max(2, self.workers) if self.workers else 0
        )
        return iter(batches.to_iter_dataset(ahead))

    def _sample(self, index: np.integer) -> Batch:
        index = int(index)
        if self._cache is None:
            return read_sample(self.pairs[index])
        if index not in self._cache:
            self._cache[index] = read_sample(self.pairs[index])
        return self._cache[index]

    def _collate(self, samples: Sequence[Batch]) -> Batch:
        padding = self.batch_size - len(samples)

        def stack(name: str, fill: int) -> np.ndarray:
            array = np.stack([sample[name] for sample in samples])
            return (
                np.pad(array, [(0, padding)] + [(0, 0)] * (array.ndim - 1), constant_values=fill) if padding else array
            )

        valid = np.arange(self.batch_size) < len(samples)
        return {"image": stack("image", 0), "mask": stack("mask", IGNORE_INDEX), "valid": valid}


def to_device(batches: Iterable[Batch], ahead: int = 2) -> Iterator[dict[str, jax.Array]]:
    """The same batches as device arrays; the transfer of the next `ahead` runs while one is in use."""
    waiting = deque()
    for batch in batches:
        waiting.append(jax.device_put(batch))
        if len(waiting) > ahead:
            yield waiting.popleft()
    yield from waiting
