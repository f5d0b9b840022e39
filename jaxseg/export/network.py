"""Each kind of network as nodes of an ONNX graph."""

import numpy as np

from jaxseg.export.graph import Graph
from jaxseg.nn.encoder_unet import EncoderUNet
from jaxseg.nn.network import Network
from jaxseg.nn.resnet import BasicBlock, Bottleneck
from jaxseg.nn.unet import UNet


def add(graph: Graph, net: Network, x: str) -> str:
    """Adds a network to `graph`: images [b c h w] -> logits [b k h w]."""
    return encoder_unet(graph, net, x) if isinstance(net, EncoderUNet) else unet(graph, net, x)


def unet(graph: Graph, net: UNet, x: str) -> str:
    """Adds a `UNet`."""
    skips = []
    for level, block in enumerate(net.down):
        if level:
            x = graph.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
        x = graph.block(block, x)
        skips.append(x)
    skips.pop()
    for up in net.up:
        skip = skips.pop()
        x = doubled(graph, x, "linear") if up.up is None else graph.up_conv(up.up, x)
        x = graph.block(up.block, graph.op("Concat", skip, graph.padded(x, skip), axis=1))
    return graph.conv(net.head, x)


def encoder_unet(graph: Graph, net: EncoderUNet, image: str) -> str:
    """Adds a U-Net with a ResNet as encoder."""
    encoder = net.encoder
    x = graph.op("Relu", graph.norm(encoder.norm1, graph.conv(encoder.conv1, image)))
    features = [x]
    x = graph.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    for blocks in (encoder.layer1, encoder.layer2, encoder.layer3, encoder.layer4):
        for block in blocks:
            x = residual(graph, block, x)
        features.append(x)
    *skips, x = features
    for block, skip in zip(net.decoder, [*skips[::-1], None]):
        x = doubled(graph, x, "nearest")
        if skip is not None:
            x = graph.op("Concat", graph.cut(x, skip), skip, axis=1)
        x = graph.block(block.block, x)
    return graph.cut(graph.conv(net.segmentation_head, x), image)


def residual(graph: Graph, block: BasicBlock | Bottleneck, x: str) -> str:
    """Adds a block of a ResNet."""
    y, last = x, 3 if isinstance(block, Bottleneck) else 2
    for i in range(1, last + 1):
        y = graph.norm(getattr(block, f"norm{i}"), graph.conv(getattr(block, f"conv{i}"), y))
        y = graph.op("Relu", y) if i < last else y
    if block.conv_down is not None:
        x = graph.norm(block.norm_down, graph.conv(block.conv_down, x))
    return graph.op("Relu", graph.op("Add", y, x))


def doubled(graph: Graph, x: str, mode: str) -> str:
    """Doubles height and width: "linear" with aligned corners, or "nearest"."""
    how = {"linear": "align_corners", "nearest": "asymmetric"}[mode]
    rounding = {"nearest_mode": "floor"} if mode == "nearest" else {}
    factors = graph.constant(np.float32([1, 1, 2, 2]))
    return graph.op("Resize", x, "", factors, mode=mode, coordinate_transformation_mode=how, **rounding)
