"""What a step of the U-Net has to compute and to move, from its shapes alone; and the time that a machine needs for it.

FLOPs are those of the convolutions, 2 for a multiply-add, paddings counted as if they were pixels: what PyTorch's
FlopCounterMode counts. A training step takes the forward pass three times (values, gradients of inputs, gradients of
weights), less the gradient of the images, which nobody needs.

Bytes are those of an ideal fusion: each convolution reads its inputs and writes its outputs once, in each of its three
passes; statistics, normalization, ReLU, pooling and concatenation ride along in the convolutions. BatchNorm's way back
cannot do without two more looks at the convolution's output, and the gradient of a skip connection comes from two
sides. XLA and Inductor move nearly twice as much. Both are models: a bound for this pattern, not for every conceivable
program.
"""

from typing import NamedTuple

ADAM_BYTES = 28
"""A parameter's in an update, all float32: reads weight, gradient and both moments, writes all but the gradient."""


class Layer(NamedTuple):
    """A convolution, per image."""

    flops: int
    """Of the forward pass."""
    inputs: int
    """Numbers read; of pooled ones those before the pooling."""
    outputs: int
    normalized: bool
    """Whether BatchNorm follows."""
    skipped: bool
    """Whether the outputs are also a skip connection."""
    parameters: int


class Machine(NamedTuple):
    """Ceilings that were measured."""

    flops: float
    """FLOP/s of a large matrix product, in the precision in question."""
    bandwidth: float
    """Bytes/s of a large copy, reads and writes counted."""


def layers(widths: tuple[int, ...], side: int, in_channels: int = 3, classes: int = 2) -> list[Layer]:
    """The convolutions of the U-Net with transposed convolutions, for square images, in the order of the data."""
    found = []

    def conv(pixels: int, i: int, o: int, *, pooled: bool = False, skipped: bool = False) -> None:
        read = pixels * i * (4 if pooled else 1)
        found.append(Layer(2 * 9 * pixels * i * o, read, pixels * o, True, skipped, 9 * i * o + 2 * o))

    before = in_channels
    for level, width in enumerate(widths):
        pixels = (side >> level) ** 2
        conv(pixels, before, width, pooled=level > 0)
        conv(pixels, width, width, skipped=level < len(widths) - 1)
        before = width
    for level in reversed(range(len(widths) - 1)):
        width, pixels = widths[level], (side >> level) ** 2
        up = Layer(2 * pixels * before * width, pixels // 4 * before, pixels * width, False, False, 4 * before * width)
        found.append(up)
        conv(pixels, 2 * width, width)
        conv(pixels, width, width)
        before = width
    pixels = side**2
    head = Layer(2 * pixels * before * classes, pixels * before, pixels * classes, False, False, before * classes)
    return [*found, head]


def forward_flops(widths: tuple[int, ...], side: int, **channels: int) -> int:
    """FLOPs of one image in prediction."""
    return sum(layer.flops for layer in layers(widths, side, **channels))


def training_flops(widths: tuple[int, ...], side: int, **channels: int) -> int:
    """FLOPs of one image in a training step."""
    found = layers(widths, side, **channels)
    return 3 * sum(layer.flops for layer in found) - found[0].flops


def training_bytes(widths: tuple[int, ...], side: int, itemsize: int, **channels: int) -> int:
    """Bytes of one image in a training step, its activations `itemsize` bytes each; without those of the update."""
    found = layers(widths, side, **channels)
    numbers = sum(3 * (x.inputs + x.outputs) + (2 * x.normalized + x.skipped) * x.outputs for x in found)
    return itemsize * (numbers - found[0].inputs - found[0].outputs)


def forward_bytes(widths: tuple[int, ...], side: int, itemsize: int, **channels: int) -> int:
    """Bytes of one image in prediction."""
    return itemsize * sum(x.inputs + x.outputs for x in layers(widths, side, **channels))


def training_seconds(machine: Machine, widths: tuple[int, ...], side: int, batch: int, itemsize: int) -> float:
    """The least time of a step on a machine that computes and moves at once: the roofline. Adam's update included."""
    update = ADAM_BYTES * sum(layer.parameters for layer in layers(widths, side))
    moved = batch * training_bytes(widths, side, itemsize) + update
    return max(batch * training_flops(widths, side) / machine.flops, moved / machine.bandwidth)


def forward_seconds(machine: Machine, widths: tuple[int, ...], side: int, batch: int, itemsize: int) -> float:
    """The same of predicting a batch."""
    compute, moved = forward_flops(widths, side), forward_bytes(widths, side, itemsize)
    return batch * max(compute / machine.flops, moved / machine.bandwidth)
