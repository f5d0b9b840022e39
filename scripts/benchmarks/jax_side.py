"""jaxseg's contenders, for `workers.Worker`: a training step and an epoch."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from benchmarks.sources import Source
from benchmarks.task import Task
from benchmarks.workers import peak_mib, timed
from jaxseg.base.config import Model, Optimization
from jaxseg.data.feed.pipeline import to_device
from jaxseg.learn import losses, optimizers, schedules
from jaxseg.learn.compiled import compile_train_step
from jaxseg.nn import unet
from jaxseg.nn.torch_weights import to_torch
from jaxseg.training.steps import Signals, run_steps


def network(task: Task) -> unet.UNet:
    """The trainer's network."""
    settings = Model(widths=task.widths, conv_bias=task.conv_bias, precision=task.precision)
    return unet.unet_from(settings, in_channels=3, classes=2, seed=0)


def training(net: unet.UNet, task: Task):
    """The trainer's compiled step: Adam at a constant rate, cross-entropy, no augmentation."""
    o = Optimization(optimizer="adam", learning_rate=task.learning_rate, schedule="constant")
    schedule = schedules.constant(o.learning_rate)
    optimizer = nnx.Optimizer(net, optimizers.optimizer_from(o, schedule), wrt=nnx.Param)
    return compile_train_step(net, optimizer, schedule=schedule, loss=losses.loss_from(o))


class Step:
    """One batch over and over, on the device from the start.

    Ready once the first step is done. `weights`: file to which to write the initial weights, for the others.
    """

    def __init__(self, task: Task, weights: Path | None = None):
        devices, before = jax.devices(), peak_mib()
        net = network(task)
        if weights is not None:
            np.savez(weights, **to_torch(net))
        batch = jax.device_put(task.made_up_batch())
        self._step = partial(training(net, task), batch)
        self._before, self._images, self._device = before, task.batch, devices[0]
        first = timed(self._once, 1)
        self.facts = {"first_seconds": first["seconds"], "first_loss": float(self._result["loss"])}

    def _once(self) -> None:
        self._result = jax.block_until_ready(self._step())

    def turn(self, times: int) -> dict:
        """Waits for the device at the end only."""

        def work():
            for _ in range(times):
                self._result = self._step()
            jax.block_until_ready(self._result)

        return timed(work, times * self._images)

    def finish(self) -> dict:
        """Peak memory in MiB: a GPU's by its allocator, compilation included; a CPU's resident above the import."""
        statistics = self._device.memory_stats() or {}
        if "peak_bytes_in_use" in statistics:
            return {"peak_mib": statistics["peak_bytes_in_use"] / 2**20}
        peak = peak_mib()
        return {"peak_mib": peak and peak - self._before}


class Epoch:
    """Whole epochs of the trainer's loop. Without a `source` as many steps on one batch: the step's own rate."""

    def __init__(self, task: Task, steps: int, source: Source | None = None, cache: str = "none"):
        self._step = training(network(task), task)
        self._steps, self._images, self._epoch = steps, task.batch, 0
        self._pipeline = source and source.pipeline(task.batch, cache)
        self._batch = jax.device_put(task.made_up_batch())
        jax.block_until_ready(self._step(self._batch))
        self.facts = {"steps": steps}

    def turn(self, times: int) -> dict:
        """Epochs; "waited": seconds in which the step had nothing to do because its batch was not there."""
        waited = 0.0

        def work():
            nonlocal waited
            for _ in range(times):
                for records in run_steps(self._step, self._batches(), 0, 10, Signals()):
                    waited += sum(record["waited"] for record in records)
                self._epoch += 1

        return timed(work, times * self._steps * self._images) | {"waited": waited}

    def _batches(self) -> Iterable:
        if self._pipeline is None:
            return (self._batch for _ in range(self._steps))
        return to_device(self._pipeline.epoch(self._epoch))
