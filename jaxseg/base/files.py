"""Atomic writes: readers see the old file or the whole new one, and a crash leaves the old one."""

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
