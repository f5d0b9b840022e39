"""Do initial weights follow the laws that PyTorch's do, layer by layer?

The two draw from different generators, so laws are compared, not numbers. Two laws differ in scale, in shape or in
reach, and each has its test: the standard deviation (exact: chi-squared, or Chernoff's bound for the uniform), whether
a normal is plain (JAX's own initializers cut theirs at 2.27 standard deviations, which a Kolmogorov-Smirnov test of
one small layer misses 87 times in 100) or a uniform ends where it should, and Kolmogorov-Smirnov for the rest. Which
of a kernel's fans sets the scale has a row of its own, for the sake of the transposed convolutions, which PyTorch
reads as (out, in, h, w). The laws are written out here with `torch.nn.init`'s own gains and fans, and PyTorch's draws
have to pass the same tests, so that a law misread here cannot pass.

Gates: correct code fails in one run of a million. That rate is shared by all tests of a run (Bonferroni), and a row
shows the largest surprise, -log10 of the chance, among the tests it stands for. The smallest layers are drawn in
BUILDS networks. Not seen: dependence between weights, and a scale wrong by less than 4 / sqrt(draws).
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
import torch
from flax import nnx
from torch.nn import init

from jaxseg import initializers
from jaxseg.convert import to_torch
from jaxseg.model import UNet
from parity import compare
from parity.answer import Answer, Settings
from parity.compare import Law, Normal, Row, Uniform
from parity.pairs import arrays
from parity.reference.initialization import init_weights
from parity.reference.unet import UNet as ReferenceUNet

QUESTION = "init"
FALSE_ALARMS = 1e-6  # chance that a run fails on correct code
BUILDS = 32  # the 1x1 kernel has 32 weights; 851 draws show truncation at this rate
ENOUGH = 10_000
KERNELS = {False: (3, 3, 24, 40), True: (2, 2, 48, 20)}  # (h, w, in, out), by whether the convolution is transposed
TORCH_AXES = {False: (3, 2, 0, 1), True: (2, 3, 0, 1)}

# An initializer by the name and arguments that it has both here and, with a final underscore, in torch.nn.init.
Call = tuple[str, dict]
DEFAULT: Call = ("kaiming_uniform", {"a": math.sqrt(5)})
ARTICLE: Call = ("kaiming_normal", {"mode": "fan_out", "nonlinearity": "relu"})
RULES: dict[str, tuple[Call, Call]] = {  # for convolutions and for transposed ones
    "article": (ARTICLE, DEFAULT),
    "torch_default": (DEFAULT, DEFAULT),
    "kaiming_normal": (("kaiming_normal", {"nonlinearity": "relu"}),) * 2,
    "kaiming_uniform": (("kaiming_uniform", {"nonlinearity": "relu"}),) * 2,
    "xavier_normal": (("xavier_normal", {}),) * 2,
    "xavier_uniform": (("xavier_uniform", {}),) * 2,
}


class Draws(NamedTuple):
    """What one tensor of weights is drawn as: by jaxseg, by PyTorch, and the law of both."""

    name: str
    found: np.ndarray
    reference: np.ndarray
    law: Law


class Test(NamedTuple):
    """One test of one tensor, and the row in which it is reported."""

    row: str
    run: Callable[[float], Row]  # with the rate of false alarms it may have


def run(settings: Settings) -> Answer:
    """The init question; another seed draws other weights on both sides."""
    seed = settings.seed
    with jax.enable_x64(False), torch.random.fork_rng():
        torch.manual_seed(seed)
        found, expected = jax_networks(seed), torch_networks()
        same = same_parameters(found, expected)
        if not same.passed:
            return Answer(QUESTION, (same,))
        network = list(network_draws(found, expected))
        tests = [test for draws in network for test in law_tests("U-Net", draws)] + list(pooled_tests(network))
        tests += [test for row, draws in initializer_draws(seed) for test in law_tests(row, draws)]
        rows = {}
        for test in tests:
            rows.setdefault(test.row, []).append(test.run(FALSE_ALARMS / len(tests)))
    note = f"of {len(tests)} tests; false alarm in {FALSE_ALARMS:.0e} of runs"
    rows = [
        same,
        batch_norms(found, expected),
        fans(found),
        *(compare.worst_of(QUESTION, row, of, note=f"{len(of)} {note}") for row, of in rows.items()),
        gains(),
        every_rule(),
    ]
    return Answer(QUESTION, tuple(rows))


# The network ----------------------------------------------------------------------------------------------------------


def jax_networks(seed: int) -> dict[str, np.ndarray]:
    """Parameters and statistics of freshly made U-Nets by the article's rule, under PyTorch's names, in its layouts."""
    keys = jax.random.split(jax.random.key(seed), BUILDS)
    return stack([to_torch(UNet(init="article", rngs=nnx.Rngs(key))) for key in keys])


def torch_networks() -> dict[str, np.ndarray]:
    """The same of the reference."""
    return stack([arrays(ReferenceUNet().apply(init_weights).state_dict()) for _ in range(BUILDS)])


def stack(builds: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Each array of as many builds as it takes to have ENOUGH numbers, or of all: [builds, ...]."""
    needed = {name: math.ceil(ENOUGH / array.size) for name, array in builds[0].items()}
    return {name: np.stack([build[name] for build in builds[: needed[name]]]) for name in builds[0]}


