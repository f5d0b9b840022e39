"""A trained network as an ONNX file: from images as files have them to classes or probabilities."""

import json

import numpy as np
import onnx
from jaxtyping import Float, Num
from onnx import ModelProto, TensorProto, helper

import jaxseg
from jaxseg.export import network
from jaxseg.export.graph import IR, OPSET, Graph
from jaxseg.export.trained import Trained
from jaxseg.nn.folded import folded

TYPES = {
    "uint8": TensorProto.UINT8,
    "uint16": TensorProto.UINT16,
    "int16": TensorProto.INT16,
    "float32": TensorProto.FLOAT,
}
SIZES = ["batch", "height", "width"]


def plain_model(trained: Trained, *, probabilities: bool, fold: bool) -> ModelProto:
    """Model with input "image" [b h w c], of the type that the run reads.

    - `probabilities`: output "probabilities", float32 [b h w k], instead of "classes", uint8 [b h w]
    - `fold`: fold each BatchNorm into the convolution before it
    """
    graph, channels, k = Graph(), trained.reading.channels, len(trained.reading.labels.names)
    image = helper.make_tensor_value_info("image", TYPES[trained.reading.dtype], [*SIZES, channels])
    x = graph.op("Cast", "image", to=TensorProto.FLOAT)
    x = graph.op("Transpose", x, perm=[0, 3, 1, 2])
    x = normalized(graph, trained, x)
    x = graph.op("Identity", network.add(graph, folded(trained.net) if fold else trained.net, x), name="logits")
    if probabilities:
        graph.op("Transpose", graph.op("Softmax", x, axis=1), perm=[0, 2, 3, 1], name="probabilities")
        result = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [*SIZES, k])
    else:
        graph.op("Cast", graph.op("ArgMax", x, axis=1, keepdims=0), to=TensorProto.UINT8, name="classes")
        result = helper.make_tensor_value_info("classes", TensorProto.UINT8, SIZES)
    return made(graph, image, result, described(trained))


def deepness_model(trained: Trained, *, fold: bool, resolution: float, tile: int) -> ModelProto:
    """Model for Deepness 0.6, a plugin of QGIS: "image", float32 [b c h w], to "probabilities", float32 [b k h w].

    - `fold`: fold each BatchNorm into the convolution before it
    - `resolution`: side of a pixel in centimeters
    - `tile`: side of the tiles in pixels

    Deepness divides values of any type by 255 and standardizes them by the metadata. Channels are in the order of the
    layer's bands, so those of color pictures are red, green, blue.
    """
    graph, channels, k = Graph(), trained.reading.channels, len(trained.reading.labels.names)
    order = band_order(trained)
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", channels, *SIZES[1:]])
    x = graph.op("Gather", "image", graph.constant(np.int64(order)), axis=1) if trained.colors else "image"
    x = graph.op("Identity", network.add(graph, folded(trained.net) if fold else trained.net, x), name="logits")
    graph.op("Softmax", x, axis=1, name="probabilities")
    result = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", k, *SIZES[1:]])
    scale = trained.full / 255
    about = described(trained) | {
        "model_type": "Segmentor",
        "channels": [trained.channels[i] for i in order],
        "resolution": resolution,
        "tile_size": tile,
        "tiles_overlap": 15,
        "standardization_mean": [trained.mean[i] * scale for i in order],
        "standardization_std": [trained.std[i] * scale for i in order],
        "seg_thresh": 0,
        "seg_small_segment": 0,
    }
    return made(graph, image, result, about)


def band_order(trained: Trained) -> list[int]:
    """Number of the network's channel for each band of a file, of those used: red, green, blue are read as 2, 1, 0."""
    channels = trained.reading.channels
    return [2, 1, 0, 3][:channels] if trained.colors else list(range(channels))


def as_deepness(image: Num[np.ndarray, "b h w c"], trained: Trained) -> Float[np.ndarray, "b c h w"]:
    """Prepares tiles as Deepness does before it runs a model; `image` has the run's channels."""
    order, scale = band_order(trained), trained.full / 255
    mean, std = (np.float32([values[i] * scale for i in order]) for values in (trained.mean, trained.std))
    return ((np.float32(image[..., order] * 1.0 / 255.0) - mean) / std).transpose(0, 3, 1, 2)


def normalized(graph: Graph, trained: Trained, x: str) -> str:
    """Scales to [0, 1], then standardizes, as `jaxseg.learn.step.normalize`."""
    reading = trained.reading
    if trained.full != 1:
        x = graph.op("Div", x, graph.constant(np.float32(trained.full)))
    if reading.mean:
        x = graph.op("Sub", x, graph.constant(np.float32(reading.mean).reshape(1, -1, 1, 1)))
    if reading.std:
        x = graph.op("Div", x, graph.constant(np.float32(reading.std).reshape(1, -1, 1, 1)))
    return x


def described(trained: Trained) -> dict[str, object]:
    """Metadata: what goes in, what comes out, and which jaxseg wrote it."""
    labels = trained.reading.labels
    palette = labels.palette()[: len(labels.names)].tolist()
    return {
        "jaxseg": jaxseg.__version__,
        "class_names": dict(enumerate(labels.names)),
        "palette": ["#{:02x}{:02x}{:02x}".format(*color) for color in palette],
        "channels": trained.channels,
        "dtype": trained.reading.dtype,
        "mean": trained.mean,
        "std": trained.std,
        "least_side": trained.net.least_side,
        "network": trained.title,
    }


def made(graph: Graph, image, result, about: dict[str, object]) -> ModelProto:
    """Returns the checked model of a graph. Values of its metadata are JSON."""
    body = helper.make_graph(graph.nodes, "jaxseg", [image], [result], graph.constants)
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(body, opset_imports=opsets, ir_version=IR, producer_name="jaxseg")
    model.producer_version = jaxseg.__version__
    helper.set_model_props(model, {name: json.dumps(value, ensure_ascii=False) for name, value in about.items()})
    onnx.checker.check_model(model, full_check=True)
    return model
