"""Decoded samples of a data set, one behind the other in one buffer: in memory, or in a file that later runs find."""

import contextlib
import errno
import hashlib
import mmap
import os
import platform
import re
import shutil
import threading
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import psutil

from jaxseg.base.config import cache_folder
from jaxseg.base.errors import UserError
from jaxseg.data.feed.windows import Size
from jaxseg.data.find.listing import Pair
from jaxseg.data.read.samples import Reading

VERSION = 1  # of what lies in a file: counted up with every change of how files become samples
KEPT = 4  # files of one data set: training and validation, of two ways to split or read it
SPARE = 2**28  # bytes of a disk that are left free


class Store:
    """Samples {"image": [h w c] of `reading.dtype`, "mask": uint8 [h w]} of known `sizes`, in memory.

    The memory is taken at once and filled by whoever decodes first, in any number of threads.
    """

    def __init__(self, sizes: Sequence[Size], reading: Reading):
        self._sizes, self._channels, self._dtype = tuple(sizes), reading.channels, np.dtype(reading.dtype)
        self._ends = np.cumsum([0, *(height * width for height, width in sizes)])
        self._masks = int(self._ends[-1]) * self._channels * self._dtype.itemsize
        self.nbytes = self._masks + int(self._ends[-1])
        self._there = np.zeros(len(sizes), bool)
        self._open()

    @property
    def full(self) -> bool:
        """Whether every sample is there."""
        return bool(self._there.all())

    def __contains__(self, index: int) -> bool:
        return bool(self._there[index])

    def write(self, index: int, sample: dict[str, np.ndarray]) -> None:
        """Keeps a sample of the size of number `index`."""
        kept = self._view(self._buffer(writable=True), index)
        for name, array in kept.items():
            array[...] = sample[name]
        self._there[index] = True

    def read(self, indices: Iterable[int]) -> list[dict[str, np.ndarray]]:
        """Samples that are there, as views: not to be changed, and to be copied before they go to a device."""
        buffer = self._buffer()
        return [self._view(buffer, index) for index in indices]

    def _view(self, buffer: np.ndarray, index: int) -> dict[str, np.ndarray]:
        (begin, end), pixel = self._ends[index : index + 2].tolist(), self._channels * self._dtype.itemsize
        image = buffer[begin * pixel : end * pixel].view(self._dtype).reshape(*self._sizes[index], self._channels)
        return {"image": image, "mask": buffer[self._masks + begin : self._masks + end].reshape(self._sizes[index])}

    def _open(self) -> None:
        self._memory = np.empty(self.nbytes, np.uint8)

    def _buffer(self, writable: bool = False) -> np.ndarray:
        return self._memory


