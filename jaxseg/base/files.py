"""Writes files atomically, so that a crash leaves the old one or the whole new one, appends lines, and stamps files."""

import itertools
import os
import tempfile
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

    Raises OSError, which names `path`, when the file cannot be written.
    """
    # short, because the name of `path` may have the greatest length that the file system allows
    beside = path.with_name(f".{os.getpid()}-{next(_numbers)}.tmp")
    with naming(path, beside):
        try:
            yield beside
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)


def replace(path: Path, content: bytes) -> None:
    """Writes `content` to `path` atomically, replacing a file that is there. Raises OSError as `draft` does."""
    with draft(path) as beside:
        beside.write_bytes(content)


def append(path: Path, text: str) -> None:
    """Appends `text` to a file, made if it does not exist, and waits for the disk.

    Raises OSError, which names `path`.
    """
    with naming(path), path.open("a", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def is_utf8(path: Path) -> bool:
    """True if a path can be written into JSON and other texts; names from old archives may be of another encoding."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def try_writing(folder: Path) -> None:
    """Raises OSError, which names `folder`, unless files can be written in it, or where it would be made.

    Leaves nothing behind, and does not make the folder.
    """
    place = folder.absolute()
    there = next(parent for parent in (place, *place.parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(bytes(4096))  # a full disk may still have room for an empty file
    except OSError as error:
        error.filename = str(folder)  # not the temporary file
        raise


@contextmanager
def naming(path: Path, draft: Path | None = None) -> Iterator[None]:
    """Puts `path` into an OSError that names no file, as when a disk is full, or names its `draft`."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(draft)):
            error.filename = str(path)
        raise


def stamp(path: Path) -> list[int]:
    """Returns numbers that change with a file's content, as cache key: inode, size, and times in nanoseconds.

    Tools that restore the time of modification do not restore that of the status. A file that changed less than
    `SETTLED` seconds ago might change again unseen: its stamp is never equal to another. Raises OSError.
    """
    stat, now = path.stat(), time.time_ns()
    numbers = [stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
    return numbers + [now] * (now - max(numbers[2:]) < SETTLED * 1e9)
