"""Contenders of the input pipeline, for `workers.Worker`: pairs of tiles from PNG to batches."""

from concurrent.futures import ThreadPoolExecutor

import cv2

from benchmarks.sources import Source
from benchmarks.workers import timed


class Decoder:
    """Nothing but `cv2.imread` of image and mask, in a pool of threads: what there is to be had."""

    def __init__(self, source: Source):
        cv2.setNumThreads(0)
        self._pairs, self._threads = source.pairs, source.workers

    def turn(self, times: int) -> dict:
        """Counts pairs."""

        def decode(pair) -> int:
            return sum(cv2.imread(str(path), cv2.IMREAD_UNCHANGED).nbytes for path in (pair.image, pair.mask))

        def work():
            with ThreadPoolExecutor(self._threads) as pool:
                for _ in range(times):
                    sum(pool.map(decode, self._pairs))

        return timed(work, times * len(self._pairs))


class Ours:
    """jaxseg's pipeline, from files or caches to batches on the device; the epoch that fills a cache is not timed."""

    def __init__(self, source: Source, batch: int, cache: str):
        self._pipeline, self._epoch, self._pairs = source.pipeline(batch, cache), 0, source.tiles
        self.turn(1)

    def turn(self, times: int) -> dict:
        """Counts pairs."""
        import jax

        from jaxseg.data.feed.pipeline import to_device

        def work():
            for _ in range(times):
                for batch in to_device(self._pipeline.epoch(self._epoch)):
                    jax.block_until_ready(batch)
                self._epoch += 1

        return timed(work, times * self._pairs)


class Theirs:
    """The article's DataLoader, to batches of float32 on the host."""

    def __init__(self, source: Source, batch: int, workers: int, keep: bool = False):
        self._loader, self._pairs = source.torch_loader(batch, workers, keep), source.tiles

    def turn(self, times: int) -> dict:
        """Counts pairs."""

        def work():
            for _ in range(times):
                for _ in self._loader:
                    pass

        return timed(work, times * self._pairs)
