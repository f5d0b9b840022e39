"""Initial weights as jaxseg and PyTorch draw them, many at a time.

jaxseg draws inside one compiled function, which serves any number of seeds.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
import torch
from flax import nnx

from jaxseg.nn import initializers, unet
from jaxseg.nn.torch_weights import torch_name
from parity.judge.laws import Law
from parity.reference import initialization as reference
from parity.reference.initialization import DEFAULT, DEFAULT_BIAS, RULES, Call
from parity.reference.unet import UNet as ReferenceUNet
from parity.twins import pairs

ENOUGH = 10_000  # numbers to keep of each tensor of a network: large tensors are kept from fewer builds
TIMES = 256  # most draws of a single initializer; biases are small
LAYERS = {  # kernels (h, w, in, out) of each kind of layer, with fans far enough apart to tell
    "first": (3, 3, 3, 16),
    "3x3": (3, 3, 24, 40),
    "head": (1, 1, 32, 2),
    "transposed": (2, 2, 48, 20),
}
TORCH_AXES = {False: (3, 2, 0, 1), True: (2, 3, 0, 1)}  # True for transposed convolutions


@dataclasses.dataclass(frozen=True)
class Size:
    """Sizes and numbers of what is drawn."""

    widths: tuple[int, ...]
    classes: int
    builds: int
    """Networks by the article's rule: a kernel needs about 900 numbers to show truncation."""
    others: int
    """Networks by each other rule; their kernels are pooled."""
    draws: int
    """Least number of draws from each single initializer for each kind of layer."""


FULL = Size((16, 32, 64, 128, 256), classes=2, builds=32, others=1, draws=10_000)
QUICK = Size((8, 16), classes=8, builds=16, others=4, draws=2_000)
ARTICLE, OTHERS = ("article",), tuple(rule for rule in RULES if rule != "article")


class Draws(NamedTuple):
    """Draws of one tensor by jaxseg and by PyTorch, and the law of both."""

    found: np.ndarray
    """jaxseg's draws [times, ...], in the order drawn."""
    reference: np.ndarray
    law: Law
    readings: Mapping[str, float]
    """Standard deviation under each reading of the fans, the claimed one first; empty for a bias."""


Arrays = dict[str, np.ndarray]


class Sample(NamedTuple):
    """Everything that one seed draws."""

    found: dict[str, Arrays]
    """jaxseg's networks by rule, with PyTorch's names and layouts; [builds, ...]."""
    expected: dict[str, Arrays]
    """The reference's networks by rule."""
    initializers: dict[str, Draws]
    """Each single initializer with each kind of argument, for each kind of layer."""


class Case(NamedTuple):
    """An initializer with its arguments, and the kernel (h, w, in, out) that it is for."""

    call: Call
    transposed: bool
    kernel: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array that is drawn."""
        return self.kernel[-1:] if self.call == DEFAULT_BIAS else self.kernel

    @property
    def torch_kernel(self) -> tuple[int, ...]:
        """Shape of the kernel in PyTorch's layout."""
        return tuple(self.kernel[i] for i in TORCH_AXES[self.transposed])

    def initializer(self) -> initializers.Initializer:
        """jaxseg's initializer for the call."""
        name, options = self.call
        if name == "torch_default_bias":
            return initializers.torch_default_bias(self.kernel, transposed=self.transposed)
        fans = {} if name in ("normal", "uniform") else {"transposed": self.transposed}
        return getattr(initializers, name)(**options, **fans)


def cases() -> dict[str, Case]:
    """Every initializer that has a law, with each kind of argument."""
    activations = ({"nonlinearity": "relu"}, {"a": 1.0}, {"nonlinearity": "tanh"})
    kaiming = [{"mode": mode, **activation} for mode in ("fan_in", "fan_out") for activation in activations]
    calls: list[Call] = [(f"kaiming_{kind}", options) for kind in ("normal", "uniform") for options in kaiming]
    calls += [(f"xavier_{kind}", {"gain": gain}) for kind in ("normal", "uniform") for gain in (1.0, 5 / 3)]
    calls += [DEFAULT, DEFAULT_BIAS]
    out = {
        f"{text(call)}, {layer}": Case(call, layer == "transposed", LAYERS[layer]) for call in calls for layer in LAYERS
    }
    plain: list[Call] = [("normal", {"std": 0.02}), ("uniform", {"bound": 0.05})]
    return out | {text(call): Case(call, False, LAYERS["3x3"]) for call in plain}


def text(call: Call) -> str:
    """The call as source text."""
    name, options = call
    return f"{name}({', '.join(f'{k}={v:.3g}' if isinstance(v, float) else f'{k}={v}' for k, v in options.items())})"


