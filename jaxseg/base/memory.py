"""Memory of the process, on Linux with glibc."""

import ctypes
import os
import platform

MMAP_MAX, TRIM_THRESHOLD, ARENA_MAX = -4, -1, -8
"""Parameters of glibc's `mallopt`."""


def keep_freed() -> bool:
    """Lets the process keep memory that it frees, for the next array; returns whether it does.

    A step of JAX on a CPU takes memory for its intermediate values and frees it. glibc returns so much to the system,
    which hands out new pages one by one in the next step: a tenth of a prediction's time and more. Keeping it takes a
    seventh more memory (`scripts/README.md`). Does nothing without glibc, and where variables MALLOC_* or
    GLIBC_TUNABLES are set.
    """
    told = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    if told or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all([mallopt(MMAP_MAX, 0), mallopt(TRIM_THRESHOLD, 2**31 - 1), mallopt(ARENA_MAX, 1)])
