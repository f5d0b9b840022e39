"""A trained network without BatchNorm: each is folded into the convolution before it, for prediction and export."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from jaxseg.nn import winograd
from jaxseg.nn.layers import BatchNorm, Conv, _add_bias


class Folded(nnx.Module):
    """Identity, in the place of a BatchNorm that has become part of a convolution.

    >>> Folded()(jnp.ones((1, 1, 1, 1))).shape
    (1, 1, 1, 1)
    """

    def set_view(self, use_running_average: bool | None = None):
        """Called by `nnx.view`, as for BatchNorm: nothing changes."""

    def __call__(
        self, x: Float[Array, "b h w c"], valid: Bool[Array | np.ndarray, " b"] | None = None
    ) -> Float[Array, "b h w c"]:
        """Returns `x`."""
        return x


class FoldedConv(Conv):
    """Convolution for prediction: that of `conv` followed by `norm`, a BatchNorm with running statistics.

    BatchNorm multiplies each channel by a number and adds another. Both go into kernel and bias, computed in float64
    and rounded to the parameters' dtype. On a CPU, wide 3x3 convolutions take `winograd`.

    >>> from jaxseg.nn.layers import BatchNorm, Conv
    >>> conv, norm = Conv(3, 4, 3, rngs=nnx.Rngs(0)), BatchNorm(4)
    >>> x = jnp.ones((1, 5, 5, 3))
    >>> bool(jnp.allclose(FoldedConv(conv, norm)(x), nnx.view(norm, use_running_average=True)(conv(x)), atol=1e-6))
    True
    """

    def __init__(self, conv: Conv, norm: BatchNorm):
        scale, shift, mean, var = (
            np.asarray(getattr(norm, name)[...], np.float64) for name in ("scale", "bias", "mean", "var")
        )
        factor = scale / np.sqrt(var + norm.eps)
        before = 0.0 if conv.bias is None else np.asarray(conv.bias[...], np.float64)
        kernel = np.asarray(conv.kernel[...])
        dtype = kernel.dtype
        kernel = (kernel * factor).astype(dtype)
        wide = kernel.shape[:2] == (3, 3) and conv.strides == 1 and winograd.is_faster(*kernel.shape[2:])
        self.kernel = nnx.Param(jnp.asarray(kernel))
        self.bias = nnx.Param(jnp.asarray((shift + (before - mean) * factor).astype(dtype)))
        wide = wide and jax.default_backend() == "cpu"
        self.values = nnx.Param(jnp.asarray(winograd.kernel_values(kernel))) if wide else None
        self.strides, self.dtype = conv.strides, conv.dtype

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h2 w2 o"]:
        """Convolves `x` with zero padding."""
        if self.values is None:
            return super().__call__(x)
        return _add_bias(winograd.winograd(x.astype(self.dtype), self.values[...]), self.bias[...])


def folded(net: nnx.Module) -> nnx.Module:
    """Copy of `net` for prediction, in which each BatchNorm is part of the convolution before it.

    A module's BatchNorm `normX` belongs to its convolution `convX`. Raises ValueError for one without. Layers that
    compute in bfloat16 stay: a kernel rounded after folding would move the result by as much as bfloat16's own error.

    >>> from jaxseg.nn.unet import UNet, evaluation
    >>> net = UNet((4, 8), rngs=nnx.Rngs(0))
    >>> x = jnp.ones((1, 4, 4, 3))
    >>> bool(jnp.allclose(folded(net)(x), evaluation(net)(x), atol=1e-6))
    True
    """
    net = nnx.clone(nnx.view(net, use_running_average=True, deterministic=True))
    for owner, suffix, norm in list(norms(net)):
        conv = getattr(owner, f"conv{suffix}", None)
        if not isinstance(conv, Conv):
            raise ValueError(f"{type(owner).__name__} has norm{suffix}, but no Conv conv{suffix} to fold it into")
        if jnp.dtype(conv.dtype) == conv.kernel[...].dtype:
            setattr(owner, f"conv{suffix}", FoldedConv(conv, norm))
            setattr(owner, f"norm{suffix}", Folded())
    return net


def norms(net: nnx.Module) -> Iterator[tuple[nnx.Module, str, BatchNorm]]:
    """Yields each BatchNorm `normX` of `net` with its owner and X."""
    for _, owner in nnx.iter_graph(net):
        if isinstance(owner, nnx.Module):
            for name, value in list(vars(owner).items()):
                if isinstance(value, BatchNorm):
                    yield owner, name.removeprefix("norm"), value
