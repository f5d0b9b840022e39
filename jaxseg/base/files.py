"""Files that are whole or not there: nobody reads half of one, and a crash leaves the one that was there before."""

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_numbers = itertools.count()


@contextmanager
def draft(path: Path) -> Iterator[Path]:
    """A path beside `path` that takes its name when the block ends, and is removed when it fails.

    Its own name is short, as that of `path` may be as long as the disk takes. Raises OSError when the disk does not
    take the file.
    """
    beside = path.with_name(f".{os.getpid()}-{next(_numbers)}.tmp")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def replace(path: Path, content: bytes) -> None:
    """Writes a file by way of a `draft`."""
    with draft(path) as beside:
        beside.write_bytes(content)
