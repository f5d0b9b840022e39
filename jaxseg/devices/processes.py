"""The processes of a run: found from a launcher, what one of them does for all, and what they agree on.

In a single process every function does what its name says without JAX's distributed service.
"""

import contextlib
import math
import os
import pickle
import sys
from collections.abc import Callable, Mapping
from typing import TypeVar

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils

from jaxseg.base.config import Machine
from jaxseg.base.doors import explain
from jaxseg.base.errors import EndedElsewhere, UserError
from jaxseg.base.terminal import console
from jaxseg.devices.mesh import Devices

T = TypeVar("T")

AGREED = "_agreed"
"""Attribute of an exception that all processes raise."""
PATIENCE = 30
"""Seconds without a sign of life after which a process counts as dead."""


def start(machine: Machine, environment: Mapping[str, str] = os.environ) -> None:
    """Joins the other processes of a run, if there are any, and makes the CPU devices that --devices asks for.

    - `machine`: settings; `coordinator`, `processes` and `process` name the run by hand
    - `environment`: variables that launchers set

    Must come before JAX uses a device. Other processes than the first print nothing on standard output. Raises
    UserError when the processes do not find each other.
    """
    make(machine.devices)
    if machine.coordinator is None and not launched(environment):
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    named = (machine.coordinator, machine.processes, machine.process)
    try:
        jax.distributed.initialize(*named, heartbeat_timeout_seconds=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the processes of this run do not find each other: {error}") from error
    console.quiet = not is_first()


def make(devices: int | None) -> None:
    """Makes that many CPU devices, before JAX uses one; None leaves JAX's number."""
    if devices is not None and devices > 0:
        jax.config.update("jax_num_cpu_devices", devices)


def launched(environment: Mapping[str, str]) -> str | None:
    """Returns the launcher that started several processes, or None.

    >>> launched({"SLURM_STEP_ID": "0", "SLURM_NTASKS": "4"})
    'Slurm'
    """
    launchers = [("Open MPI", "OMPI_COMM_WORLD_SIZE"), ("Kubernetes", "JOBSET_NAME")]
    if "SLURM_STEP_ID" in environment:  # a batch script, which srun did not start, has the other variables too
        launchers.append(("Slurm", "SLURM_NTASKS"))
    sizes = {name: environment.get(size, "") for name, size in launchers}
    return next((name for name, size in sizes.items() if size and size != "1"), None)


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


def is_first() -> bool:
    """True in the process that writes files and prints."""
    return jax.process_index() == 0


def once(do: Callable[[], T]) -> T:
    """Calls `do` in the first process alone, and returns its result in every process.

    An exception is raised there; the other processes raise EndedElsewhere with its exit status.
    """
    if jax.process_count() == 1:
        return do()
    result, status, error = None, 0, None
    if is_first():
        try:
            result = do()
        except Exception as raised:
            known, error = explain(raised), raised
            status = known[1] if known else 1
    content = pickle.dumps((result, status)) if is_first() else b""
    length = int(multihost_utils.broadcast_one_to_all(np.int64(len(content))))
    padded = np.frombuffer(content.ljust(length, b"\0"), np.uint8)
    received = np.asarray(multihost_utils.broadcast_one_to_all(padded)).tobytes()
    if error is not None:
        setattr(error, AGREED, True)
        raise error
    if is_first():
        return result
    result, status = pickle.loads(received)
    if status:
        raise EndedElsewhere(status)
    return result


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
