"""The nodes of an ONNX graph (opset 17) for the layers of a network. Images are `b c h w`, as ONNX has them."""

import numpy as np
from flax import nnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from jaxseg.nn.folded import Folded
from jaxseg.nn.layers import BatchNorm, Conv, UpConv

OPSET, IR = 17, 8
"""Versions of operators and file that onnxruntime reads since 1.12, which QGIS's plugin still uses."""


class Graph:
    """Collects nodes and constants. Every method adds nodes and returns the name of their result."""

    def __init__(self):
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def constant(self, value: np.ndarray | np.number) -> str:
        """Adds a constant."""
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def op(self, kind: str, *inputs: str, name: str | None = None, **attributes: object) -> str:
        """Adds a node of ONNX operator `kind`; `name` is that of its result."""
        name = name or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def conv(self, layer: Conv, x: str) -> str:
        """Convolution with zero padding that keeps the size, or halves it with stride 2."""
        kernel = np.asarray(layer.kernel[...])
        size, stride = len(kernel), layer.strides
        weights = [kernel.transpose(3, 2, 0, 1), *([] if layer.bias is None else [np.asarray(layer.bias[...])])]
        around = {"pads": [size // 2] * 4, "strides": [stride] * 2}
        return self.op("Conv", x, *map(self.constant, weights), kernel_shape=[size] * 2, **around)

    def up_conv(self, layer: UpConv, x: str) -> str:
        """Transposed 2x2 convolution of stride 2."""
        weights = np.asarray(layer.kernel[...]).transpose(2, 3, 0, 1), np.asarray(layer.bias[...])
        return self.op("ConvTranspose", x, *map(self.constant, weights), kernel_shape=[2, 2], strides=[2, 2])

    def norm(self, layer: BatchNorm | Folded, x: str) -> str:
        """BatchNorm with running statistics; nothing where it is folded."""
        if isinstance(layer, Folded):
            return x
        weights = [np.asarray(getattr(layer, name)[...]) for name in ("scale", "bias", "mean", "var")]
        return self.op("BatchNormalization", x, *map(self.constant, weights), epsilon=layer.eps)

    def block(self, block: nnx.Module, x: str) -> str:
        """Convolution, BatchNorm and ReLU, twice: a `ConvBlock`."""
        x = self.op("Relu", self.norm(block.norm1, self.conv(block.conv1, x)))
        return self.op("Relu", self.norm(block.norm2, self.conv(block.conv2, x)))

    def sides(self, x: str) -> str:
        """Height and width."""
        return self.op("Slice", self.op("Shape", x), self.constant(np.int64([2])), self.constant(np.int64([4])))

    def padded(self, x: str, like: str) -> str:
        """`x` with zeros around it, up to the height and width of `like`; the odd one below and on the right."""
        missing = self.op("Sub", self.sides(like), self.sides(x))
        before, none = self.op("Div", missing, self.constant(np.int64([2]))), self.constant(np.int64([0, 0]))
        return self.op("Pad", x, self.op("Concat", none, before, none, self.op("Sub", missing, before), axis=0))

    def cut(self, x: str, like: str) -> str:
        """The upper left part of `x` with the height and width of `like`."""
        return self.op("Slice", x, self.constant(np.int64([0, 0])), self.sides(like), self.constant(np.int64([2, 3])))
