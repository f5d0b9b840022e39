"""Compiled steps kept for the next process, which need not trace them again: a third of a start, where JAX's own cache
(see `compilation`) spares the compiler only, because it finds a program by its text.
"""

import contextlib
import functools
import os
import pickle
import platform
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
from jax.experimental import serialize_executable

from jaxseg.fingerprint import NotUnderstood, aval, fingerprint, is_known

VARIABLES = ("CU", "JAX", "LIBTPU", "NPROC", "NVIDIA", "TF_", "XLA")
"""How the environment's variables begin that JAX or XLA look at."""

FOUND, MISSED = "/jax/compilation_cache/cache_hits", "/jax/compilation_cache/cache_misses"
"""What JAX tells of a program that was, and was not, in its own cache."""

_folder: Path | None = None


def keep(folder: Path | None) -> None:
    """From now on steps are kept in a folder, which is made, and found there; None: no longer.

    For commands. Where functions of jaxseg are replaced while running, what is found may be of those that were there.
    """
    global _folder
    if folder is not None:
        folder.mkdir(exist_ok=True)
    _folder = folder


def compiled(jitted, function: object, given: object, options: dict[str, str]) -> Callable:
    """`jitted.lower(given).compile(options)`, or the same program from an earlier process.

    `jitted` is `nnx.jit_partial` of `function`, in which everything is that its program depends on. One is kept under
    the `fingerprint` of that, the shapes and types in `given`, the options, `surroundings` and `sources`, if these can
    all be told. It is a pickle: whoever can write to the folder can run anything here, as with JAX's.
    """
    path = _path(function, given, options)
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


def _path(function: object, given: object, options: dict[str, str]) -> Path | None:
    if _folder is None:
        return None
    leaves, structure = jax.tree.flatten(given)
    call = str(structure), [aval(x) for x in leaves], options
    try:
        return _folder / fingerprint(function, call, surroundings(), sources())
    except NotUnderstood:
        return None


def surroundings() -> list[str]:
    """What a program depends on beside its function: Python, JAX's settings, environment, devices and processor."""
    devices = [f"{d.id} {d.platform} {d.device_kind} {d.client.platform_version}" for d in jax.devices()]
    settings = [f"{name} {value}" for name, value in sorted(jax.config.values.items())]
    variables = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith(VARIABLES)]
    return [sys.version, *devices, *settings, *variables, *_processor()]


@functools.cache
def _processor() -> list[str]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        kind = sorted({line for line in lines if line.startswith(("model", "flags", "CPU", "Features"))})
    except OSError:  # not Linux, and what there is says little: at least it is the same machine
        kind = [platform.processor(), platform.node()]
    return [platform.machine(), str(cores), *kind]


@functools.cache
def sources() -> list[str]:
    """Path, size and time of all Python files of the packages whose functions a `fingerprint` takes by name."""
    roots = {name.partition(".")[0] for name in sys.modules} - sys.stdlib_module_names
    return [file for root in sorted(filter(is_known, roots)) for folder in _folders(root) for file in _files(folder)]


def _folders(package: str) -> list[str]:
    return list(getattr(sys.modules.get(package), "__path__", ()))


def _files(folder: str) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.is_dir():
                yield from _files(entry.path)
            elif entry.name.endswith(".py"):
                yield f"{entry.path} {entry.stat().st_size} {entry.stat().st_mtime_ns}"


def _load(path: Path, jitted) -> Callable | None:
    """`jitted` compiled, from a file; None where there is none, or one that is of no use."""
    try:
        program, trees, devices = pickle.loads(zlib.decompress(path.read_bytes()))
        used = [device for device in jax.devices() if device.id in devices]
        from flax.nnx.transforms.compilation import SimplePartialCompiled  # not told of in Flax's reference

        found = serialize_executable.deserialize_and_load(program, *trees, execution_devices=used)
        return SimplePartialCompiled(found, jitted)
    except FileNotFoundError:
        return None
    except Exception:  # damaged, or of no use to this Flax: pickle and XLA raise what they come across
        with contextlib.suppress(OSError):
            path.unlink()
        return None


def _save(path: Path, made) -> None:
    """Whole or not at all. What JAX cannot put into a file, or the disk does not take, is compiled again next time."""
    try:
        program: jax.stages.Compiled = made.compiled
        devices = {d.id for sharding in jax.tree.leaves(program.input_shardings) for d in sharding.device_set}
        data, *trees = serialize_executable.serialize(program)
        data = zlib.compress(pickle.dumps((data, trees, devices)), 1)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(data)
        os.replace(file.name, path)
    except Exception:  # what each of JAX, XLA, pickle and the disk says in that case
        return
