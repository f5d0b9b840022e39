"""The article's rule for initial weights, PyTorch's other rules, and the laws they draw from."""

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import init

from parity.judge.laws import Law, Normal, Uniform

# Name of a function of torch.nn.init without the final underscore, and its options. "torch_default" and
# "torch_default_bias" are the weights and biases that a layer has when it is built.
Call = tuple[str, dict]

DEFAULT: Call = ("torch_default", {})
DEFAULT_BIAS: Call = ("torch_default_bias", {})
ARTICLE: Call = ("kaiming_normal", {"mode": "fan_out", "nonlinearity": "relu"})
RULES: dict[str, tuple[Call, Call]] = {  # for convolutions, for transposed convolutions
    "article": (ARTICLE, DEFAULT),
    "torch_default": (DEFAULT, DEFAULT),
    "kaiming_normal": (("kaiming_normal", {"nonlinearity": "relu"}),) * 2,
    "kaiming_uniform": (("kaiming_uniform", {"nonlinearity": "relu"}),) * 2,
    "xavier_normal": (("xavier_normal", {}),) * 2,
    "xavier_uniform": (("xavier_uniform", {}),) * 2,
}


def init_weights(module: nn.Module) -> None:
    """Initializes one module by the article's rule, for `model.apply`.

    A Conv2d gets Kaiming normal weights (fan_out, ReLU); a BatchNorm2d gets scale 1 and bias 0. The article tests for
    the exact type, so everything else keeps PyTorch's default:

    - ConvTranspose2d, which is not a Conv2d: kaiming_uniform(a=sqrt(5)) with the fan_in that torch reads from
      (in, out, kh, kw), out*kh*kw
    - every bias: U(-1/sqrt(fan_in), 1/sqrt(fan_in))
    """
    if type(module) is nn.Conv2d:
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif type(module) is nn.BatchNorm2d:
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)


def init_by(rule: str) -> Callable[[nn.Module], None]:
    """Function for `model.apply` that initializes by a rule of RULES."""
    if rule == "article":
        return init_weights
    calls = dict(zip((nn.Conv2d, nn.ConvTranspose2d), RULES[rule]))

    def apply(module: nn.Module) -> None:
        name, options = calls.get(type(module), DEFAULT)
        if (name, options) != DEFAULT:
            getattr(init, name + "_")(module.weight, **options)

    return apply


def draw(call: Call, shape: tuple[int, ...], transposed: bool) -> torch.Tensor:
    """A fresh weight of `shape`, or the bias that belongs to it.

    shape: (out, in, h, w), or (in, out, h, w) if `transposed`.
    """
    name, options = call
    if call in (DEFAULT, DEFAULT_BIAS):
        layer = nn.ConvTranspose2d(*shape[:2], shape[2:]) if transposed else nn.Conv2d(*shape[1::-1], shape[2:])
        return (layer.weight if call == DEFAULT else layer.bias).detach()
    if name == "uniform":
        options = {"a": -options["bound"], "b": options["bound"]}
    return getattr(init, name + "_")(torch.empty(shape), **options)


def fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """(fan_in, fan_out) of a weight as PyTorch counts them; `shape` is in its layout."""
    return init._calculate_fan_in_and_fan_out(torch.empty(shape, device="meta"))


def law(call: Call, shape: tuple[int, ...]) -> Law:
    """Law of a weight or of its bias, from PyTorch's documentation; `shape` is the weight's, in PyTorch's layout."""
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
    """Standard deviation of a weight under each reading of its fans, the one of `call` first."""
    fan_in, fan_out = fans(shape)
    of = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}
    claimed = "fan_avg" if call[0].startswith("xavier") else call[1].get("mode", "fan_in")
    order = [claimed, *(fan for fan in of if fan != claimed)]
    return {fan: law(call, shape).sigma * math.sqrt(of[claimed] / of[fan]) for fan in order}
