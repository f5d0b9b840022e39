"""Keeps decoded samples of a data set in one buffer: in memory, or in a cache file that later runs reuse.

Processes of a run on one machine share the buffer. Each decodes what it needs and none has stored.
"""

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
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import psutil

from jaxseg.base.config import cache_folder
from jaxseg.base.errors import UserError
from jaxseg.base.terminal import console
from jaxseg.data.feed.windows import Size
from jaxseg.data.find.listing import Pair
from jaxseg.data.read.images import stamp
from jaxseg.data.read.samples import Reading

VERSION = 2  # version of the cache files: increase it when the same files give other samples
KEPT = 4  # cache files per data set: training and validation, for two ways to split or read it
SPARE = 2**28  # bytes left free on the disk


Share = Callable[[Callable[[], Path]], Path]


def by_itself(make: Callable[[], Path]) -> Path:
    """Calls `make`, where a process shares nothing."""
    return make()


class Store:
    """Keeps samples {"image": [h w c] of `reading.dtype`, "mask": uint8 [h w]} of known `sizes` in memory.

    Memory is allocated at once. Any number of threads may fill it, in any order.
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
        """True if every sample is stored."""
        return bool(self._there.all())

    def __contains__(self, index: int) -> bool:
        return bool(self._there[index])

    def write(self, index: int, sample: dict[str, np.ndarray]) -> None:
        """Stores sample number `index`, which must have its size in `sizes`."""
        kept = self._view(self._buffer(writable=True), index)
        for name, array in kept.items():
            array[...] = sample[name]
        self._there[index] = True

    def read(self, indices: Iterable[int]) -> list[dict[str, np.ndarray]]:
        """Returns stored samples as views: do not change them, and copy them before a transfer to a device."""
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


class SharedStore(Store):
    """Keeps samples in memory that the processes of a run on this machine share, by a file without a name (Linux).

    Its end holds the CRC-32 of each sample. `index in store` compares it once, in a twentieth of the time of decoding
    a PNG: so a sample that another process is still writing counts as missing.

    - `share`: calls a function in one process of this machine, and returns its result in all
    """

    path: Path | None = None
    """Place of the complete file; None for one without a name."""

    def __init__(self, sizes: Sequence[Size], reading: Reading, share: Share = by_itself):
        self._lock, self._sound, self._share = threading.RLock(), np.zeros(len(sizes), bool), share
        super().__init__(sizes, reading)

    def __contains__(self, index: int) -> bool:
        if not self._sound[index]:
            buffer = self._buffer()
            digest = self._digests(buffer)[index]
            if self._there[index] or digest:
                self._sound[index] = _crc(self._view(buffer, index)) == digest
                if self._there[index] and not self._sound[index]:
                    self._repair()
            self._there[index] = self._sound[index]
        return bool(self._there[index])

    def write(self, index: int, sample: dict[str, np.ndarray]) -> None:
        """Stores sample number `index`, which must have its size in `sizes`."""
        with self._lock:
            if index not in self:  # else another thread was faster, and the file may be complete
                buffer = self._buffer(writable=True)
                kept = self._view(buffer, index)
                for name, array in kept.items():
                    array[...] = sample[name]
                self._digests(buffer)[index] = _crc(kept)
                self._there[index] = self._sound[index] = True

    def _digests(self, buffer: np.ndarray) -> np.ndarray:
        return buffer[self._size - 4 * len(self._sizes) :].view("<u4")

    def _repair(self) -> None:
        """Does nothing: the sample is written anew."""

    def _open(self) -> None:
        self._file = None
        self._size = -(-self.nbytes // 4) * 4 + 4 * len(self._sizes)  # digests are aligned
        place = self._share(self._make)
        if self._file is None:  # another process has made it
            try:
                self._use(place, "rb" if place == self.path else "r+b")
            except OSError:  # on another machine with the same name
                self._make()

    def _make(self) -> Path:
        """Makes the file; returns a path by which other processes open it."""
        number = os.memfd_create("jaxseg")
        self._use(Path(f"/proc/self/fd/{number}"), "r+b")
        os.close(number)
        os.truncate(self._file.fileno(), self._size)
        return Path(f"/proc/{os.getpid()}/fd/{self._file.fileno()}")

    def _use(self, path: Path, mode: str) -> None:
        self._file = path.open(mode)
        weakref.finalize(self, self._file.close)

    def _buffer(self, writable: bool = False) -> np.ndarray:
        """Maps the file anew, since pages touched in a map count as the process's memory."""
        with self._lock:
            access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
            return np.frombuffer(mmap.mmap(self._file.fileno(), self._size, access=access), np.uint8)


