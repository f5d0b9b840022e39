"""ResNets put together as other libraries have them, pretrained weights misread, encoders frozen by halves."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxseg.doctor import values
from jaxseg.learn import optimizers
from jaxseg.nn import encoder_unet, layers, resnet, strided, torch_weights
from jaxseg.training import assembly
from parity.mistakes import shown


def same(right):
    """Pads as TensorFlow does with 'SAME': the odd pixel below and on the right."""

    def wrong(x, kernel):
        return lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    return wrong


def other_pixels(right):
    """Takes the second of two pixels in 1x1 convolutions of stride 2."""

    def wrong(self, x):
        moved = len(self.kernel[...]) == 1 and self.strides == 2
        return right(self, jnp.roll(x, -1, (1, 2)) if moved else x)

    return wrong


def without_last(right):
    """Leaves out the last image."""
    return lambda x, g: right(x[:-1], g[:-1])


def flipped(right):
    """Flips the kernel's gradient, as of a true convolution."""
    return lambda x, g: right(x, g)[::-1, ::-1]


def reduce_window(right):
    """Pools as JAX does, whose gradient takes another pixel than a NaN."""
    window = (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0))
    return lambda x: lax.reduce_window(x, -jnp.inf, lax.max, *window)


def last_tie(right):
    """Gives the gradient to the last of equal pixels."""

    def wrong(x):
        h, w = x.shape[1:3]
        # odd sides, so that windows of the mirrored image are those of the image
        x = jnp.pad(x, ((0, 0), (0, 1 - h % 2), (0, 1 - w % 2), (0, 0)), constant_values=-jnp.inf)
        return right(x[:, ::-1, ::-1])[:, ::-1, ::-1][:, : -(-h // 2), : -(-w // 2)]

    return wrong


def stride_first(right):
    """Strides in the first 1x1 convolution of a bottleneck, as the paper has it, not in the 3x3 one."""

    def wrong(self, *args, **kwargs):
        right(self, *args, **kwargs)
        self.conv1.strides, self.conv2.strides = self.conv2.strides, 1

    return wrong


def relu_before_sum(right):
    """Applies ReLU before the addition."""

    def wrong(self, x, valid=None):
        y = resnet.norm_relu(self.norm1, self.conv1(x), valid)
        y = jax.nn.relu(self.norm2(self.conv2(y), valid))
        return y + resnet._around(self, x, valid)

    return wrong


def without_norm(right):
    """Leaves out the BatchNorm on the way around a block."""
    return lambda block, x, valid: x if block.conv_down is None else block.conv_down(x)


def skip_first(right):
    """Puts the skip connection first, as milesial's U-Net does."""

    def wrong(self, x, skip=None, valid=None):
        if skip is None:
            return right(self, x, skip, valid)
        x = encoder_unet.upsample_nearest(x)[:, : skip.shape[1], : skip.shape[2]]
        return self.block(jnp.concatenate([skip, x], axis=-1), valid)

    return wrong


def cut_above(right):
    """Cuts features that are too large above and on the left."""

    def wrong(self, x, skip=None, valid=None):
        if skip is None:
            return right(self, x, skip, valid)
        x = encoder_unet.upsample_nearest(x)[:, -skip.shape[1] :, -skip.shape[2] :]
        return self.block(jnp.concatenate([x, skip], axis=-1), valid)

    return wrong


def moving(right):
    """A frozen encoder whose running statistics move, as `requires_grad_(False)` alone leaves it."""

    def wrong(net):
        view = right(net)
        view.encoder = net.encoder
        return view

    return wrong


def trained_on(right):
    """A frozen encoder of which only the statistics are held."""

    def wrong(net):
        view = right(net)
        view.frozen = False
        return view

    return wrong


def decayed(right):
    """Updates the frozen encoder's moments, and decays its weights, by gradients of 0."""
    return lambda make, schedule, *, factor, frozen: right(make, schedule, factor=factor, frozen=0)


def late(right):
    """Starts the encoder's learning rate from the beginning when it is no longer frozen."""

    def wrong(make, schedule, *, factor, frozen):
        made = []

        def earlier(rate):  # the encoder's is made first
            made.append(rate)
            return make((lambda count: rate(count - frozen)) if len(made) == 1 else rate)

        return right(earlier, schedule, factor=factor, frozen=frozen)

    return wrong


def one_rate(right):
    """Forgets the factor of the encoder's learning rate."""
    return lambda make, schedule, *, factor, frozen: right(make, schedule, factor=1.0, frozen=frozen)


def unscaled(right):
    """Repeats the weights cyclically, but does not scale them."""

    def wrong(kernel, channels):
        return kernel[:, np.arange(channels) % kernel.shape[1]] if channels > 3 else right(kernel, channels)

    return wrong


def blue_statistics(right):
    """Takes the mean and deviation of red for blue."""

    def wrong(sides, channels):
        return tuple(numbers[::-1] for numbers in right(sides, channels))

    return wrong


def never_frozen(right):
    """Takes the ordinary step in every epoch."""

    def wrong(*args, **kwargs):
        return dataclasses.replace(right(*args, **kwargs), frozen_epochs=0)

    return wrong


def unturned(right):
    """Takes weights for red, green, blue as those for blue, green, red."""
    return lambda state: dict(state)


POOL = (resnet, "max_pool_3x3")
MISTAKES = [
    shown("layers", "convolution 7x7 of stride 2: 'SAME'", layers, "conv_stem", same),
    shown("layers", "convolution 3x3 of stride 2: 'SAME'", layers, "conv_strided", same),
    shown("layers", "convolution 1x1 of stride 2: the other pixels", layers.Conv, "__call__", other_pixels),
    shown("layers", "convolution 7x7: without the last image", strided, "stem_gradient_by_product", without_last),
    shown("layers", "convolution 7x7 on a GPU: flipped gradient", strided, "stem_gradient", flipped),
    shown("layers", "upsampling: bilinear", encoder_unet, "upsample_nearest", lambda right: layers.upsample_bilinear),
    shown("layers", "max-pool 3x3: by reduce_window", *POOL, reduce_window),
    shown("layers", "max-pool 3x3: from 0 on", *POOL, lambda right: lambda x: right(jnp.maximum(x, 0))),
    shown("layers", "max-pool 3x3: last of the ties", *POOL, last_tie),
    shown("layers", "max-pool 3x3: only every second pixel", *POOL, lambda right: lambda x: x[:, ::2, ::2]),
    shown("layers", "pretrained: not scaled for more channels", torch_weights, "for_channels", unscaled),
    shown("resnet50", "bottleneck: stride in the first convolution", resnet.Bottleneck, "__init__", stride_first),
    shown("resnet18", "basic block: ReLU before the addition", resnet.BasicBlock, "__call__", relu_before_sum),
    shown("resnet50", "block: no BatchNorm on the way around", resnet, "_around", without_norm),
    shown("resnet18", "decoder: skip connection first", encoder_unet.UpBlock, "__call__", skip_first),
    shown("resnet18", "decoder: cut above", encoder_unet.UpBlock, "__call__", cut_above),
    shown("training", "frozen encoder: statistics move", encoder_unet, "with_frozen_encoder", moving),
    shown("training", "frozen encoder: moments and decay go on", optimizers, "for_encoder", decayed),
    shown("training", "frozen encoder: its rate begins late", optimizers, "for_encoder", late),
    shown("training", "encoder: one learning rate", optimizers, "for_encoder", one_rate),
    shown("training", "frozen encoder: gradients pass", encoder_unet, "with_frozen_encoder", trained_on),
    shown("command", "a run that never freezes", assembly, "assemble", never_frozen),
    shown("pretrained", "pretrained: colors not turned", torch_weights, "turned", unturned),
    shown("command", "pretrained: colors not turned in a run", torch_weights, "turned", unturned),
    shown("command", "pretrained: mean of red for blue", values, "normalization", blue_statistics),
]
