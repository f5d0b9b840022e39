"""Networks with an encoder on both sides, with equal weights."""

import contextlib
from collections.abc import Iterator
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from jaxseg.nn import encoder_unet
from jaxseg.nn.encoder_unet import EncoderUNet
from jaxseg.nn.torch_weights import from_torch
from parity.reference import resnet
from parity.reference.initialization import init_weights


def networks(seed: int, name: str, base: int, in_channels: int = 3) -> tuple[EncoderUNet, resnet.EncoderUNet]:
    """jaxseg's network and the reference's in float64, with weights and statistics that the reference draws.

    name: of the encoder.
    base: channels of its first convolution.
    """
    torch.manual_seed(seed)
    reference = resnet.EncoderUNet(name, in_channels, 2, base).apply(init_weights).double()
    for module in reference.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # as after some training
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.2)
            torch.nn.init.normal_(module.running_mean, std=0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    net = empty(name, base, in_channels)
    from_torch(net, reference.state_dict())
    return net, reference


def empty(name: str, base: int, in_channels: int = 3) -> EncoderUNet:
    """jaxseg's network in float64, all weights 0: to draw them would be slow."""
    kinds = {"dtype": jnp.float64, "param_dtype": jnp.float64}
    net = nnx.eval_shape(lambda: EncoderUNet(name, in_channels, 2, base=base, **kinds, rngs=nnx.Rngs(0)))
    nnx.update(net, jax.tree.map(lambda x: jnp.asarray(np.zeros(x.shape, x.dtype)), nnx.state(net)))
    return net


@contextlib.contextmanager
def thin(base: int) -> Iterator[None]:
    """Context where the networks that settings describe have `base` channels at first, on both sides."""
    with mock.patch.object(encoder_unet, "BASE", base), mock.patch.object(resnet, "BASE", base):
        yield
