"""Losses and optimizers of both sides, by name or as a pair of PyTorch's and JAX's."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import torch
import torch.nn.functional as F

from jaxseg.learn import optimizers
from parity.certificate import theirs

LOSSES: dict[str, tuple[Callable, Callable]] = {
    "cross_entropy": (F.cross_entropy, lambda x, y: optax.softmax_cross_entropy_with_integer_labels(x, y).mean()),
    "mse": (F.mse_loss, lambda x, y: jnp.square(x - y).mean()),
    "l1": (F.l1_loss, lambda x, y: jnp.abs(x - y).mean()),
    "binary_cross_entropy_with_logits": (
        F.binary_cross_entropy_with_logits,
        lambda x, y: optax.sigmoid_binary_cross_entropy(x, y).mean(),
    ),
}
OPTIMIZERS: dict[str, Callable[[float], tuple[Callable, optax.GradientTransformation]]] = {
    "sgd": lambda rate: (lambda params: torch.optim.SGD(params, rate), optimizers.sgd(rate)),
    "momentum": lambda rate: (lambda params: torch.optim.SGD(params, rate, 0.9), optimizers.sgd(rate, 0.9)),
    "adam": lambda rate: (lambda params: torch.optim.Adam(params, rate), optimizers.adam(rate)),
    "adamw": lambda rate: (lambda params: torch.optim.AdamW(params, rate), optimizers.adamw(rate)),
}
RATES = {"sgd": 1e-2, "momentum": 1e-2, "adam": 1e-3, "adamw": 1e-3}


def losses_of(loss: Any, turned: bool) -> tuple[Callable, Callable]:
    """PyTorch's loss and the twin's; `turned` if the twin's outputs have channels last where PyTorch's have not."""
    if loss is None:
        return _projections(turned)
    if isinstance(loss, tuple):
        return loss
    first, second = LOSSES[loss]
    if loss == "cross_entropy" and not turned:  # PyTorch's classes are on axis 1
        return first, lambda x, y: second(jnp.moveaxis(x, 1, -1), y)
    return first, second


def _projections(turned: bool) -> tuple[Callable, Callable]:
    """Sum of the outputs, each times another number, so that every gradient says something."""

    def ours(output, target):
        total = 0.0
        for x in jax.tree.leaves(output):
            x = jnp.moveaxis(x, -1, 1) if turned and x.ndim > 2 else x
            total += (x * jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape)).sum()
        return total

    def reference(output, target):
        return sum(
            (x * torch.arange(x.numel(), dtype=x.dtype).cos().view(x.shape)).sum() for x in theirs.leaves(output)
        )

    return reference, ours


def optimizers_of(optimizer: Any) -> tuple[Callable | None, optax.GradientTransformation | None]:
    """A function that makes PyTorch's optimizer, and Optax's; None and None without one."""
    if optimizer is None:
        return None, None
    if isinstance(optimizer, str):
        return OPTIMIZERS[optimizer](RATES[optimizer])
    if isinstance(optimizer[0], str):
        return OPTIMIZERS[optimizer[0]](optimizer[1])
    return optimizer
