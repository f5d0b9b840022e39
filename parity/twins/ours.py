"""jaxseg's side of a race, the counterpart of `parity.reference.training.Reference`."""

import jax
import numpy as np
from flax import nnx

from jaxseg.base.config import Config
from jaxseg.data.feed.pipeline import Batch
from jaxseg.learn import losses, optimizers, schedules
from jaxseg.learn.compiled import compile_eval_step, compile_train_step
from jaxseg.nn import unet
from jaxseg.nn.torch_weights import to_torch

CLASSES = 2  # as in the reference


class Ours:
    """The trainer's step, compiled once, which can start from the weights of any seed.

    Each method returns when its result is ready.
    """

    def __init__(self, config: Config, steps_per_epoch: int):
        o = config.optimization
        self._config, schedule, loss = config, schedules.schedule_from(o, steps_per_epoch), losses.loss_from(o)
        self.net = self._draw(config.run.seed)
        self.optimizer = nnx.Optimizer(self.net, optimizers.optimizer_from(o, schedule), wrt=nnx.Param)
        self._fresh = jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(self.optimizer)))
        self._step = compile_train_step(self.net, self.optimizer, schedule=schedule, loss=loss)
        self._evaluate = compile_eval_step(self.net, loss=loss)

    def _draw(self, seed: int) -> unet.UNet:
        return unet.unet_from(self._config.model, in_channels=3, classes=CLASSES, seed=seed)

    def start(self, seed: int) -> None:
        """Takes the weights that the trainer draws from `seed`, and a fresh optimizer."""
        nnx.update(self.net, nnx.state(self._draw(seed)))
        nnx.update(self.optimizer, jax.tree.map(jax.numpy.array, self._fresh))
        self.rates: list[float] = []

    def weights(self) -> dict[str, np.ndarray]:
        """Copies of parameters and running statistics, by PyTorch's names."""
        return to_torch(self.net)

    def step(self, batch: Batch) -> float:
        """Takes one update; returns the loss before it."""
        result = jax.device_get(self._step(jax.device_put(batch)))
        self.rates.append(float(result["learning_rate"]))
        return float(result["loss"])

    def evaluate(self, batch: Batch) -> dict:
        """Loss, confusion matrix [k k] and predictions [b h w] of the valid samples, with running statistics."""
        result = jax.device_get(self._evaluate(jax.device_put(batch)))
        return result | {"predictions": result["predictions"][batch["valid"]]}
