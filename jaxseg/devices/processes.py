"""The processes of a run: how they find each other, what one of them does for all, and what they agree on.

In a single process every function does what its name says without JAX's distributed service.
"""

import contextlib
import math
import os
import pickle
import platform
import sys
from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils

from jaxseg.base import extra
from jaxseg.base.config import Machine
from jaxseg.base.doors import explain
from jaxseg.base.errors import EndedElsewhere, UserError
from jaxseg.base.terminal import console
from jaxseg.devices.launchers import Environment, launched, own_gpus
from jaxseg.devices.mesh import Devices

T = TypeVar("T")

AGREED = "_agreed"
"""Attribute of an exception that all processes raise."""
PATIENCE = 30
"""Seconds without a sign of life after which a process counts as dead."""


def start(machine: Machine, environment: Environment = os.environ) -> None:
    """Joins the other processes of a run, if there are any, and takes the devices that are this one's.

    - `machine`: settings; `coordinator`, `processes` and `process` name the run by hand
    - `environment`: variables that launchers set

    Must come before JAX uses a device. Other processes than the first print nothing on standard output. Raises
    UserError when the processes do not find each other.
    """
    start_alone(machine.devices, environment)
    this = launched(environment)
    if machine.coordinator is None and this is None:
        return
    if machine.coordinator is None and this.launcher == "Kubernetes":
        extra.require("k8s", f"{this.variable} is set: one run in several pods")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    named = (machine.coordinator, machine.processes, machine.process)
    try:
        jax.distributed.initialize(*named, local_device_ids=own_gpus(environment), heartbeat_timeout_seconds=PATIENCE)
    except (RuntimeError, ValueError) as error:
        what = f"the processes of this run do not find each other: {error}"
        if this is not None:
            what += f"\nFor runs of one process each, started by {this.launcher}, unset {this.variable}."
        raise UserError(what) from error
    console.quiet = not is_first()


def start_alone(devices: int | None, environment: Environment = os.environ) -> None:
    """Makes that many CPU devices, and leaves other processes of a launcher their GPUs; before JAX uses a device.

    - `devices`: number of CPU devices; None leaves JAX's
    - `environment`: variables that launchers set
    """
    if devices is not None and devices > 0:
        jax.config.update("jax_num_cpu_devices", devices)
    if mine := own_gpus(environment):
        for kind in ("cuda", "rocm"):
            jax.config.update(f"jax_{kind}_visible_devices", ",".join(map(str, mine)))


def devices_of(each: int | None) -> Devices:
    """Returns the devices that share every batch, `each` of every process.

    If not given all accelerators, or one CPU. Raises UserError when --devices asks for more than there are.
    """
    if each is not None and each < 1:
        raise UserError(f"--devices is {each}; expected 1 or more")
    wanted = each or (1 if jax.default_backend() == "cpu" else jax.local_device_count())
    if wanted > jax.local_device_count():
        kind = jax.local_devices()[0].device_kind
        raise UserError(f"--devices is {wanted}, but there are {jax.local_device_count()} ({kind})")
    by_process = {}
    for device in jax.devices():
        by_process.setdefault(device.process_index, []).append(device)
    return Devices.of([device for devices in by_process.values() for device in devices[:wanted]])


def tell_devices(devices: Devices, indent: str = "") -> None:
    """Prints how many devices share the work, if there are several."""
    if devices.count > 1:
        console.print(f"{indent}{devices}")


def is_first() -> bool:
    """True in the process that writes files and prints."""
    return jax.process_index() == 0


def share_of(count: int) -> range:
    """Returns the numbers, of 0 to `count` - 1, that are this process's share of some work.

    >>> share_of(3)
    range(0, 3)
    """
    return range(jax.process_index(), count, jax.process_count())


def once(do: Callable[[], T]) -> T:
    """Calls `do` in the first process alone, and returns its result in every process.

    An exception is raised there; the other processes raise EndedElsewhere with its exit status.
    """
    if jax.process_count() == 1:
        return do()
    result, status, error = _tried(do) if is_first() else (None, 0, None)
    content = pickle.dumps((result, status)) if is_first() else b""
    length = int(multihost_utils.broadcast_one_to_all(np.int64(len(content))))
    padded = np.frombuffer(content.ljust(length, b"\0"), np.uint8)
    received = np.asarray(multihost_utils.broadcast_one_to_all(padded)).tobytes()
    if not is_first():
        result, status = pickle.loads(received)
    _raise_in_all(error, status)
    return result


def at_first(do: Callable[[], T]) -> T | None:
    """Calls `do` as `once` does, and returns its result in the first process alone, None in others."""
    kept: list[T] = []
    once(lambda: kept.append(do()))
    return kept[0] if kept else None


def once_here(do: Callable[[], T]) -> T:
    """Calls `do` in the first process of each machine alone, and returns its result in all processes there.

    Exceptions end all processes, as those of `once` do.
    """
    machines = gathered(platform.node())
    leader = machines.index(platform.node())
    result, status, error = _tried(do) if leader == jax.process_index() else (None, 0, None)
    found = gathered((result, status))
    _raise_in_all(error, max(status for _, status in found))
    return found[leader][0]


def _tried(do: Callable[[], T]) -> tuple[T | None, int, Exception | None]:
    """Result of `do`, exit status, and the exception that it raised."""
    try:
        return do(), 0, None
    except Exception as error:
        known = explain(error)
        return None, known[1] if known else 1, error


def _raise_in_all(error: Exception | None, status: int) -> None:
    if error is not None:
        setattr(error, AGREED, True)
        raise error
    if status:
        raise EndedElsewhere(status)


def gathered(value: T) -> list[T]:
    """Returns the values that the processes give, in the order of their numbers; they are pickled.

    >>> gathered("here")
    ['here']
    """
    if jax.process_count() == 1:
        return [value]
    content = pickle.dumps(value)
    padded = np.frombuffer(content.ljust(largest(len(content)), b"\0"), np.uint8)
    return [pickle.loads(row.tobytes()) for row in multihost_utils.process_allgather(padded)]


def coordinator() -> str:
    """Returns the name or address of the first process's machine, by which the others found JAX's service."""
    from jax._src.distributed import global_state  # JAX says it nowhere else

    return global_state.coordinator_address.rpartition(":")[0].strip("[]")


def leave(status: int) -> None:
    """Ends this process if it fails as one of several: at Python's usual end JAX would wait for all of them."""
    if status and jax.distributed.is_initialized():
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(status)


def largest(value: int) -> int:
    """Returns the largest of the values that the processes give."""
    return value if jax.process_count() == 1 else int(np.max(multihost_utils.process_allgather(np.int64(value))))


def alike(devices: Devices, *modules: nnx.Pytree) -> None:
    """Gives models and optimizers the first process's state, on every device."""
    if jax.process_count() > 1:
        for module in modules:
            nnx.update(module, multihost_utils.broadcast_one_to_all(nnx.state(module)))
    devices.replicate(*modules)


class Absent:
    """Stands in other processes than the first for what writes files: every method does nothing."""

    epochs: tuple[dict, ...] = ()
    images_per_second = waited = math.nan

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None

    def __enter__(self) -> "Absent":
        return self

    def __exit__(self, *_: object) -> None: ...
