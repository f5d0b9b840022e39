"""One pass of a network in low precision on both sides, and in float64 to measure their errors."""

import copy
import dataclasses
from collections.abc import Callable

import jax
import torch

from jaxseg.nn.torch_weights import from_torch
from jaxseg.nn.unet import UNet
from parity.judge import compare
from parity.twins import pairs, passes
from parity.twins.passes import Pass

Get = Callable[[Pass], compare.Arrays]
"""Selects arrays of a pass."""


@dataclasses.dataclass(frozen=True)
class Network:
    """Everything a compiled pass depends on: `dtype` is "float32" or "bfloat16", images are `side` pixels square."""

    dtype: str
    widths: tuple[int, ...]
    upsample: str = "transpose"
    conv_bias: bool = True
    side: int = 64
    batch: int = 4


@dataclasses.dataclass(frozen=True)
class Case:
    """A network, and the number added to the biases that BatchNorm cancels."""

    name: str
    network: Network
    raised: float = 0.0

    def start(self, seed: int, dtype: str | None = None) -> tuple[UNet, torch.nn.Module, pairs.Batch]:
        """Both networks, in `dtype` or else the case's own, and a batch."""
        n = self.network
        net, reference = pairs.networks(seed, dtype or n.dtype, n.widths, upsample=n.upsample, conv_bias=n.conv_bias)
        if self.raised:
            with torch.no_grad():
                for name, parameter in reference.named_parameters():
                    parameter += self.raised * passes.canceled(name)
            from_torch(net, reference.state_dict())
        (batch,) = pairs.batches(seed, [n.batch], n.side, n.side)
        return net, reference, batch


@dataclasses.dataclass(frozen=True)
class Trial:
    """Passes of one seed."""

    ours: Pass
    theirs: Pass
    truths: tuple[Pass, Pass]
    """Passes in float64 that take the branches of jaxseg and of PyTorch."""
    flips: tuple[int, int]
    """Number of branches in which jaxseg and PyTorch differ from float64 with its own branches."""
    layers: dict[str, tuple[str, str]]
    """jaxseg's name of each layer -> PyTorch's name and its kind, in the order of computation."""

    def errors(self, get: Get, layer: str | None = None) -> tuple[float, float, float]:
        """Relative l2 from jaxseg to float64, PyTorch to float64, and jaxseg to PyTorch; of one layer if given."""

        def part(p: Pass) -> compare.Arrays:
            return get(p) if layer is None else {key: x for key, x in get(p).items() if key == layer}

        return (
            compare.relative_l2(part(self.ours), part(self.truths[0])),
            compare.relative_l2(part(self.theirs), part(self.truths[1])),
            compare.relative_l2(part(self.ours), part(self.theirs)),
        )

    def label(self, layer: str) -> str:
        """Both names of a layer, jaxseg's and PyTorch's."""
        return f"{layer} / {self.layers[layer][0]}"


def trial(case: Case, seed: int, compiled: Callable[[UNet, pairs.Batch], Pass], device: str = "cpu") -> Trial:
    """Trial of a case with the weights and images of `seed`.

    compiled: the result of `passes.ours`.
    device: "cpu" or "gpu"; float64 is computed on the CPU.
    """
    net, reference, batch = case.start(seed)
    with jax.enable_x64(False):
        sides = compiled(net, batch), passes.theirs(reference, batch, case.network.dtype, device=device)
    exact = copy.deepcopy(reference).double()
    truths = tuple(passes.theirs(exact, batch, "float64", along=side) for side in sides)
    free = passes.branches(passes.theirs(exact, batch, "float64").outputs)
    flips = tuple(
        sum(int((choice != free[name]).sum()) for name, choice in passes.branches(side.outputs).items())
        for side in sides
    )
    modules = dict(reference.named_modules())
    layers = {key: (name, type(modules[name]).__name__) for key, name in passes.layer_names(reference).items()}
    return Trial(*sides, truths, flips, layers)