class DiskStore(Store):
    """The same in a file of the user's cache folder, which a later run with the same files and reading finds.

    It is written under a name that no run looks for and gets its own when all of it is there, so that what a killed run
    leaves is never taken for whole. Raises UserError where the folder has no room or cannot be written.
    """

    def __init__(self, pairs: Sequence[Pair], sizes: Sequence[Size], reading: Reading):
        self._lock = threading.RLock()
        self.path = cache_folder() / _name(pairs, sizes, reading)
        super().__init__(sizes, reading)

    def write(self, index: int, sample: dict[str, np.ndarray]) -> None:
        """Keeps a sample of the size of number `index`."""
        with self._lock:
            if index not in self:  # or another thread was faster, and the file may be whole
                super().write(index, sample)

    def read(self, indices: Iterable[int]) -> list[dict[str, np.ndarray]]:
        """Samples that are there, as views that cannot be changed."""
        if self._draft is not None and self.full:
            self._publish()
        return super().read(indices)

    def _publish(self) -> None:
        """Gives the file, which is whole, its name; where the system does not let it go, the next read tries again."""
        with self._lock:
            if self._draft is None:
                return
            os.fsync(self._file.fileno())  # before its name, so that a power cut leaves no hollow file
            self._file.close()
            try:
                self._draft.replace(self.path)
            except OSError:  # Windows, while another thread reads
                self._use(self._draft, "r+b")
                return
            self._draft = None
            self._use(self.path, "rb")
        self._tidy()

    def _open(self) -> None:
        self._draft: Path | None = None
        with contextlib.suppress(OSError):
            if self.path.stat().st_size == self.nbytes:
                self._use(self.path, "rb")
                self._there[:] = True
                os.utime(self.path)
                return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._tidy()
            if self.nbytes + SPARE > (free := shutil.disk_usage(self.path.parent).free):
                raise UserError(f"{self._need()}, where {free / 2**20:,.0f} are free. {ELSEWHERE}")
            folders, mine = self.path.stem.split("-")[1], f"{os.getpid()}-{id(self):x}"
            self._draft = self.path.with_name(f"samples-{folders}-{_NODE}-{mine}.tmp")
            self._use(self._draft, "w+b")
            weakref.finalize(self, _remove, self._draft)  # where a run ends before the file is whole
            _allocate(self._file.fileno(), self.nbytes)
        except OSError as error:
            raise UserError(f"{self._need()}: {error.strerror or error}. {ELSEWHERE}") from None

    def _use(self, path: Path, mode: str) -> None:
        self._file = path.open(mode)
        weakref.finalize(self, self._file.close)

    def _need(self) -> str:
        return f"--cache disk: {len(self._sizes)} samples take {self.nbytes / 2**20:,.0f} MiB in {self.path.parent}"

    def _buffer(self, writable: bool = False) -> np.ndarray:
        """The map is made anew each time, since what was touched of one counts as our memory."""
        with self._lock:
            access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
            return np.frombuffer(mmap.mmap(self._file.fileno(), self.nbytes, access=access), np.uint8)

    def _tidy(self) -> None:
        """Removes what is there of the same data set: files whose pictures have changed since, all but the last few
        used, and drafts that killed runs have left. Who still has one open does not notice."""
        _, folders, files, _ = self.path.stem.split("-")
        folder = self.path.parent
        for draft in folder.glob(f"samples-{folders}-*.tmp"):
            *_, node, pid, _ = draft.stem.split("-")
            if node == _NODE and not psutil.pid_exists(int(pid)):
                _remove(draft)
        others = [path for path in folder.glob(f"samples-{folders}-*.bin") if path != self.path]
        others.sort(key=_used, reverse=True)
        stale = [path for path in others if path.stem.split("-")[2] == files]
        for path in {*stale, *[path for path in others if path not in stale][KEPT - 1 :]}:
            _remove(path)


ELSEWHERE = "Name a folder with more room in JAXSEG_CACHE_DIR, or give --cache none."
_NODE = re.sub(r"\W", "_", platform.node())


def _name(pairs: Sequence[Pair], sizes: Sequence[Size], reading: Reading) -> str:
    """samples-FOLDERS-FILES-STATE.bin: the data set; which files, read how; their sizes and times of change."""
    files = [path.absolute() for pair in pairs for path in (pair.image, pair.mask)]
    stats = [path.stat() for path in files if path.exists()]  # one that is not there is named when it is read
    folders = sorted({str(path.parent) for path in files})
    how = (VERSION, reading, *map(str, files))
    state = (tuple(sizes), *((stat.st_size, stat.st_mtime_ns) for stat in stats))
    return "samples-" + "-".join(map(_digest, (folders, how, state))) + ".bin"


def _digest(what: object) -> str:
    return hashlib.blake2b(repr(what).encode(), digest_size=12).hexdigest()


def _used(path: Path) -> float:
    """When it was used last; another run may have removed it since it was listed."""
    with contextlib.suppress(OSError):
        return path.stat().st_mtime
    return 0.0


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def _allocate(file: int, size: int) -> None:
    """Takes the room at once: a map cannot say that a disk is full but by ending the process."""
    try:
        os.posix_fallocate(file, 0, size)
    except (AttributeError, OSError) as error:  # not on every system, nor on every kind of disk
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise
        os.truncate(file, size)
