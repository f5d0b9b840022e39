"""Locks the folder of a run, so that two processes never write the same one.

The lock belongs to the process: the operating system releases it when the process ends, however it ends.
"""

import contextlib
import errno
import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from jaxseg.base.errors import UserError

NAME = ".lock"
"""Name of the lock file in a run's folder. It holds the process and its host, and is deleted at the end."""

if os.name == "nt":
    import msvcrt

    def _take(file: int) -> None:
        os.lseek(file, 2**20, os.SEEK_SET)  # a locked byte cannot be read by others: not one of the text
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        os.lseek(file, 0, os.SEEK_SET)

else:
    import fcntl

    def _take(file: int) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextlib.contextmanager
def locked(run: Path) -> Iterator[None]:
    """Holds the lock of folder `run` in a `with` statement.

    Raises UserError naming the process that holds it, or when the folder cannot be written. On a file system without
    locks it prints a warning and goes on.
    """
    path = run / NAME
    file = _hold(path)
    try:
        os.ftruncate(file, 0)
        os.write(file, json.dumps({"process": os.getpid(), "host": socket.gethostname()}).encode())
        yield
    finally:
        if os.name == "nt":  # an open file cannot be deleted there
            os.close(file)
        with contextlib.suppress(OSError):
            path.unlink()
        if os.name != "nt":
            os.close(file)


def refuse_if_locked(run: Path) -> None:
    """Raises UserError if another process holds the lock of `run`. Writes nothing where there is no lock file."""
    if (run / NAME).exists():
        with locked(run):
            pass


def _hold(path: Path) -> int:
    """Opens and locks the file; returns its descriptor."""
    while True:
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(f"{path.parent}: cannot be written ({error.strerror})") from None
        try:
            _take(file)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK):
                os.close(file)
                raise UserError(f"{path.parent}: {_holder(path)} is writing this run; wait until it ends") from None
            print(
                f"warning: {path.parent}: its file system has no locks ({error.strerror}); "
                "do not write this run from two processes",
                file=sys.stderr,
            )
            return file
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), path.stat()):
                return file
        os.close(file)  # the process that held it ended meanwhile and deleted it


def _holder(path: Path) -> str:
    try:
        held = json.loads(path.read_bytes())
        return f"process {held['process']} on {held['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