def network_draws(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> Iterator[Draws]:
    """Every kernel and every bias of a convolution, with the law that the article's rule gives it."""
    for name in kernels(expected):
        shape = expected[name].shape[1:]
        bias = name.removesuffix("weight") + "bias"
        yield Draws(name, found[name], expected[name], law(RULES["article"][is_transposed(name)], shape))
        yield Draws(bias, found[bias], expected[bias], Uniform(1 / math.sqrt(torch_fans(shape)[0])))


def kernels(network: dict[str, np.ndarray]) -> list[str]:
    """Names of the convolutions' weights: [builds, out, in, h, w], or [builds, in, out, h, w] if transposed."""
    return [name for name, array in network.items() if array.ndim == 5]


def is_transposed(kernel: str) -> bool:
    """Whether this is the kernel of a transposed convolution."""
    return kernel.endswith("up.weight")


def same_parameters(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> Row:
    """Both networks have the same arrays."""
    shapes = ({name: np.array(array.shape) for name, array in side.items()} for side in (found, expected))
    return compare.equal_bytes(QUESTION, "U-Net: names and shapes", *shapes, note=f"{len(expected)} arrays")


def batch_norms(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> Row:
    """Every BatchNorm starts as the reference's does."""
    names = [name for name in expected if f"{name.rpartition('.')[0]}.running_var" in expected]
    sides = ({name: side[name] for name in names} for side in (found, expected))
    return compare.equal_bytes(QUESTION, "U-Net: BatchNorm", *sides, note="weight 1, bias 0, mean 0, variance 1")


def fans(found: dict[str, np.ndarray]) -> Row:
    """fan_out for convolutions; for the transposed, the out*h*w that PyTorch reads as fan_in."""
    readings, stds = {}, {}
    for name in kernels(found):
        shape, call = found[name].shape[1:], RULES["article"][is_transposed(name)]
        fan_in, fan_out = torch_fans(shape)
        of = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}
        claimed = call[1].get("mode", "fan_in")
        order = [claimed, *(fan for fan in of if fan != claimed)]
        readings[name] = {fan: law(call, shape).sigma * math.sqrt(of[claimed] / of[fan]) for fan in order}
        stds[name] = float(np.sqrt(np.square(found[name]).mean()))
    return compare.fan_rule(QUESTION, "U-Net: fans", stds, readings, note="fan_out; transposed, PyTorch's fan_in")


def pooled_tests(network: list[Draws]) -> Iterator[Test]:
    """All layers of one kind together, each in units of its standard deviation, against PyTorch's."""
    for kind in (Normal, Uniform):
        layers = [draws for draws in network if isinstance(draws.law, kind)]
        found = np.concatenate([draws.found.ravel() / draws.law.sigma for draws in layers])
        reference = np.concatenate([draws.reference.ravel() / draws.law.sigma for draws in layers])
        name = f"{len(layers)} {kind.__name__.lower()} layers"
        yield Test("U-Net: pooled", partial(compare.kolmogorov_smirnov, QUESTION, name, found, reference))


# Laws -----------------------------------------------------------------------------------------------------------------


def torch_fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """(fan_in, fan_out) that PyTorch counts for a weight of `shape`, in its layout."""
    return init._calculate_fan_in_and_fan_out(torch.empty(shape, device="meta"))


def law(call: Call, shape: tuple[int, ...]) -> Law:
    """The law of an initializer of torch.nn.init for a weight in PyTorch's layout, from PyTorch's documentation."""
    name, options = call
    fan_in, fan_out = torch_fans(shape)
    if name.startswith("xavier"):
        sigma = options.get("gain", 1.0) * math.sqrt(2 / (fan_in + fan_out))
    else:
        gain = init.calculate_gain(options.get("nonlinearity", "leaky_relu"), options.get("a", 0))
        sigma = gain / math.sqrt(fan_out if options.get("mode") == "fan_out" else fan_in)
    return Normal(sigma) if name.endswith("normal") else Uniform(math.sqrt(3) * sigma)


def law_tests(of: str, draws: Draws) -> Iterator[Test]:
    """Of jaxseg's draws: scale, reach and shape against the law. Of PyTorch's: scale, so that the law is theirs too."""
    name, found, reference, claimed = draws
    yield Test(f"{of}: standard deviation", partial(compare.spread, QUESTION, name, found, claimed))
    if isinstance(claimed, Normal):
        yield Test(f"{of}: not truncated", partial(compare.truncation, QUESTION, name, found, claimed.sigma))
    else:
        yield Test(f"{of}: bounds", partial(compare.support, QUESTION, name, found, claimed.bound))
    yield Test(f"{of}: shape", partial(compare.kolmogorov_smirnov, QUESTION, name, found, claimed))
    yield Test(f"{of}: PyTorch's draws", partial(compare.spread, QUESTION, name, reference, claimed))


# Initializers by themselves -------------------------------------------------------------------------------------------


def initializer_draws(seed: int) -> Iterator[tuple[str, Draws]]:
    """Every initializer with every kind of argument, then both halves of every rule, for one kernel of each kind."""
    activations = ({"nonlinearity": "relu"}, {"a": 0.2}, {"nonlinearity": "tanh"})
    kaiming = [{"mode": mode, **activation} for mode in ("fan_in", "fan_out") for activation in activations]
    calls = [(f"kaiming_{kind}", options) for kind in ("normal", "uniform") for options in kaiming]
    calls += [(f"xavier_{kind}", {"gain": gain}) for kind in ("normal", "uniform") for gain in (1.0, 5 / 3)]
    cases = []
    for transposed in KERNELS:
        for call in calls:
            initializer = getattr(initializers, call[0])(**call[1], transposed=transposed)
            cases.append(("initializers", call, transposed, initializer))
        cases.append(("initializers", DEFAULT, transposed, initializers.torch_default(transposed=transposed)))
        for name, rule in initializers.RULES.items():
            if name in RULES:
                cases.append(("rules", RULES[name][transposed], transposed, rule.up if transposed else rule.conv))

    for key, case in zip(jax.random.split(jax.random.key(seed + 1), len(cases)), cases, strict=True):
        row, (name, options), transposed, initializer = case
        shape = KERNELS[transposed]
        reference = getattr(init, name + "_")(torch.empty([shape[i] for i in TORCH_AXES[transposed]]), **options)
        label = f"{name}({', '.join(f'{k}={v}' for k, v in options.items())}){' transposed' if transposed else ''}"
        claimed = law((name, options), reference.shape)
        yield row, Draws(label, np.asarray(initializer(key, shape)), reference.numpy(), claimed)


def gains() -> Row:
    """`calculate_gain` for every name that both know."""
    names = ("linear", "conv2d", "conv_transpose2d", "sigmoid", "tanh", "relu", "leaky_relu", "selu")
    found = {name: np.array(initializers.calculate_gain(name, 0.2)) for name in names}
    expected = {name: np.array(init.calculate_gain(name, 0.2)) for name in names}
    return compare.close(QUESTION, "initializers: gains", found, expected, 1e-15, measure=compare.max_abs)


def every_rule() -> Row:
    """No rule of jaxseg is left without a counterpart here."""
    unknown = sorted(set(initializers.RULES) ^ set(RULES))
    return compare.at_most(QUESTION, "rules: none left out", len(unknown), 0, worst=", ".join(unknown))
