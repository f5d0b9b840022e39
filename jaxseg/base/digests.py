"""Digests that tell whether a file still holds what it held."""

import hashlib
import os
from pathlib import Path

WHOLE = 2**24
"""Size in bytes up to which `of_content` reads a whole file."""
BLOCK, BLOCKS = 2**16, 256
"""Size in bytes and number of the blocks that it reads of a larger one."""


def of_file(path: Path) -> str:
    """Returns the SHA-256 of a whole file, in hexadecimal. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def of_content(path: Path) -> str:
    """Returns 16 hexadecimal digits that follow from a file's content, not its name or times. Raises OSError.

    A file of more than `WHOLE` bytes is sampled: its size and `BLOCKS` blocks, evenly spread, the last at its end.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        digest = hashlib.sha256(str(size).encode())
        if size <= WHOLE:
            digest.update(file.read())
        else:
            for number in range(BLOCKS):
                file.seek((size - BLOCK) * number // (BLOCKS - 1))
                digest.update(file.read(BLOCK))
    return digest.hexdigest()[:16]
