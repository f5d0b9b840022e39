"""Weights under PyTorch's names: milesial's for a U-Net, segmentation_models.pytorch's for one with an encoder."""

import io
import json
from importlib import resources
from importlib.util import find_spec

import numpy as np

import jaxseg
from jaxseg.base.errors import UserError
from jaxseg.export.trained import Trained
from jaxseg.nn.torch_weights import to_torch


def state_dict(trained: Trained) -> dict[str, np.ndarray]:
    """Weights and statistics by PyTorch's names. Those of color pictures are turned to read red, green, blue."""
    return {
        name: np.ascontiguousarray(array)
        for name, array in to_torch(trained.net, "rgb" if trained.colors else "bgr").items()
    }


def require_torch() -> None:
    """Raises UserError unless PyTorch is installed."""
    if find_spec("torch") is None:
        raise UserError("--to pth needs PyTorch: pip install torch; --to safetensors does not")


def pth(trained: Trained) -> bytes:
    """File of `torch.save(state_dict)`, which `torch.load(..., weights_only=True)` reads."""
    import torch

    content = io.BytesIO()
    torch.save({name: torch.from_numpy(array) for name, array in state_dict(trained).items()}, content)
    return content.getvalue()


def safetensors(trained: Trained) -> bytes:
    """File of safetensors, with classes, channels and normalization in its metadata, as JSON."""
    from safetensors.numpy import save

    about = {"jaxseg": jaxseg.__version__, "format": "pt"}
    about |= {name: json.dumps(value, ensure_ascii=False) for name, value in settings(trained).items()}
    return save(state_dict(trained), about)


def torch_code(trained: Trained) -> bytes:
    """Python file with the network as a PyTorch module, from a template beside this file."""
    name = "torch_encoder_unet.py" if trained.encoder else "torch_unet.py"
    template = resources.files("jaxseg.export").joinpath(name).read_text(encoding="utf-8")
    shown = "".join(f"    {name!r}: {value!r},\n" for name, value in settings(trained).items())
    filled = template.replace("SETTINGS = {}", f"SETTINGS = {{\n{shown}}}")
    assert filled != template
    return filled.encode()


def settings(trained: Trained) -> dict[str, object]:
    """Architecture, channels, normalization and classes, for PyTorch: color pictures are red, green, blue."""
    turned = [2, 1, 0, 3][: trained.reading.channels] if trained.colors else range(trained.reading.channels)
    if trained.encoder:
        own = {"encoder": trained.encoder, "base": trained.net.encoder.widths[0]}
    else:
        own = {name: trained.built[f"--{name.replace('_', '-')}"] for name in ("widths", "upsample", "conv_bias")}
    return own | {
        "channels": [trained.channels[i] for i in turned],
        "classes": list(trained.reading.labels.names),
        "dtype": trained.reading.dtype,
        "full": trained.full,
        "mean": [trained.mean[i] for i in turned],
        "std": [trained.std[i] for i in turned],
    }
