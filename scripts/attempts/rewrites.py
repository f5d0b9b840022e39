"""Other ways to write the step: plain forms put back, and new ones. Each is a patch for as long as it is traced.

All but "one-pass variance" give the same result but for rounding.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from unittest import mock

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jaxseg.learn import losses, optimizers, step
from jaxseg.nn import convolution as convolution_forms
from jaxseg.nn import layers, unet


@contextlib.contextmanager
def applied(names: Iterable[str]) -> Iterator[None]:
    """jaxseg with these rewrites."""
    with contextlib.ExitStack() as stack:
        for name in names:
            owner, attribute, make = REWRITES[name]
            stack.enter_context(mock.patch.object(owner, attribute, make(getattr(owner, attribute))))
        yield


def plain_pooling(_: Callable) -> Callable:
    return lambda x: nnx.max_pool(x, (2, 2), (2, 2))


def plain_cross_entropy(_: Callable) -> Callable:
    def call(logits, labels):
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels.astype(jnp.int32)).mean()

    return call


def dilated_up(_: Callable) -> Callable:
    def call(self, x):
        kernel = jnp.flip(self.kernel[...].astype(self.dtype), (0, 1))
        y = jax.lax.conv_transpose(x, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return layers._add_bias(y, self.bias[...])

    return call


def einsum_up(_: Callable) -> Callable:
    """The product as one einsum, which puts the pixels of a window's rows apart before it puts them together."""

    def call(self, x):
        b, h, w, _ = x.shape
        y = jnp.einsum("bhwi,yxio->bhywxo", x.astype(self.dtype), self.kernel[...].astype(self.dtype))
        return layers._add_bias(y.reshape(b, 2 * h, 2 * w, -1), self.bias[...])

    return call


def padded_logits(plain: Callable) -> Callable:
    """The last convolution has 8 outputs, of which the added ones are dropped."""

    def call(self, x):
        if self.kernel.shape[:2] != (1, 1):
            return plain(self, x)
        classes = self.kernel.shape[-1]
        kernel = jnp.pad(self.kernel[...].astype(self.dtype), ((0, 0), (0, 0), (0, 0), (0, 8 - classes)))
        return layers._add_bias(layers._conv1x1(x.astype(self.dtype), kernel)[..., :classes], self.bias[...])

    return call


def product_head(plain: Callable) -> Callable:
    """The last convolution as a matrix product that is float32 from its sum on."""

    def call(self, x):
        if self.kernel.shape[:2] != (1, 1):
            return plain(self, x)
        kernel = self.kernel[0, 0].astype(self.dtype)
        y = jnp.einsum("bhwi,io->bhwo", x.astype(self.dtype), kernel, preferred_element_type=jnp.float32)
        return y + layers._channels(self.bias[...])

    return call


def split_concatenation(_: Callable) -> Callable:
    """conv(concat(a, b), W) as conv(a, W[:a]) + conv(b, W[a:]). For sides that all levels halve."""

    def call(self, x, skip, valid=None):
        x = layers.upsample_bilinear(x) if self.up is None else self.up(x)
        block, first, plain = self.block, self.block.conv1, convolution_forms.plain
        kernel = first.kernel[...].astype(first.dtype)
        y = plain(skip, kernel[:, :, : skip.shape[-1]]) + plain(x, kernel[:, :, skip.shape[-1] :])
        y = y if first.bias is None else layers._add_bias(y, first.bias[...])
        y = layers.norm_relu(block.norm1, y, valid)
        return layers.norm_relu(block.norm2, block.conv2(y), valid)

    return call


@jax.custom_vjp
def sums_of_pixels(*images: jax.Array) -> tuple[jax.Array, ...]:
    """Of each channel, as one reduction of tuples."""
    zeros = tuple(jnp.zeros((), x.dtype) for x in images)
    return jax.lax.reduce(images, zeros, lambda a, b: tuple(x + y for x, y in zip(a, b)), (0, 1, 2))


sums_of_pixels.defvjp(
    lambda *images: (sums_of_pixels(*images), images[0]),
    lambda like, gradients: tuple(jnp.broadcast_to(g, like.shape) for g in gradients),
)


def norm_together(_: Callable) -> Callable:
    """The rows' sums of all gradients in one array, which is summed; XLA would take that apart but for the barrier."""

    def call(grads):
        rows = [jnp.square(grad).sum(-1).ravel() for grad in jax.tree.leaves(grads)]
        return jnp.sqrt(jax.lax.optimization_barrier(jnp.concatenate(rows)).sum())

    return call


def statistics(moments: Callable[[jax.Array], tuple[jax.Array, jax.Array]]) -> Callable[[Callable], Callable]:
    """Statistics of a batch of which all samples are valid."""

    def make(_: Callable) -> Callable:
        def call(self, x, valid):
            mean, var = moments(x)
            n = x.size // x.shape[-1]
            for running, new in ((self.mean, mean), (self.var, var * (n / (n - 1)))):
                running[...] = (1 - self.momentum) * running[...] + self.momentum * jax.lax.stop_gradient(new)
            return mean, var

        return call

    return make


def one_pass(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """E[x^2] - E[x]^2: loses digits where the mean is large, so only to know what exactness costs."""
    mean = x.mean((0, 1, 2))
    return mean, jnp.maximum(jnp.square(x).mean((0, 1, 2)) - jnp.square(mean), 0)


def two_pass(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The mean, then the squares about it, without the correction."""
    mean = x.mean((0, 1, 2))
    return mean, jnp.square(x - layers._channels(mean)).mean((0, 1, 2))


def undonated(plain: Callable) -> Callable:
    return lambda *args, donate_argnums, **how: plain(*args, **how)


def flattened(plain: Callable) -> Callable:
    """All parameters are updated as one vector."""
    return lambda *args, **how: optax.flatten(plain(*args, **how))


REWRITES: dict[str, tuple[object, str, Callable[[Callable], Callable]]] = {
    "plain pooling": (unet, "max_pool", plain_pooling),
    "plain cross-entropy": (losses, "cross_entropy", plain_cross_entropy),
    "dilated up": (layers.UpConv, "__call__", dilated_up),
    "einsum up": (layers.UpConv, "__call__", einsum_up),
    "sums together": (layers, "_pixel_sums", lambda _: sums_of_pixels),
    "norm together": (optax.tree, "norm", norm_together),
    "unpadded input": (convolution_forms, "ALIGNED", lambda _: 0),
    "cuDNN's order": (convolution_forms, "kernel_gradient_on_gpu", lambda _: convolution_forms.kernel_gradient),
    "norm and relu": (unet, "norm_relu", lambda _: layers.plain_norm_relu),
    "plain argmax": (step, "most_probable", lambda _: lambda logits: logits.argmax(-1)),
    "padded logits": (layers.Conv, "__call__", padded_logits),
    "product head": (layers.Conv, "__call__", product_head),
    "split concatenation": (unet.Up, "__call__", split_concatenation),
    "one-pass variance": (layers.BatchNorm, "_statistics", statistics(one_pass)),
    "two-pass variance": (layers.BatchNorm, "_statistics", statistics(two_pass)),
    "undonated": (nnx, "jit_partial", undonated),
    "flattened update": (optimizers, "optimizer_from", flattened),
}
"""Name -> whose attribute is replaced, and by what."""