class Sampler:
    """Draws a `Sample` for a seed. The first call compiles, with jaxseg's functions as they are then."""

    def __init__(self, size: Size):
        self.builds = [(rule, build) for rule in ARTICLE for build in range(size.builds)]
        self.builds += [(rule, build) for rule in OTHERS for build in range(size.others)]
        self.cases = cases()
        self.times = {name: min(TIMES, math.ceil(size.draws / math.prod(c.shape))) for name, c in self.cases.items()}
        self.size = size
        self._networks = jax.jit(partial(_networks, size), static_argnums=0)
        self._alone = jax.jit(partial(_alone, self.cases))

    def __call__(self, seed: int) -> Sample:
        """Draws everything of `seed` on both sides; restores PyTorch's global generator."""
        keys = jax.random.split(jax.random.key(seed), len(self.builds) + sum(self.times.values()))
        words = np.asarray(jax.random.key_data(keys))
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            of_networks, of_initializers = np.split(words, [len(self.builds)])
            found, expected = (self._stack(of_networks, side) for side in (self._found, self._expected))
            return Sample(found, expected, self._initializers(of_initializers))

    def _stack(self, words: np.ndarray, arrays_of: Callable[[str, np.ndarray], Arrays]) -> dict[str, Arrays]:
        """Stacks the builds of each rule, each tensor from as many builds as give ENOUGH numbers."""
        parts: dict[str, dict[str, list[np.ndarray]]] = {rule: {} for rule in RULES}
        for (rule, build), key in zip(self.builds, words):
            for name, array in arrays_of(rule, key).items():
                kept = parts[rule].setdefault(name, [])
                if build * array.size < ENOUGH:
                    kept.append(array)
        return {rule: {name: np.stack(kept) for name, kept in of.items()} for rule, of in parts.items()}

    def _found(self, rule: str, words: np.ndarray) -> Arrays:
        state = self._networks(ARTICLE if rule in ARTICLE else OTHERS, words)[rule]
        named = ((torch_name(path), variable) for path, variable in nnx.to_flat_state(state))
        return {name: np.asarray(variable[...]).transpose(axes) for (name, axes), variable in named}

    def _expected(self, rule: str, words: np.ndarray) -> Arrays:
        net = ReferenceUNet(classes=self.size.classes, widths=self.size.widths)
        return pairs.arrays(net.apply(reference.init_by(rule)).state_dict())

    def _initializers(self, words: np.ndarray) -> dict[str, Draws]:
        ends = np.cumsum(list(self.times.values()))
        found = self._alone(dict(zip(self.times, np.split(words, ends[:-1]))))
        out = {}
        for name, case in self.cases.items():
            call, kernel, transposed = case.call, case.torch_kernel, case.transposed
            expected = torch.stack([reference.draw(call, kernel, transposed) for _ in range(self.times[name])])
            scaled = call != DEFAULT_BIAS and call[0] not in ("normal", "uniform")
            readings = reference.readings(call, kernel) if scaled else {}
            out[name] = Draws(np.asarray(found[name]), expected.numpy(), reference.law(call, kernel), readings)
        return out


def _networks(size: Size, rules: tuple[str, ...], words: jax.Array) -> dict[str, nnx.State]:
    """U-Nets by each rule, all from one key: separate keys would take XLA seconds more to compile."""
    key, kinds = jax.random.wrap_key_data(words), (nnx.Param, nnx.BatchStat)
    return {
        rule: nnx.state(unet.UNet(size.widths, classes=size.classes, init=rule, rngs=nnx.Rngs(key)), kinds)
        for rule in rules
    }


def _alone(cases: dict[str, Case], words: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Draws of each initializer, one for each of its keys."""
    draws = {}
    for name, case in cases.items():
        draw = partial(case.initializer(), shape=case.shape)
        draws[name] = jax.vmap(draw)(jax.random.wrap_key_data(words[name]))
    return draws


def network_draws(rule: str, found: Arrays, expected: Arrays) -> dict[str, Draws]:
    """Draws of every kernel and bias of a convolution, with the law that the rule gives it."""
    out = {}
    for name in (name for name, array in expected.items() if array.ndim == 5):
        transposed = name.endswith("up.weight")
        kernel, call = expected[name].shape[1:], RULES[rule][transposed]
        weight = found[name].transpose(0, 3, 4, *((1, 2) if transposed else (2, 1)))  # (h, w, in, out), as drawn
        bias = name.removesuffix("weight") + "bias"
        out[name] = Draws(weight, expected[name], reference.law(call, kernel), reference.readings(call, kernel))
        out[bias] = Draws(found[bias], expected[bias], reference.law(DEFAULT_BIAS, kernel), {})
    return out
