"""The steps of `jaxseg.learn.step`, compiled."""

import os
from collections.abc import Callable
from functools import partial

import jax
from flax import nnx
from jaxtyping import Array, Float, UInt8

from jaxseg.learn.augment import Batch
from jaxseg.learn.step import Images, eval_step, predict_step, probability_step, train_step
from jaxseg.nn.network import Network
from jaxseg.nn.unet import evaluation

KEEP_BARRIERS = {"xla_disable_hlo_passes": "cse_barrier_expander"}
"""Options for XLA on a CPU, which drops every `jax.lax.optimization_barrier` by default.

Barriers run micro-batches one after the other, keep the bands of `jaxseg.nn.convolution` in memory, and keep what
`jax.checkpoint` recomputes from being shared with the forward pass."""

CUDA_GRAPHS = {
    "xla_gpu_enable_command_buffer": "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,CONVOLUTION",
    "xla_gpu_graph_min_graph_size": "1",
}
"""Options for XLA on a GPU: launch all kernels of a step together. By default each convolution is launched alone, and
so are the kernels between two of them if they are few."""


def compiler_options() -> dict[str, str]:
    """XLA options for a step on JAX's default backend, without those that XLA_FLAGS already sets.

    >>> compiler_options() if jax.default_backend() == "cpu" else KEEP_BARRIERS
    {'xla_disable_hlo_passes': 'cse_barrier_expander'}
    """
    given = {flag.partition("=")[0].lstrip("-") for flag in os.environ.get("XLA_FLAGS", "").split()}
    options = {"cpu": KEEP_BARRIERS, "gpu": CUDA_GRAPHS}.get(jax.default_backend(), {})
    return {name: value for name, value in options.items() if name not in given}


def compile_train_step(model: Network, optimizer: nnx.Optimizer, **how) -> Callable[[Batch], dict[str, jax.Array]]:
    """Compiles `train_step` for this model and optimizer, whose buffers it reuses.

    `how` are the keyword arguments of `train_step`. The result maps a batch to the step's record.

    >>> from jaxseg.nn.unet import UNet
    >>> import numpy as np, optax
    >>> net = UNet((2, 2), rngs=nnx.Rngs(0))
    >>> optimizer = nnx.Optimizer(net, optax.sgd(0.1), wrt=nnx.Param)
    >>> step = compile_train_step(net, optimizer, schedule=optax.constant_schedule(0.1))
    >>> image, mask = np.zeros((1, 4, 4, 3), np.uint8), np.zeros((1, 4, 4), np.uint8)
    >>> traced = step.trace({"image": image, "mask": mask, "valid": np.array([True])})  # step(batch) runs it
    """
    return _Compiled(partial(train_step, **how), model, optimizer, donate_argnums=0)


def compile_eval_step(model: Network, **how) -> Callable[[Batch], dict[str, jax.Array]]:
    """Compiles `eval_step` on a view of `model` that shares its weights; `how` are its keyword arguments.

    For a run that averages its weights pass `optimizers.averaged(model, optimizer)`.

    >>> from jaxseg.nn.unet import UNet
    >>> import numpy as np
    >>> step = compile_eval_step(UNet((2, 2), rngs=nnx.Rngs(0)))
    >>> image, mask = np.zeros((1, 4, 4, 3), np.uint8), np.zeros((1, 4, 4), np.uint8)
    >>> traced = step.trace({"image": image, "mask": mask, "valid": np.array([True])})  # step(batch) runs it
    """
    return _Compiled(partial(eval_step, **how), evaluation(model))


def compile_predict_step(model: Network, **how) -> Callable[[Images], UInt8[Array, "b h w"]]:
    """Compiles `predict_step`, once for each shape of images; `how` are its keyword arguments.

    >>> from jaxseg.nn.unet import UNet
    >>> import numpy as np
    >>> predict = compile_predict_step(UNet((2, 2), rngs=nnx.Rngs(0)))
    >>> predict(np.zeros((1, 2, 2, 3), np.uint8)).shape
    (1, 2, 2)
    """
    return _Compiled(partial(predict_step, **how), evaluation(model))


def compile_probability_step(model: Network, **how) -> Callable[[Images], Float[Array, "b h w k"]]:
    """Compiles `probability_step`, once for each shape of images; `how` are its keyword arguments.

    >>> from jaxseg.nn.unet import UNet
    >>> import numpy as np
    >>> probabilities = compile_probability_step(UNet((2, 2), rngs=nnx.Rngs(0)))
    >>> probabilities(np.zeros((1, 2, 2, 3), np.uint8)).shape
    (1, 2, 2, 2)
    """
    return _Compiled(partial(probability_step, **how), evaluation(model))


class _Compiled:
    """`nnx.jit_partial(step, *held)`, compiled with `compiler_options()` once for each shape of its argument."""

    def __init__(self, step: Callable, *held: nnx.Pytree, **options):
        self._jitted, self._programs = nnx.jit_partial(step, *held, graph=False, **options), {}

    def __call__(self, batch: Batch | Images):
        leaves, structure = jax.tree.flatten(batch)
        shapes = (structure, *((x.shape, x.dtype) for x in leaves))
        if shapes not in self._programs:
            self._programs[shapes] = self._jitted.lower(batch).compile(compiler_options())
        return self._programs[shapes](batch)

    def trace(self, batch):
        """Traces the step, as `jax.jit(...).trace` does."""
        return self._jitted.trace(batch)

    def lower(self, batch):
        """Lowers the step, as `jax.jit(...).lower` does; compile the result with `compiler_options()`."""
        return self._jitted.lower(batch)
