"""Atomic writes: readers see the old file or the whole new one, and a crash leaves the old one. Stamps of files."""

import itertools
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SETTLED = 2.0
"""Seconds after which a further change is sure to change a file's times; on FAT they have steps of two seconds."""

_numbers = itertools.count()


@contextmanager
def draft(path: Path) -> Iterator[Path]:
    """Yields a temporary path in the same folder, renamed to `path` when the block ends and deleted when it fails.

    Raises OSError when the file cannot be written.
    """
    # short, because the name of `path` may have the greatest length that the file system allows
    beside = path.with_name(f".{os.getpid()}-{next(_numbers)}.tmp")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def replace(path: Path, content: bytes) -> None:
    """Writes `content` to `path` atomically, replacing a file that is there. Raises OSError as `draft` does."""
    with draft(path) as beside:
        beside.write_bytes(content)


def stamp(path: Path) -> list[int]:
    """Returns numbers that change with a file's content, as cache key: inode, size, and times in nanoseconds.

    Tools that restore the time of modification do not restore that of the status. A file that changed less than
    `SETTLED` seconds ago might change again unseen: its stamp is never equal to another. Raises OSError.
    """
    stat, now = path.stat(), time.time_ns()
    numbers = [stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
    return numbers + [now] * (now - max(numbers[2:]) < SETTLED * 1e9)
