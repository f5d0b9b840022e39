"""Losses of logits `b h w k` against labels `b h w`, with PyTorch's reductions."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

IGNORE_INDEX = 255
"""The label of pixels that count for nothing: no loss, no gradient, no metric."""


def cross_entropy(
    logits: Float[Array, "b h w k"], labels: Integer[Array, "b h w"], ignore_index: int = IGNORE_INDEX
) -> Float[Array, ""]:
    """Mean over the pixels not ignored of -log softmax(logits)[label]:
    `torch.nn.functional.cross_entropy(ignore_index=...)`.

    Labels are integers from 0 to k - 1, or `ignore_index`; others would count as a class of logit 0, so data is
    checked on reading. A batch with every pixel ignored has loss 0 and gradient 0 (PyTorch: NaN).
    """
    keep = labels != ignore_index
    picked = jnp.where(one_hot(labels, logits.shape[-1]), logits, 0).sum(-1)  # no gather, so no scatter in the gradient
    loss = jnp.where(keep, jax.nn.logsumexp(logits, axis=-1) - picked, 0)
    return loss.sum() / jnp.maximum(keep.sum(), 1).astype(loss.dtype)


def one_hot(labels: Integer[Array, "*shape"], classes: int) -> Bool[Array, "*shape k"]:
    """True where the last axis is the label; all false for labels outside 0 .. classes - 1."""
    return jnp.stack([labels == label for label in range(classes)], axis=-1)
