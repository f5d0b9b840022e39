"""Memory for batches that is used again: the pages of fresh memory cost a tenth of the time that decoding takes."""

import math
import mmap
import weakref

import numpy as np

KEPT = 8
"""Free buffers of one size at most."""


class Buffers:
    """Arrays whose memory comes back when the last one that refers to it is gone: a view of it, or a device array that
    is the same memory, as on a CPU. Until then nobody else gets it. For any number of threads.
    """

    def __init__(self):
        self._free: dict[int, list[mmap.mmap]] = {}

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """An array of whatever was there before."""
        size = math.prod(shape) * dtype.itemsize
        free = self._free.setdefault(size, [])
        try:
            memory = free.pop()
        except IndexError:
            memory = mmap.mmap(-1, max(size, 1))
        owner = np.frombuffer(memory, np.uint8, size)  # the base of every view
        weakref.finalize(owner, _give_back, free, memory).atexit = False
        return owner.view(dtype).reshape(shape)


def _give_back(free: list[mmap.mmap], memory: mmap.mmap) -> None:
    if len(free) < KEPT:
        free.append(memory)
