"""Turns what Orbax raises and prints when a disk is full into one OSError."""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jaxseg.base.files import naming


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises an OSError, which names `path`, for each error of the system while Orbax writes there.

    TensorStore raises ValueError with the system's number in its text. Orbax's threads log it with tracebacks, and may
    do so later: after an error, these stay off.
    """
    logging.getLogger("absl").addFilter(_has_no_traceback)
    try:
        with naming(path):
            yield
    except ValueError as error:
        if (code := re.search(r"os_error_code='(\d+)'", str(error))) is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from error
    logging.getLogger("absl").removeFilter(_has_no_traceback)


def _has_no_traceback(record: logging.LogRecord) -> bool:
    return not record.exc_info
