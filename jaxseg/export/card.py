"""The model card: README.md with the front matter of the Hugging Face Hub."""

from collections.abc import Sequence
from typing import Literal

import yaml

import jaxseg
from jaxseg.data.read.masks import show
from jaxseg.export.trained import Trained
from jaxseg.runs.readme import table

LOADING = {
    "model.onnx": """import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
image = np.zeros((1, 256, 256, {channels}), np.{dtype})  # {order}
(result,) = session.run(None, {{"image": image}})  # {result}""",
    "model.pth": """import torch

weights = torch.load("model.pth", weights_only=True)
model.load_state_dict(weights, strict=True)  # {names}""",
    "model.safetensors": """from safetensors.torch import load_file

model.load_state_dict(load_file("model.safetensors"), strict=True)  # {names}""",
    "model.py": """from model import load

net = load("model.safetensors")
classes = net(images).argmax(1)  # images [b c h w] of {dtype}: {turned}""",
}


def card(trained: Trained, files: Sequence[str], result: Literal["classes", "probabilities", "deepness"]) -> bytes:
    """Text of the card.

    - `files`: names of the files beside it
    - `result`: of the ONNX file, "classes" or "probabilities", or "deepness" for a file for QGIS
    """
    front = {"library_name": "jaxseg", "pipeline_tag": "image-segmentation", "tags": ["jax", "unet", *kinds(files)]}
    labels, reading = trained.reading.labels, trained.reading
    order = ", ".join(trained.channels)
    turned = ", ".join([*trained.channels[2::-1], *trained.channels[3:]]) if trained.colors else order
    palette = ["#{:02x}{:02x}{:02x}".format(*color) for color in labels.palette()[: len(labels.names)].tolist()]
    rows = zip(labels.names, (show(value, labels.color) for value in labels.values), palette)
    classes = [f"| {i} | {name} | {value} | {color} |" for i, (name, value, color) in enumerate(rows)]
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}# license: choose one, such as apache-2.0\n---",
        f"# {trained.run.resolve().name}",
        f"A {trained.title} for semantic segmentation, trained with jaxseg {jaxseg.__version__}.",
        *scores(trained),
        "## Images",
        f"{reading.channels} channels of {reading.dtype}: {order}. Height and width are free, from "
        f"{trained.net.least_side} pixels on. `model.onnx` and `model.py` normalize them; weights alone need:",
        normalization(trained),
        "## Classes",
        "\n".join(["| class | name | mask value | color |", "|---|---|---|---|", *classes]),
        "## How to load it",
    ]
    known = {"channels": reading.channels, "dtype": reading.dtype, "order": order, "turned": turned}
    known["result"] = {"classes": "classes, uint8 [b h w]"}.get(result, "probabilities, float32 [b h w k]")
    known["names"] = f"names of {trained.origin}; it reads {turned}"
    for name in files:
        if name == "model.onnx" and result == "deepness":
            parts += [f"`model.onnx` is for Deepness, a plugin of QGIS. Its bands are, in this order: {turned}."]
        else:
            parts += [f"`{name}`:", f"```python\n{LOADING[name].format(**known)}\n```"]
    return ("\n\n".join(parts) + "\n").encode()


def kinds(files: Sequence[str]) -> list[str]:
    """Tags for the kinds of files."""
    tags = {"model.onnx": "onnx", "model.safetensors": "safetensors", "model.pth": "pytorch", "model.py": "pytorch"}
    return list(dict.fromkeys(tags[name] for name in files if name in tags))


def scores(trained: Trained) -> list[str]:
    """Scores on the run's validation set; nothing if they are not known."""
    if not trained.epoch:
        return []
    found = trained.epoch["validation"]
    return [
        f"Validation of epoch {trained.epoch['epoch'] + 1} (checkpoint {trained.checkpoint}): mIoU "
        f"{found['miou']:.4f}, pixel accuracy {found['accuracy']:.4f}.",
        table(found, trained.reading.labels.names),
    ]


def normalization(trained: Trained) -> str:
    """The formula, with its numbers in the order of the channels."""
    scaled = "value" if trained.full == 1 else f"value / {trained.full}"
    if not trained.reading.mean:
        return f"`{scaled}`"
    mean, std = (
        ", ".join(f"{name} {x:.6g}" for name, x in zip(trained.channels, values))
        for values in (trained.mean, trained.std)
    )
    return f"`({scaled} - mean) / std`, with mean {mean}, and std {std}"
