"""A run of jaxseg's own assembly in float64 on some devices, in one process or in several."""

import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxseg.base import cli
from jaxseg.base.terminal import console
from jaxseg.data.feed.pipeline import to_device
from jaxseg.devices.mesh import Devices
from jaxseg.training import assembly, dataset, steps

Arrays = dict[str, np.ndarray]


def train(words: Sequence[str], devices: Devices, most: int) -> dict[str, Arrays]:
    """Takes the first `most` steps of a run, and evaluates it.

    words: command line of the run.
    devices: what it runs on.
    Returns losses and gradient norms, weights and statistics by their paths, and scores of the validation.
    """
    with jax.enable_x64(True), console.capture():
        config = cli.parse([*words, "--workers", "0"])
        data = dataset.open_data(config)
        a = assembly.assemble(config, data, load=config.run, dtype=jnp.float64, devices=devices)
        devices.replicate(a.net, a.optimizer)
        batches = itertools.chain.from_iterable(a.training.epoch(epoch) for epoch in range(a.plan.epochs))
        records = [jax.device_get(a.train_step(batch)) for batch in itertools.islice(put(batches, devices), most)]
        scores = steps.evaluate(a.eval_step, a.validation, 0)
        state = nnx.to_flat_state(nnx.state(a.net))
        return {
            "losses": {name: np.array([r[name] for r in records]) for name in ("loss", "grad_norm")},
            "confusion": {"training": np.stack([r["confusion"] for r in records])},
            "weights": {".".join(map(str, path)): np.asarray(x[...].addressable_data(0)) for path, x in state},
            "validation": {name: np.nan_to_num(np.asarray(scores[name], float), nan=-1) for name in SCORES},
        }


SCORES = ("loss", "iou", "accuracy", "predicted")


def put(batches: Iterator[dict], devices: Devices) -> Iterator[dict]:
    """Puts batches on the devices, as `fit` does."""
    return to_device(batches, devices=devices)


# Several processes ----------------------------------------------------------------------------------------------------


def train_in_processes(words: Sequence[str], processes: int, each: int, most: int) -> dict[str, Arrays]:
    """Does `train` in new processes on this machine, with `each` CPU devices; returns what the first one found.

    Raises RuntimeError with what they printed if one fails.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    with tempfile.TemporaryDirectory() as folder:
        started = [
            subprocess.Popen(
                [sys.executable, "-m", __name__, json.dumps([list(words), port, processes, i, each, most, folder])],
                env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )
            for i in range(processes)
        ]  # fmt: skip
        said = [process.communicate(timeout=600)[0] for process in started]
        if any(process.returncode for process in started):
            raise RuntimeError("\n".join(said))
        with np.load(Path(folder) / "found.npz") as found:
            flat = dict(found)
    names = dict.fromkeys(name.partition("/")[0] for name in flat)
    return {name: {k.partition("/")[2]: v for k, v in flat.items() if k.partition("/")[0] == name} for name in names}


def _in_process(words: list[str], port: int, processes: int, number: int, each: int, most: int, folder: str) -> None:
    """Is one of the processes. The first writes what it found."""
    from jaxseg.base.config import Machine
    from jaxseg.devices.processes import devices_of, is_first, start

    start(Machine(each, f"localhost:{port}", processes, number) if processes > 1 else Machine(each))
    found = train(words, devices_of(each), most)
    if is_first():
        flat = {f"{group}/{name}": array for group, arrays in found.items() for name, array in arrays.items()}
        np.savez(Path(folder) / "found.npz", **flat)


if __name__ == "__main__":
    _in_process(*json.loads(sys.argv[1]))
