"""Networks with parts in the wrong order, missing, or in the wrong mode."""

from unittest import mock

import jax
import jax.numpy as jnp
from flax import nnx

from jaxseg.learn import step
from jaxseg.nn import folded, layers, unet
from parity.mistakes import mistake
from parity.twins import pairs


def up(join, pad=lambda n: (n // 2, n - n // 2)):
    """Replaces a decoder block: `join(skip, x)` joins features, `pad(n)` splits n rows of padding."""

    def wrong(right):
        def call(self, x, skip, valid=None):
            x = unet.upsample_bilinear(x) if self.up is None else self.up(x)
            rows, columns = skip.shape[1] - x.shape[1], skip.shape[2] - x.shape[2]
            x = jnp.pad(x, [(0, 0), pad(rows), pad(columns), (0, 0)])
            return self.block(join(skip, x), valid)

        return call

    return wrong


def resized(right):
    """Stretches the features from below at odd sizes instead of padding them."""

    def wrong(self, x, skip, valid=None):
        x = unet.upsample_bilinear(x) if self.up is None else self.up(x)
        x = jax.image.resize(x, (*skip.shape[:3], x.shape[3]), "bilinear")
        return self.block(jnp.concatenate([skip, x], -1), valid)

    return wrong


def before_relu(right):
    """Applies ReLU before BatchNorm."""

    def wrong(self, x, valid=None):
        x = self.norm1(jax.nn.relu(self.conv1(x)), valid)
        return self.norm2(jax.nn.relu(self.conv2(x)), valid)

    return wrong


def one_relu(right):
    """Leaves out the ReLU after the second BatchNorm."""
    return lambda self, x, valid=None: self.norm2(self.conv2(jax.nn.relu(self.norm1(self.conv1(x), valid))), valid)


def headless_bias(right):
    """Leaves out the bias of the last convolution."""
    return lambda self, *args: right(self, *args) - self.head.bias[...][None, None, None]


def batch_always(right):
    """Evaluates with the statistics of the batch."""

    def wrong(self, function, x, valid):
        if not self.use_running_average:
            return right(self, function, x, valid)
        return function(x, x.mean((0, 1, 2)), x.var((0, 1, 2)), self.scale[...], self.bias[...], self.eps)

    return wrong


def twice(right):
    """Moves running statistics a second time when a block is recomputed."""

    def remat(call, **how):
        def wrong(*args):
            call(*args)
            return right(call, **how)(*args)

        return wrong

    return remat


def always(right):
    """Drops features in evaluation too."""
    return lambda self, x, rngs=None: right(
        self, x, deterministic=False, rngs=jax.random.key(0) if rngs is None else rngs
    )


def alike(*axes: int):
    """Drops alike along these axes: (1, 2) drops whole channels, as `Dropout2d` does."""
    return lambda right: lambda self, rate, **options: right(self, rate, broadcast_dims=axes, **options)


def reference_in_evaluation(right):
    """Leaves the reference in evaluation, so its BatchNorm cancels no bias."""

    def networks(*args, **options):
        net, reference = right(*args, **options)
        return net, reference.eval()

    return networks


def dropout_first(right):
    """Drops pixels instead of the deepest features."""

    def wrong(self, x, valid=None, key=None):
        x = self.dropout(x, rngs=key)
        with mock.patch.object(type(self.dropout), "__call__", lambda dropout, x, rngs=None: x):
            return right(self, x, valid, key)

    return wrong


def folding(change_conv=None, change_norm=None):
    """Folds a changed convolution or BatchNorm."""

    def wrong(right):
        def call(conv, norm):
            conv, norm = nnx.clone(conv), nnx.clone(norm)
            for layer, change in ((conv, change_conv), (norm, change_norm)):
                for name, value in (change or {}).items():
                    setattr(layer, name, value)
            return right(conv, norm)

        return call

    return wrong


def fresh(right):
    """Folds a BatchNorm as it was before training."""

    def wrong(conv, norm):
        norm = nnx.clone(norm)
        norm.mean[...], norm.var[...] = jnp.zeros_like(norm.mean[...]), jnp.ones_like(norm.var[...])
        return right(conv, norm)

    return wrong


MISTAKES = [
    mistake("skip connection second", unet.Up, "__call__", up(lambda skip, x: jnp.concatenate([x, skip], -1))),
    mistake("skip connection added", unet.Up, "__call__", up(lambda skip, x: jnp.concatenate([skip, x + skip], -1))),
    mistake(
        "odd row padded above",
        unet.Up,
        "__call__",
        up(lambda skip, x: jnp.concatenate([skip, x], -1), pad=lambda n: (n - n // 2, n // 2)),
    ),
    mistake("odd sizes stretched", unet.Up, "__call__", resized),
    mistake("ReLU before BatchNorm", unet.ConvBlock, "__call__", before_relu),
    mistake("second ReLU missing", unet.ConvBlock, "__call__", one_relu),
    mistake("head without its bias", unet.UNet, "__call__", headless_bias),
    mistake(
        "padding seen by the whole network",
        unet.UNet,
        "__call__",
        lambda right: lambda self, x, valid=None, key=None: right(self, x, None, key),
    ),
    mistake("evaluation with batch statistics", layers.BatchNorm, "_apply", batch_always),
    mistake("folding with eps 1e-6", folded, "FoldedConv", folding(change_norm={"eps": 1e-6})),
    mistake("folding without the convolution's bias", folded, "FoldedConv", folding(change_conv={"bias": None})),
    mistake("folding without running statistics", folded, "FoldedConv", fresh),
    mistake("images in -1..1", step, "unit", lambda right: lambda *args: 2 * right(*args) - 1),
    mistake("recomputing: statistics updated twice", nnx, "remat", twice),
    mistake("dropout in evaluation", nnx.Dropout, "__call__", always),
    mistake("dropout of whole channels", nnx.Dropout, "__init__", alike(1, 2)),
    mistake("dropout alike in all samples", nnx.Dropout, "__init__", alike(0)),
    mistake("dropout before the contracting path", unet.UNet, "__call__", dropout_first),
    mistake("reference: left in evaluation", pairs, "networks", reference_in_evaluation),
]
