"""jaxseg: semantic segmentation in JAX and Flax, proven against PyTorch.

The public names below are imported when they are first used, so that `import jaxseg` takes no time:

>>> from jaxseg import UNet
>>> from flax import nnx
>>> UNet(widths=(4, 8), in_channels=3, classes=2, rngs=nnx.Rngs(0)).least_side
2
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxseg.base.config import Config as Config
    from jaxseg.data.feed.pipeline import Pipeline as Pipeline
    from jaxseg.data.read.samples import Reading as Reading
    from jaxseg.inference.predictor import Predictor as Predictor
    from jaxseg.inference.predictor import load as load
    from jaxseg.learn import augment as augment
    from jaxseg.learn import losses as losses
    from jaxseg.learn import metrics as metrics
    from jaxseg.learn import optimizers as optimizers
    from jaxseg.learn.step import eval_step as eval_step
    from jaxseg.learn.step import train_step as train_step
    from jaxseg.nn import initializers as initializers
    from jaxseg.nn.encoder_unet import EncoderUNet as EncoderUNet
    from jaxseg.nn.torch_weights import from_torch as from_torch
    from jaxseg.nn.torch_weights import to_torch as to_torch
    from jaxseg.nn.unet import UNet as UNet
    from jaxseg.training.loop import fit as fit

__version__ = "0.2.0"

_NAMES = {
    "Config": "jaxseg.base.config",
    "EncoderUNet": "jaxseg.nn.encoder_unet",
    "Pipeline": "jaxseg.data.feed.pipeline",
    "Predictor": "jaxseg.inference.predictor",
    "Reading": "jaxseg.data.read.samples",
    "UNet": "jaxseg.nn.unet",
    "eval_step": "jaxseg.learn.step",
    "fit": "jaxseg.training.loop",
    "from_torch": "jaxseg.nn.torch_weights",
    "load": "jaxseg.inference.predictor",
    "to_torch": "jaxseg.nn.torch_weights",
    "train_step": "jaxseg.learn.step",
}
_NAMESPACES = {
    "augment": "jaxseg.learn.augment",
    "initializers": "jaxseg.nn.initializers",
    "losses": "jaxseg.learn.losses",
    "metrics": "jaxseg.learn.metrics",
    "nn": "jaxseg.nn",
    "optimizers": "jaxseg.learn.optimizers",
    "schedules": "jaxseg.schedules",
}

__all__ = [*_NAMES, *_NAMESPACES]


def __getattr__(name: str) -> object:
    """Imports a public name when it is first used (PEP 562)."""
    if name in _NAMESPACES:
        return importlib.import_module(_NAMESPACES[name])
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'jaxseg' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names."""
    return sorted([*globals(), *__all__])
