"""The steps of `jaxseg.learn.step`, compiled."""

import os
from collections.abc import Callable
from functools import partial

import jax
from flax import nnx
from jaxtyping import Array, Float, UInt8

from jaxseg.learn.augment import Batch
from jaxseg.learn.step import Images, eval_step, predict_step, probability_step, train_step
from jaxseg.nn.unet import UNet, evaluation

KEEP_BARRIERS = {"xla_disable_hlo_passes": "cse_barrier_expander"}
"""Options for XLA on a CPU, which would drop every `jax.lax.optimization_barrier`.

Barriers keep micro-batches one after the other, what `jax.checkpoint` computes again from being shared, and the bands
of `jaxseg.nn.convolution` in memory.
"""


CUDA_GRAPHS = {
    "xla_gpu_enable_command_buffer": "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,CONVOLUTION",
    "xla_gpu_graph_min_graph_size": "1",
}
"""For XLA on a GPU: all kernels of a step are launched together. By default a convolution is launched by itself, and
few kernels between two of them one by one."""


def compiler_options() -> dict[str, str]:
    """With which a step is to be compiled where JAX computes by default; those that XLA_FLAGS sets are left to it."""
    given = {flag.partition("=")[0].lstrip("-") for flag in os.environ.get("XLA_FLAGS", "").split()}
    options = {"cpu": KEEP_BARRIERS, "gpu": CUDA_GRAPHS}.get(jax.default_backend(), {})
    return {name: value for name, value in options.items() if name not in given}


def compile_train_step(model: UNet, optimizer: nnx.Optimizer, **how) -> Callable[[Batch], dict[str, jax.Array]]:
    """`train_step` compiled for this model and optimizer, whose buffers it reuses; `how` are its keyword arguments."""
    return _Compiled(partial(train_step, **how), model, optimizer, donate_argnums=0)


def compile_eval_step(model: UNet, **how) -> Callable[[Batch], dict[str, jax.Array]]:
    """`eval_step` compiled, on a view of `model` that shares its weights; `how` are its keyword arguments.

    For a run that averages its weights `model` is `optim.averaged(model, optimizer)`.
    """
    return _Compiled(partial(eval_step, **how), evaluation(model))


def compile_predict_step(model: UNet, **how) -> Callable[[Images], UInt8[Array, "b h w"]]:
    """`predict_step` compiled, once for every size of image; `how` are its keyword arguments."""
    return _Compiled(partial(predict_step, **how), evaluation(model))


def compile_probability_step(model: UNet, **how) -> Callable[[Images], Float[Array, "b h w k"]]:
    """`probability_step` compiled, once for every size of image; `how` are its keyword arguments."""
    return _Compiled(partial(probability_step, **how), evaluation(model))


class _Compiled:
    """`nnx.jit_partial(step, *held)`, compiled with `compiler_options()` once for every shape of its argument."""

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
