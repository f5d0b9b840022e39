"""JAX's persistent compilation cache, which the commands turn on."""

import contextlib
import os
import tempfile
from pathlib import Path

import jax

from jaxseg.base.config import cache_folder
from jaxseg.base.terminal import console

LIMIT = 2**29
"""Bytes of the folder; a U-Net's training step takes half a million."""


def keep() -> None:
    """Turns on JAX's persistent compilation cache in the user's cache folder; JAXSEG_CACHE_DIR overrides its place.

    Does nothing where JAX_COMPILATION_CACHE_DIR, JAX_ENABLE_COMPILATION_CACHE=false or `jax.config` say otherwise. A
    folder that cannot be written gives a line of warning. A program's cache key holds versions, flags and the kind of
    CPU or GPU, so machines may share the folder. It holds code that is run: keep it writable only by its user.
    """
    if jax.config.jax_compilation_cache_dir is not None or not jax.config.jax_enable_compilation_cache:
        return
    folder = cache_folder() / "compiled"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        trim(folder, LIMIT)
    except OSError as error:
        advice = "set JAXSEG_CACHE_DIR to a folder that can be, or every start waits for the compiler"
        console.print(f"cache {folder}: cannot be written ({error.strerror or error}); {advice}", style="yellow")
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        # JAX keeps what took a second; but of what takes less there are dozens, 20 ms each and 2 ms to find again
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def trim(folder: Path, limit: int) -> None:
    """Deletes the files that were written first until the others have `limit` bytes.

    JAX's own bound (jax_compilation_cache_max_size) holds a lock for every look, and once a process is killed between
    an entry and its time stamp it fails to write ever after.
    """
    found = []
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # another process trims too
            if path.is_file():
                found.append((path.stat().st_mtime, path.stat().st_size, path))
    total = 0
    for _, size, path in sorted(found, reverse=True):
        total += size
        if total > limit:
            path.unlink(missing_ok=True)
