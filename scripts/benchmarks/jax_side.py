"""jaxseg's contenders: a training step, an epoch, a reader."""

import itertools
import time
from collections.abc import Iterable
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from benchmarks.task import LEARNING_RATE, Source, Task
from benchmarks.workers import Contender, peak_mib
from jaxseg.base.config import Model, Optimization
from jaxseg.data.feed.pipeline import Pipeline, to_device
from jaxseg.devices import processes
from jaxseg.devices.mesh import Devices
from jaxseg.learn import losses, optimizers, schedules
from jaxseg.learn.compiled import compile_train_step, compiler_options
from jaxseg.nn import unet
from jaxseg.nn.torch_weights import to_torch
from jaxseg.training.steps import Signals, run_steps


def training(task: Task, weights: Path | None = None, devices: Devices | None = None):
    """The trainer's compiled step: Adam at a constant rate, cross-entropy.

    - `weights`: file to write the first weights to
    - `devices`: share the batch; one if not given
    """
    network = {"encoder": task.encoder} if task.encoder else {"widths": task.widths}
    settings = Model(**network, precision=task.precision)
    net = unet.unet_from(settings, in_channels=3, classes=2, seed=0)
    if weights is not None:
        np.savez(weights, **to_torch(net))
    o = Optimization(optimizer="adam", learning_rate=LEARNING_RATE, schedule="constant")
    schedule = schedules.constant(o.learning_rate)
    optimizer = nnx.Optimizer(net, optimizers.optimizer_from(o, schedule), wrt=nnx.Param)
    if devices is not None:
        devices.replicate(net, optimizer)
    return compile_train_step(net, optimizer, schedule=schedule, loss=losses.loss_from(o), devices=devices)


def batch_on(devices: Devices, task: Task) -> dict[str, jax.Array]:
    """The task's batch, its rows divided over the devices and filled up."""
    batch, places = task.made_up_batch(), devices.rows(task.batch)
    if devices.count == 1:
        return devices.put(batch)
    rows = {name: x[places] for name, x in batch.items()}
    return devices.put(rows | {"valid": places >= 0, "position": places.astype(np.int32)})


def epochs_of(source: Source, batch: int, cache: str = "none") -> Iterable[Iterable]:
    """The pipeline's epochs, shuffled, of batches on the device."""
    pipeline = Pipeline(source.pairs, batch_size=batch, shuffle=True, workers=source.workers, cache=cache)
    return (to_device(pipeline.epoch(number)) for number in itertools.count())


def step(task: Task, weights: Path | None = None, devices: int = 1) -> Contender:
    """One batch over and over, on the devices from the start. Ready after the first step.

    - `weights`: file to write the first weights to
    - `devices`: share the batch; a CPU is made to have as many

    Facts include FLOP and bytes of the compiled step on each device, as XLA counts them.
    """
    if devices > 1:
        processes.start_alone(devices)
    shared, before = processes.devices_of(devices), peak_mib()
    device = shared.all[0]
    train_step, batch = training(task, weights, shared), batch_on(shared, task)
    began = time.perf_counter()
    program = train_step.lower(batch).compile(compiler_options())

    def run(times: int) -> dict:
        for _ in range(times):
            result = program(batch)
        return jax.block_until_ready(result)

    def finish() -> dict:
        """Peak MiB: a GPU's by its allocator, compilation included; a CPU's resident above the import."""
        statistics = device.memory_stats() or {}
        found = statistics.get("peak_bytes_in_use")
        return {"peak_mib": peak_mib() - before if found is None else found / 2**20}

    loss = float(run(1)["loss"])
    facts = {"first_seconds": time.perf_counter() - began, "first_loss": loss}
    work = program.cost_analysis() or {}
    facts |= {"device": device.device_kind, "flop": work.get("flops"), "bytes": work.get("bytes accessed")}
    return Contender(lambda times: run(times) and None, task.batch, facts, finish)


def epoch(task: Task, steps: int, source: Source | None = None) -> Contender:
    """Whole epochs of the trainer's loop. Without a `source`, as many steps on one batch."""
    train_step, batch = training(task), jax.device_put(task.made_up_batch())
    jax.block_until_ready(train_step(batch))
    epochs = epochs_of(source, task.batch) if source else itertools.repeat([batch] * steps)

    def run(times: int) -> dict:
        """Returns "waited", seconds in which no step ran because its batch was missing."""
        records = [run_steps(train_step, next(epochs), 0, 10, Signals()) for _ in range(times)]
        return {"waited": sum(record["waited"] for epoch in records for some in epoch for record in some)}

    return Contender(run, steps * task.batch)


def reader(source: Source, batch: int, cache: str) -> Contender:
    """The pipeline, from files or caches to batches on the device. The epoch that fills a cache is not timed."""
    epochs = epochs_of(source, batch, cache)

    def run(times: int) -> None:
        for found in itertools.chain.from_iterable(itertools.islice(epochs, times)):
            jax.block_until_ready(found)

    run(1)
    return Contender(run, source.tiles)
