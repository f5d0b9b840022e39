"""Sums and training steps of several processes on this machine, to check the model with. Linux.

Each process has a CPU device and is tied to one core; they are joined by gloo over the loopback device.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg.base.config import Machine, Model
from jaxseg.devices import processes, rows
from jaxseg.devices.mesh import EVERYWHERE, Devices
from jaxseg.learn.compiled import compiler_options
from many_devices.traffic import compiled_step, compiled_sums

SIZES = [64, 1024, 16_384, 262_144, 2**20, 2**22]
"""Bytes of the sums that latency and bandwidth are fitted to. Gloo sums a single number in another, faster way."""
CHAIN = 8
"""Sums of one size that a program makes, one after the other."""
PATIENCE = 300
"""Seconds that the processes may take."""


def together(count: int, task: dict) -> dict:
    """Runs `task` in `count` processes; returns what the first one measured.

    - `task`: "widths" of the network, "batch" of each process, "side" of its images, "repeats"
    """
    cores = sorted(os.sched_getaffinity(0))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        place = f"localhost:{free.getsockname()[1]}"
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), str(root / "scripts"), *filter(None, [os.environ.get("PYTHONPATH")])])
    started = []
    for i in range(count):
        words = json.dumps(task | {"place": place, "count": count, "process": i, "core": cores[i % len(cores)]})
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", "many_devices.local", words],
                env=os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"},
                stdout=subprocess.PIPE,
                text=True,
            )
        )
    try:
        said = [process.communicate(timeout=PATIENCE)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    if failed := [i for i, process in enumerate(started) if process.returncode]:
        raise RuntimeError(f"of {count} processes these failed: {failed}")
    return json.loads(said[0].splitlines()[-1])


def measured(task: dict) -> dict:
    """Returns the measurements of a process.

    - "step": seconds of a training step
    - "sums": bytes of each all-reduce of its compiled program
    - "set": seconds of these sums alone, one after the other
    - "probes": seconds of one sum, by its bytes
    """
    os.sched_setaffinity(0, {task["core"]})
    if task["count"] > 1:
        processes.start(Machine(coordinator=task["place"], processes=task["count"], process=task["process"]))
    devices = Devices.of(jax.devices())
    step, batch = compiled_step(Model(widths=tuple(task["widths"])), devices, task["batch"], task["side"])
    program = step.lower(batch).compile(compiler_options())
    found = {"step": seconds(lambda: program(batch), task["repeats"])}
    if devices.count > 1:
        found["sums"] = compiled_sums(program.as_text())
        found["set"] = seconds(chain(devices, found["sums"]), task["repeats"])
        found["probes"] = {size: seconds(chain(devices, [size] * CHAIN), task["repeats"]) / CHAIN for size in SIZES}
    return found


def chain(devices: Devices, sizes: Sequence[int]) -> Callable:
    """A program that sums arrays of these bytes over devices, each after the one before."""
    data = devices.copy(np.ones(max(sizes) // 4 + 1, np.float32))

    def here(data: jax.Array) -> jax.Array:
        before = jnp.float32(0)
        for size in sizes:
            before = rows.total(data[: max(1, size // 4)] + before)[0] / 8
        return before

    program = jax.jit(devices.shared(here, (False,), EVERYWHERE)).lower(data).compile()
    return lambda: program(data)


def seconds(run: Callable, repeats: int) -> float:
    """Median time of a run, after two that are not timed."""
    times = []
    for _ in range(repeats + 2):
        began = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - began)
    return float(np.median(times[2:]))


def fit(probes: dict) -> tuple[float, float]:
    """Latency in seconds, and bytes per second, that fit measured sums with the least relative error.

    - `probes`: seconds by bytes

    >>> [round(x, 3) for x in fit({"0": 1.0, "10": 2.0, "30": 4.0})]
    [1.0, 10.0]
    """
    sizes, times = np.array([(float(size), value) for size, value in probes.items()]).T
    (latency, slope), *_ = np.linalg.lstsq(np.stack([1 / times, sizes / times], 1), np.ones(len(times)))
    return float(latency), float(1 / slope)


if __name__ == "__main__":
    print(json.dumps(measured(json.loads(sys.argv[1]))))