class DiskStore(SharedStore):
    """Keeps samples in a file of the user's cache folder; a later run with the same files and reading reuses it.

    The file has a temporary name until it is complete, so the rest of a killed run is never reused. A damaged sample
    counts as missing, and is written anew. Raises UserError if the folder is full or not writable.
    """

    def __init__(self, pairs: Sequence[Pair], sizes: Sequence[Size], reading: Reading, share: Share = by_itself):
        self.path = cache_folder() / _name(pairs, sizes, reading)
        super().__init__(sizes, reading, share)

    def read(self, indices: Iterable[int]) -> list[dict[str, np.ndarray]]:
        """Returns stored samples as read-only views."""
        if self._draft is not None and (self._there | (self._digests(self._buffer()) != 0)).all():
            self._publish()
        return super().read(indices)

    def _repair(self) -> None:
        """Opens the complete file for writing, if it is not yet open so, and says why."""
        with self._lock:
            if self._file.writable():
                return
            console.print(f"cache {self.path} is damaged: the samples concerned are read again")
            self._sound[:] = False  # by now another run may have replaced the file
            try:
                self._use(self.path, "r+b")
            except OSError as error:
                what = f"{self.path} is damaged, and cannot be written ({error.strerror or error})"
                raise UserError(f"--cache disk: {what}. Delete it, or give --cache none.") from None

    def _publish(self) -> None:
        """Renames the complete file to its final name; if the system refuses, the next read tries again."""
        with self._lock:
            if self._draft is None:
                return
            os.fsync(self._file.fileno())  # before the rename: a power cut must not leave an incomplete file
            self._file.close()
            try:
                self._draft.replace(self.path)
            except FileNotFoundError:  # another process has renamed it
                pass
            except OSError:  # Windows, while another thread reads
                self._use(self._draft, "r+b")
                return
            self._use(self.path, "rb")
        self._tidy()

    def _make(self) -> Path:
        """Opens the complete file, or makes a draft; returns its path."""
        with contextlib.suppress(OSError):
            if self.path.stat().st_size == self._size:
                self._use(self.path, "rb")
                os.utime(self.path)
                return self.path
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._tidy()
            if self.nbytes + SPARE > (free := shutil.disk_usage(self.path.parent).free):
                raise UserError(f"{self._need()}, where {free / 2**20:,.0f} MiB are free. {ELSEWHERE}")
            folders, mine = self.path.stem.split("-")[1], f"{os.getpid()}-{id(self):x}"
            draft = self.path.with_name(f"samples-{folders}-{_NODE}-{mine}.tmp")
            self._use(draft, "w+b")
            weakref.finalize(self, _remove, draft)  # if the run ends before the file is complete
            _allocate(self._file.fileno(), self._size)
            return draft
        except OSError as error:
            raise UserError(f"{self._need()}: {error.strerror or error}. {ELSEWHERE}") from None

    def _use(self, path: Path, mode: str) -> None:
        """Opens the complete file or a draft."""
        super()._use(path, mode)
        self._draft = None if path == self.path else path
        self._there[:] |= path == self.path

    def _need(self) -> str:
        return f"--cache disk: {len(self._sizes)} samples need {self.nbytes / 2**20:,.0f} MiB in {self.path.parent}"

    def _tidy(self) -> None:
        """Removes old cache files of this data set; runs that still have one open are not disturbed.

        These are files whose images have changed, all but the few used last, and drafts of killed runs.
        """
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
    """Returns samples-FOLDERS-FILES-STATE.bin, three digests.

    They are of the data set's folders, of its files and reading, and of the files' stamps.
    """
    files = [path.absolute() for pair in pairs for path in (pair.image, pair.mask)]
    stamps = [stamp(path) for path in files if path.exists()]  # a missing file is named when it is read
    folders = sorted({str(path.parent) for path in files})
    how = (VERSION, reading, *map(str, files))
    state = (tuple(sizes), stamps)
    return "samples-" + "-".join(map(_digest, (folders, how, state))) + ".bin"


def _crc(sample: dict[str, np.ndarray]) -> int:
    return zlib.crc32(sample["mask"], zlib.crc32(sample["image"]))


def _digest(what: object) -> str:
    return hashlib.blake2b(repr(what).encode(), digest_size=12).hexdigest()


def _used(path: Path) -> float:
    """Returns the time of last use in seconds; 0 if another run has removed the file."""
    with contextlib.suppress(OSError):
        return path.stat().st_mtime
    return 0.0


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def _allocate(file: int, size: int) -> None:
    """Reserves disk space at once: writing to a map on a full disk would kill the process."""
    try:
        os.posix_fallocate(file, 0, size)
    except (AttributeError, OSError) as error:  # not supported by every system and file system
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise
        os.truncate(file, size)
