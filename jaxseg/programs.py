"""Compiled steps kept for the next process, which need not trace them again: a third of a start, where JAX's own cache
(see `compilation`) spares the compiler only, because it finds a program by its text.
"""

import contextlib
import functools
import hashlib
import os
import pickle
import platform
import sys
import uuid
import zlib
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import jax
import psutil
from jax.experimental import serialize_executable

from jaxseg import files
from jaxseg.fingerprint import aval, fingerprint, is_known

VARIABLES = ("CU", "FLAX", "JAX_", "LIBTPU", "NNX", "NPROC", "NVIDIA", "TF_", "XLA")
"""How the environment's variables begin that Flax, JAX or XLA look at."""

FOUND, MISSED = "/jax/compilation_cache/cache_hits", "/jax/compilation_cache/cache_misses"
"""What JAX tells of a program that was, and was not, in its own cache."""

_folder: Path | None = None


def keep(folder: Path | None) -> None:
    """From now on steps are kept in a folder, which is made, and found there; None: no longer.

    For commands, once all is imported. Where functions of jaxseg are replaced while running, what is found may be of
    those that were there.
    """
    global _folder
    if folder is not None:
        folder.mkdir(exist_ok=True)
        sources()  # as they are now, not when the first step comes
    _folder = folder


def name(*function: object) -> str | None:
    """The `fingerprint` of what a step is made of, for `compiled`; None where steps are not kept, or not this one."""
    try:
        return _folder and fingerprint(*function)
    except Exception:  # whatever a strange object says: a run does not end for that
        return None


def compiled(jitted, name: str | None, given: object, options: dict[str, str]) -> Callable:
    """`jitted.lower(given).compile(options)`, or the same program from an earlier process.

    `jitted` is of `nnx.jit_partial`, `name` of all that it was made of. A program is kept under that, the shapes and
    types in `given`, the options, `surroundings` and `sources`, if these can be told and it is not in JAX's own cache.
    The file is a pickle: whoever can write to the folder can run anything here, as with JAX's.
    """
    path = _path(name, given, options)
    if path is None:
        return jitted.lower(given).compile(options)
    if (found := _load(path, jitted)) is not None:
        return found
    lowered = jitted.lower(given)
    with _events() as events:
        made = lowered.compile(options)
    # of what JAX found in its cache XLA writes a part only, which fails when it is run
    if MISSED in events and FOUND not in events:
        _save(path, made)
    return made


@contextlib.contextmanager
def _events() -> Iterator[set[str]]:
    """What JAX tells of in here."""
    seen = set()

    def note(event: str, **_) -> None:
        seen.add(event)

    jax.monitoring.register_event_listener(note)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_listener(note)


def _path(name: str | None, given: object, options: dict[str, str]) -> Path | None:
    flags = os.environ.get("XLA_FLAGS", "").lstrip()
    if _folder is None or name is None or sources() is None or flags[:1] not in "-":  # but the name of a file of flags
        return None
    leaves, structure = jax.tree.flatten(given)
    call = str(structure), [aval(x) for x in leaves], options
    return _folder / fingerprint(name, call, surroundings(), sources())


def surroundings() -> list[str]:
    """What a program depends on beside its function: Python, JAX's settings, environment, devices and processor."""
    devices = [f"{d.id} {d.platform} {d.device_kind} {d.client.platform_version}" for d in jax.devices()]
    settings = [f"{name} {value}" for name, value in sorted(jax.config.values.items())]
    variables = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith(VARIABLES)]
    libraries = [] if jax.default_backend() == "cpu" else _libraries()
    return [sys.version, *devices, *settings, *variables, *libraries, *_processor()]


@functools.cache
def _libraries() -> list[str]:
    """cuDNN and others, of which a GPU's program has numbers."""
    found = {f"{d.name} {d.version}" for d in metadata.distributions() if d.name}
    return sorted(name for name in found if name.startswith(("jax", "nvidia")))


@functools.cache
def _processor() -> list[str]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        kind = sorted({line for line in lines if line.startswith(("model", "flags", "CPU", "Features"))})
    except OSError:  # not Linux, and what there is says little: at least it is the same machine
        kind = [platform.processor(), str(uuid.getnode())]
    return [platform.machine(), str(cores), *kind]


@functools.cache
def sources() -> list[str] | None:
    """Every Python file of the packages whose functions a `fingerprint` takes by name: jaxseg's by what is in it, the
    others by size and time. None where one may have been changed since this process began, or cannot be read.
    """
    began = psutil.Process().create_time()  # on Linux up to a second too early
    roots = {name.partition(".")[0] for name in list(sys.modules)} - sys.stdlib_module_names
    found = []
    try:
        for root in sorted(filter(is_known, roots)):
            for folder in getattr(sys.modules[root], "__path__", ()):
                found += _files(folder, began, whole=root == "jaxseg")
    except (OSError, _Changed):
        return None
    return found


class _Changed(Exception):
    """A file that this process may have read before it was written."""


def _files(folder: str, began: float, *, whole: bool) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.is_dir():
                yield from _files(entry.path, began, whole=whole)
            elif entry.name.endswith(".py"):
                status = entry.stat()
                if status.st_mtime >= began:
                    raise _Changed(entry.path)
                content = hashlib.sha256(Path(entry.path).read_bytes()).hexdigest() if whole else status.st_mtime_ns
                yield f"{entry.path} {status.st_size} {content}"


def _load(path: Path, jitted) -> Callable | None:
    """`jitted` compiled, from a file; None where there is none, or one that is of no use."""
    try:
        program, trees, devices = pickle.loads(zlib.decompress(path.read_bytes()))
        used = [device for device in jax.devices() if device.id in devices]
        from flax.nnx.transforms.compilation import SimplePartialCompiled  # not told of in Flax's reference

        found = serialize_executable.deserialize_and_load(program, *trees, execution_devices=used)
        return SimplePartialCompiled(found, jitted)
    except OSError:
        return None
    except Exception:  # damaged, or of no use to this Flax: pickle and XLA raise what they come across
        with contextlib.suppress(OSError):
            path.unlink()
        return None


def _save(path: Path, made) -> None:
    """Whole or not at all. What JAX cannot put into a file, or the disk does not take, is compiled again next time."""
    with contextlib.suppress(Exception):  # what each of JAX, XLA, pickle and the disk says in that case
        program: jax.stages.Compiled = made.compiled
        devices = {d.id for sharding in jax.tree.leaves(program.input_shardings) for d in sharding.device_set}
        data, *trees = serialize_executable.serialize(program)
        files.replace(path, zlib.compress(pickle.dumps((data, trees, devices)), 1))
