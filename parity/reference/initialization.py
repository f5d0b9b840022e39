"""The article's rule for initial weights, PyTorch's other rules, and the laws that they draw from."""

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import init

from parity.judge.laws import Law, Normal, Uniform

# A function of torch.nn.init by its name without the final underscore; or "torch_default" and "torch_default_bias",
# for what a layer gives itself when it is built.
Call = tuple[str, dict]

DEFAULT: Call = ("torch_default", {})
DEFAULT_BIAS: Call = ("torch_default_bias", {})
ARTICLE: Call = ("kaiming_normal", {"mode": "fan_out", "nonlinearity": "relu"})
RULES: dict[str, tuple[Call, Call]] = {  # for convolutions and for transposed ones
    "article": (ARTICLE, DEFAULT),
    "torch_default": (DEFAULT, DEFAULT),
    "kaiming_normal": (("kaiming_normal", {"nonlinearity": "relu"}),) * 2,
    "kaiming_uniform": (("kaiming_uniform", {"nonlinearity": "relu"}),) * 2,
    "xavier_normal": (("xavier_normal", {}),) * 2,
    "xavier_uniform": (("xavier_uniform", {}),) * 2,
}


def init_weights(module: nn.Module) -> None:
    """Kaiming normal (fan_out, ReLU) for a Conv2d, 1 and 0 for a BatchNorm2d; for `model.apply`, at any depth.

    The article asks for the exact type, so everything else keeps what PyTorch gave it when it was built: a
    ConvTranspose2d (no Conv2d to PyTorch) its kaiming_uniform(a=sqrt(5)) over the fan_in that torch reads from
    (in, out, kh, kw), which is out*kh*kw; and every bias U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
    """
    if type(module) is nn.Conv2d:
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif type(module) is nn.BatchNorm2d:
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)


def init_by(rule: str) -> Callable[[nn.Module], None]:
    """What `model.apply` is given for a rule of RULES."""
    if rule == "article":
        return init_weights
    calls = dict(zip((nn.Conv2d, nn.ConvTranspose2d), RULES[rule]))

    def apply(module: nn.Module) -> None:
        name, options = calls.get(type(module), DEFAULT)
        if (name, options) != DEFAULT:
            getattr(init, name + "_")(module.weight, **options)

    return apply


def draw(call: Call, shape: tuple[int, ...], transposed: bool) -> torch.Tensor:
    """A fresh weight of `shape`, (out, in, h, w) or, transposed, (in, out, h, w); or the bias that goes with it."""
    name, options = call
    if call in (DEFAULT, DEFAULT_BIAS):
        layer = nn.ConvTranspose2d(*shape[:2], shape[2:]) if transposed else nn.Conv2d(*shape[1::-1], shape[2:])
        return (layer.weight if call == DEFAULT else layer.bias).detach()
    if name == "uniform":
        options = {"a": -options["bound"], "b": options["bound"]}
    return getattr(init, name + "_")(torch.empty(shape), **options)


def fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """(fan_in, fan_out) that PyTorch counts for a weight of `shape`, in its layout."""
    return init._calculate_fan_in_and_fan_out(torch.empty(shape, device="meta"))


def law(call: Call, shape: tuple[int, ...]) -> Law:
    """The law of a weight of `shape` in PyTorch's layout, or of its bias, from PyTorch's documentation."""
    name, options = call
    fan_in, fan_out = fans(shape)
    if name == "normal":
        return Normal(options["std"])
    if name == "uniform":
        return Uniform(options["bound"])
    if call in (DEFAULT, DEFAULT_BIAS):
        return Uniform(1 / math.sqrt(fan_in))
    if name.startswith("xavier"):
        sigma = options.get("gain", 1.0) * math.sqrt(2 / (fan_in + fan_out))
    else:
        gain = init.calculate_gain(options.get("nonlinearity", "leaky_relu"), options.get("a", 0))
        sigma = gain / math.sqrt(fan_out if options.get("mode") == "fan_out" else fan_in)
    return Normal(sigma) if name.endswith("normal") else Uniform(math.sqrt(3) * sigma)


def readings(call: Call, shape: tuple[int, ...]) -> dict[str, float]:
    """The standard deviation of a weight under each reading of its fans, the one that `call` means first."""
    fan_in, fan_out = fans(shape)
    of = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}
    claimed = "fan_avg" if call[0].startswith("xavier") else call[1].get("mode", "fan_in")
    order = [claimed, *(fan for fan in of if fan != claimed)]
    return {fan: law(call, shape).sigma * math.sqrt(of[claimed] / of[fan]) for fan in order}
