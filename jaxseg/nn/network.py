"""Base class of the networks."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float


class Network(nnx.Module):
    """A segmentation network: images `b h w c` -> logits `b h w k`, of the same height and width.

    Subclasses have `in_channels`, c; `least_side`, the smallest height and width of an image in pixels; `remat`, True
    to recompute activations in the backward pass; and a method `_logits`. `UNet` and `EncoderUNet` are the two.
    """

    in_channels: int
    least_side: int

    @property
    def parameters(self) -> int:
        """Number of learned parameters."""
        return sum(p.size for p in jax.tree.leaves(nnx.state(self, nnx.Param)))

    def __call__(
        self,
        x: Float[Array | np.ndarray, "b h w c"],
        valid: Bool[Array | np.ndarray, " b"] | None = None,
        key: jax.Array | None = None,
    ) -> Float[Array, "b h w k"]:
        """Logits `b h w k`, at least float32.

        - `x`: images [b h w c] as `jaxseg.learn.step.normalize` returns them
        - `valid`: bool [b], False for samples that only pad the batch (see `BatchNorm`); all are valid if not given
        - `key`: JAX key for dropout in training

        Raises ValueError for an image that is too small, for another number of channels, and in training with dropout
        if `key` is missing.
        """
        least = self.least_side
        if min(x.shape[1:3]) < least or x.shape[3] != self.in_channels:
            raise ValueError(
                f"this U-Net takes images of {least} pixels a side or more with {self.in_channels} channels; "
                f"found {x.shape[1]}x{x.shape[2]} with {x.shape[3]}"
            )
        y = self._logits(x, valid, key)
        return y.astype(jnp.promote_types(y.dtype, jnp.float32))

    def _logits(self, x: Array | np.ndarray, valid: Array | np.ndarray | None, key: jax.Array | None) -> Array:
        """Logits in the dtype of the computation, for arguments as in `__call__`."""
        raise NotImplementedError


def caller(remat: bool) -> Callable[..., Array]:
    """Function that calls a block with arguments; with `remat` the block is recomputed in the backward pass."""
    return nnx.remat(_call, graph=False) if remat else _call


def _call(block: nnx.Module, *args) -> Array:
    return block(*args)
