"""JAX as the commands need it: a device, compilation, and the persistent compilation cache."""

import contextlib
import os
import tempfile
from pathlib import Path

import jax

from jaxseg.base.config import cache_folder
from jaxseg.base.errors import UserError
from jaxseg.base.terminal import console

LIMIT = 2**29
"""Most bytes of the folder; a U-Net's training step takes about 500,000."""


def try_jax() -> None:
    """Raises UserError unless JAX has a device and compiles."""
    if jax.config.jax_disable_jit:
        raise UserError("JAX_DISABLE_JIT is set, but jaxseg compiles its steps; unset it")
    try:
        jax.devices()
    except Exception as error:  # RuntimeError, or AssertionError without a text
        asked = jax.config.jax_platforms
        name = f"JAX_PLATFORMS is {asked}, which" if asked else "JAX"
        why = str(error).partition(" (")[0].strip().rstrip(".") or "JAX finds no such device"
        advice = "Unset JAX_PLATFORMS to use what is there; for an NVIDIA GPU, pip install 'jaxseg[cuda12]'"
        raise UserError(f"{name} cannot be used here: {why}. {advice}") from error


def keep() -> None:
    """Turns on JAX's persistent compilation cache in the user's cache folder, or in JAXSEG_CACHE_DIR.

    Explicit settings are respected: JAX_COMPILATION_CACHE_DIR, JAX_ENABLE_COMPILATION_CACHE=false and `jax.config`.
    If the folder cannot be written, prints a warning and leaves the cache off. The cache key includes versions, flags
    and the kind of CPU or GPU, so machines may share the folder. Its files are executed: keep it writable only by its
    user.
    """
    if jax.config.jax_compilation_cache_dir is not None or not jax.config.jax_enable_compilation_cache:
        return
    folder = cache_folder() / "compiled"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        trim(folder, LIMIT)
    except OSError as error:
        advice = "set JAXSEG_CACHE_DIR to a writable folder, or every start compiles anew"
        console.print(f"cache {folder}: cannot be written ({error.strerror or error}); {advice}", style="yellow")
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        # JAX's threshold is 1 s. A run has dozens of smaller programs: 20 ms each to compile, 2 ms to load.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def trim(folder: Path, limit: int) -> None:
    """Deletes the oldest files until the others have at most `limit` bytes.

    JAX's own bound, jax_compilation_cache_max_size, takes a lock for every lookup. If a process is killed between
    writing an entry and its time stamp, later writes fail.
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
