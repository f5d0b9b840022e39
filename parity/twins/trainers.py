"""Both sides of training, a step at a time: jaxseg's compiled step and the reference's, from any weights."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from jaxseg.base.config import Optimization
from jaxseg.learn import compiled, losses, optimizers, schedules, step
from jaxseg.nn import encoder_unet, torch_weights, unet
from jaxseg.nn.network import Network
from parity.reference import training as reference_training
from parity.twins import pairs


class Ours:
    """jaxseg's side: the trainer's step for a recipe, compiled once, which can start from any weights.

    Functions of jaxseg are looked up when this is made, so an injected mistake takes effect.
    """

    def __init__(self, settings: Optimization, net: Network, steps_per_epoch: int):
        named = {name: getattr(schedules, make.__name__) for name, make in schedules.SCHEDULES.items()}
        with mock.patch.dict(schedules.SCHEDULES, named):
            schedule = schedules.schedule_from(settings, steps_per_epoch)
        tx = optimizers.optimizer_from(settings, schedule, steps_per_epoch)
        self.net, self.optimizer = net, nnx.Optimizer(net, tx, wrt=nnx.Param)
        self._fresh = jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(self.optimizer)))
        how = {"schedule": schedule, "loss": losses.loss_from(settings), "accumulate": settings.accumulate}
        self._step = self._frozen = compiled.compile_train_step(net, self.optimizer, **how)
        self.steps, self._frozen_steps = 0, settings.freeze_encoder * steps_per_epoch
        if self._frozen_steps:
            view = encoder_unet.with_frozen_encoder(net)
            self._frozen = compiled.compile_train_step(view, self.optimizer, **how)
        self._logits = nnx.jit(lambda net, image: net(step.normalize(image)), graph=False)

    def start(self, weights: dict[str, np.ndarray]) -> None:
        """Takes these weights and statistics, by PyTorch's names, and a fresh optimizer."""
        torch_weights.from_torch(self.net, weights)
        nnx.update(self.optimizer, jax.tree.map(jnp.array, self._fresh))
        self.steps = 0

    def step(self, batch: pairs.Batch) -> tuple[float, float]:
        """Takes one update; returns its loss and learning rate."""
        step = self._frozen if self.steps < self._frozen_steps else self._step
        self.steps += 1
        record = jax.device_get(step(jax.tree.map(jnp.asarray, batch)))
        return float(record["loss"]), float(record["learning_rate"])

    def weights(self) -> dict[str, np.ndarray]:
        """Parameters and running statistics, by PyTorch's names."""
        return torch_weights.to_torch(self.net)

    def momentum(self) -> dict[str, np.ndarray]:
        """Buffers of `optax.trace`, by PyTorch's names of their parameters."""
        found = {}
        for path, variable in nnx.to_flat_state(nnx.state(self.optimizer, nnx.optimizer.OptState)):
            if "trace" in path:
                name, axes = torch_weights.torch_name(path[path.index("trace") + 1 :])
                found[name] = np.array(variable[...]).transpose(axes)
        return found

    def logits(self, batch: pairs.Batch) -> np.ndarray:
        """Logits [b k h w] of the valid samples in evaluation, by the averaged weights if there are any."""
        view = unet.evaluation(optimizers.averaged(self.net, self.optimizer))
        return pairs.nchw(self._logits(view, batch["image"]))[batch["valid"]]


class Theirs:
    """The reference's side; computes in the dtype of its weights and on their device."""

    def __init__(self, settings: Optimization, model: torch.nn.Module, steps_per_epoch: int):
        self.model, self._settings = model, settings
        self._loss = reference_training.LOSSES[settings.loss](settings)
        self._rates = reference_training.learning_rates(settings, steps_per_epoch)
        self._frozen_steps = settings.freeze_encoder * steps_per_epoch
        self._like = next(model.parameters())
        self.layout = torch.contiguous_format
        self.start(model.state_dict())

    def start(self, weights: dict[str, np.ndarray | torch.Tensor]) -> None:
        """Takes these weights and statistics, and a fresh optimizer."""
        self.model.load_state_dict({name: torch.as_tensor(array) for name, array in weights.items()}, strict=False)
        self.optimizer = reference_training.OPTIMIZERS[self._settings.optimizer](
            reference_training.groups(self.model, self._settings), self._settings
        )
        self.steps, ema = 0, self._settings.ema
        self.averaged = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(ema)) if ema else self.model

    def use(self, layout: torch.memory_format) -> None:
        """Keeps weights and images in this memory layout from now on."""
        self.layout = layout
        self.model.to(memory_format=layout)

    def step(self, batch: pairs.Batch) -> tuple[float, float]:
        """Takes one update; returns its loss and learning rate."""
        rate = self._rates[self.steps]
        if self._frozen_steps:
            self.model.freeze(self.steps < self._frozen_steps)
        self.steps += 1
        reference_training.set_learning_rate(self.optimizer, rate)
        images, masks = self._tensors(batch)
        parts, clip_norm = self._settings.accumulate, self._settings.clip_norm
        part = len(batch["mask"]) // parts if parts > 1 else None
        loss = reference_training.training_step(
            self.model, self.optimizer, images, masks, self._loss, clip_norm=clip_norm, part=part
        )
        if self.averaged is not self.model:
            self.averaged.update_parameters(self.model)
        return float(loss), rate

    def weights(self) -> dict[str, np.ndarray]:
        """Parameters and running statistics."""
        return pairs.arrays(self.model.state_dict())

    def momentum(self) -> dict[str, np.ndarray]:
        """Momentum buffers of the optimizer, by the names of their parameters."""
        state = self.optimizer.state
        return pairs.arrays({name: state[p]["momentum_buffer"] for name, p in self.model.named_parameters()})

    @torch.no_grad()
    def logits(self, batch: pairs.Batch) -> np.ndarray:
        """Logits [b k h w] of the valid samples in evaluation, by the averaged weights if there are any."""
        self.averaged.eval()
        found = pairs.array(self.averaged(self._tensors(batch)[0]))
        self.averaged.train()
        return found

    def _tensors(self, batch: pairs.Batch) -> tuple[torch.Tensor, torch.Tensor]:
        images, masks = pairs.for_torch(batch, str(self._like.dtype).removeprefix("torch."))
        return images.to(self._like.device, memory_format=self.layout), masks.to(self._like.device)


def learned(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Parameters alone, without the running statistics."""
    return {name: array for name, array in weights.items() if "running" not in name}


def running(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Running statistics alone."""
    return {name: array for name, array in weights.items() if "running" in name}
