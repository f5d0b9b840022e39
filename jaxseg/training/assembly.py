"""Puts together what a run trains with: settings and data become network, optimizer, plan, steps and pipelines.

`fit` and `python -m parity` both build a run here, so what parity certifies is what a user trains.
"""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxseg.base.config import Config, Run
from jaxseg.base.terminal import console
from jaxseg.data.feed.pipeline import Batch, Pipeline
from jaxseg.devices.mesh import Devices
from jaxseg.inference.predictor import normalization
from jaxseg.learn import augment, class_weights, losses, optimizers
from jaxseg.learn.augment import Augment
from jaxseg.learn.compiled import compile_eval_step, compile_train_step
from jaxseg.learn.plan import Plan, make_plan
from jaxseg.learn.step import unit
from jaxseg.nn import unet
from jaxseg.nn.encoder_unet import with_frozen_encoder
from jaxseg.nn.network import Network
from jaxseg.runs.weights import start
from jaxseg.training.dataset import Dataset

Step = Callable[[Batch], dict[str, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Assembly:
    """Everything a run trains with.

    - `training`, `validation`: pipelines of batches
    - `plan`: length in epochs and steps, and learning rates
    - `net`, `optimizer`: updated in place by `train_step`; to resume, load a checkpoint into them
    - `augment`: augmentation inside `train_step`, or None
    - `train_step`: a batch -> its record; compiled at the first batch
    - `frozen_step`: likewise, with the encoder frozen, for the first `frozen_epochs`
    - `eval_step`: likewise, for evaluation; with the averaged weights if the run averages them
    """

    training: Pipeline
    validation: Pipeline
    plan: Plan
    net: Network
    optimizer: nnx.Optimizer
    augment: Augment | None
    train_step: Step
    frozen_step: Step
    frozen_epochs: int
    eval_step: Step

    def step(self, epoch: int) -> Step:
        """The training step of an epoch."""
        return self.frozen_step if epoch < self.frozen_epochs else self.train_step


def assemble(
    config: Config,
    data: Dataset,
    *,
    load: Run | None = None,
    dtype: DTypeLike = jnp.float32,
    devices: Devices | None = None,
) -> Assembly:
    """Builds what `config` describes. Prints class weights.

    - `config`: checked settings, see `jaxseg.base.rules.check`
    - `data`: its data, from `open_data`
    - `load`: settings with the weights to start from, such as `load`; None for drawn weights
    - `dtype`: of parameters, images and the computation in full precision; float64 needs JAX's x64
    - `devices`: devices that share each batch; one if not given

    Raises ArgumentError for a schedule that does not fit the number of steps, and UserError for weights that cannot be
    loaded.
    """
    o, seed = config.optimization, config.run.seed
    training, validation = data.pipelines(seed, config.data.workers, devices)
    plan = make_plan(o, len(training))
    kinds = {"in_channels": data.reading.channels, "classes": len(data.classes), "dtype": dtype}
    net = unet.unet_from(config.model, seed=seed, **kinds)
    if load is not None:
        start(net, load, data.reading.order)
    optimizer = nnx.Optimizer(net, optimizers.optimizer_from(o, plan.schedule, plan.epoch_steps), wrt=nnx.Param)
    change = None if config.run.overfit else augment.augment_from(config.augmentation, partial(unit, dtype=dtype))
    same = {
        "loss": losses.loss_from(o, weights_of_classes(config, data)),
        "normalize": normalization(data.reading, dtype),
        "devices": training.devices,
    }
    how = {"schedule": plan.schedule, "augment": change, "accumulate": o.accumulate, "seed": seed, **same}
    train_step = frozen_step = compile_train_step(net, optimizer, **how)
    if o.freeze_encoder:
        frozen_step = compile_train_step(with_frozen_encoder(net), optimizer, **how)
    eval_step = compile_eval_step(optimizers.averaged(net, optimizer), **same)
    steps = train_step, frozen_step, o.freeze_encoder, eval_step
    return Assembly(training, validation, plan, net, optimizer, change, *steps)


def weights_of_classes(config: Config, data: Dataset) -> tuple[float, ...] | None:
    """Returns the weight of each class in the loss, and prints them; None without --class-weights."""
    if not (rule := config.optimization.class_weights):
        return None
    weights = class_weights.weights(rule, data.class_pixels, data.found.training.image_pixels)
    shown = ", ".join(f"{name} {weight:.3g}" for name, weight in zip(data.classes, weights, strict=True))
    console.print(f"loss  class weights: {shown}")
    return weights
