"""Turns what Orbax raises and prints when a disk is full into one OSError."""

import errno
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax

from jaxseg.base.files import naming


@contextmanager
def writing(path: Path, trees: object) -> Iterator[None]:
    """Raises an OSError, which names `path`, where there is no room, and for each error while Orbax writes there.

    - `path`: existing folder of the checkpoint
    - `trees`: arrays to write

    Room is looked for first, as Orbax's threads print tracebacks when there is none. If another process takes it then,
    TensorStore raises ValueError with the system's number in its text. Logs with tracebacks stay off after an error.
    """
    if shutil.disk_usage(path).free < most_bytes(trees):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    logging.getLogger("absl").addFilter(_has_no_traceback)
    try:
        with naming(path):
            yield
    except ValueError as error:
        if (code := re.search(r"os_error_code='(\d+)'", str(error))) is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from error
    logging.getLogger("absl").removeFilter(_has_no_traceback)


def most_bytes(trees: object) -> int:
    """Returns the bytes that arrays may take on the disk: not compressed, with Orbax's files around them."""
    leaves = jax.tree.leaves(trees)
    return int(1.05 * sum(leaf.nbytes for leaf in leaves)) + 1024 * len(leaves) + 2**18


def _has_no_traceback(record: logging.LogRecord) -> bool:
    return not record.exc_info
