"""The init question: do initial weights follow PyTorch's laws, layer by layer?

The two sides draw from different generators, so laws are compared, not numbers. Laws differ in scale, reach or shape:

- scale: the standard deviation, tested exactly by chi-squared, or by Chernoff's bound for a uniform
- reach: a normal is not truncated, a uniform ends at its bound. JAX's own normals end at 2.27 standard deviations, and
  a Kolmogorov-Smirnov test of one small layer misses that 87 times in 100
- shape: Kolmogorov-Smirnov
- fans: which fan of a kernel sets its scale. PyTorch reads transposed kernels as (out, in, h, w)
- independence: no two tensors were drawn from the same numbers

`reference/initialization.py` states the laws, with the gains and fans of `torch.nn.init`. PyTorch's draws are tested
against them too, so a wrong law there fails.

Tested are the U-Net by the article's rule, tensor by tensor in many builds; a U-Net by every other rule, with tensors
pooled by kind; and every single initializer, with each kind of argument, for each kind of layer.

Gates: correct code fails in one run in a million. All tests of a run share that rate (Bonferroni). A row shows the
largest surprise, -log10 of the chance, among its tests. `scripts/false_alarms.py` measures the rate. The fans add
nothing to it: the nearest other reading is 7 standard errors away or more.

Not seen: a scale wrong by less than 4.5 / sqrt(draws), and dependence other than of signs at the same place.
"""

import inspect
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
import torch
from torch.nn import init

from jaxseg.base import config
from jaxseg.nn import initializers
from parity.judge import compare, laws
from parity.judge.answer import Answer, Settings
from parity.judge.compare import Row
from parity.judge.laws import Normal, Uniform
from parity.reference import initialization as reference
from parity.twins.draws import FULL, QUICK, Draws, Sample, Sampler, cases, network_draws

QUESTION = "init"
FALSE_ALARMS = 1e-6  # chance that a run fails on correct code


class Test(NamedTuple):
    """A statistical test, the row that reports it, and its kind."""

    row: str
    kind: str
    run: Callable[[float], Row]  # of the allowed rate of false alarms


def run(settings: Settings) -> Answer:
    """Answers the init question; another seed draws other weights on both sides.

    Evidence:

    - "tests": number of tests
    - "false_alarm": rate for a run
    - "histograms": [{"name", "law", "sigma" or "bound", "edges", "jaxseg", "torch"}], where "law" is "normal" or
      "uniform", edges are [bins + 1] and densities [bins]; one tensor also has "jax_he_normal"
    """
    with jax.enable_x64(False):
        sample = Sampler(QUICK if settings.quick else FULL)(settings.seed)
        networks = {rule: network_draws(rule, sample.found[rule], sample.expected[rule]) for rule in sample.found}
        judged = judge(all_tests(networks, sample.initializers))
        rows = [*network_rows(sample, networks["article"]), *grouped(judged), *initializer_rows(sample)]
        pictures = list(histograms(sample, networks["article"], settings.seed))
    return Answer(QUESTION, tuple(rows), {"tests": len(judged), "false_alarm": FALSE_ALARMS, "histograms": pictures})


def judge(tests: Iterable[Test]) -> list[tuple[Test, Row]]:
    """Runs every test of a run, each at its share of FALSE_ALARMS."""
    tests = list(tests)
    return [(test, test.run(FALSE_ALARMS / len(tests))) for test in tests]


def grouped(judged: list[tuple[Test, Row]]) -> list[Row]:
    """One row for all tests with the same row name."""
    rows: dict[str, list[Row]] = {}
    for test, row in judged:
        rows.setdefault(test.row, []).append(row)
    note = f"of {len(judged)} tests; false alarms in {FALSE_ALARMS:.0e} of runs"
    return [compare.worst_of(QUESTION, name, of, note=f"{len(of)} {note}") for name, of in rows.items()]


# Statistical tests ----------------------------------------------------------------------------------------------------


def all_tests(networks: Mapping[str, Mapping[str, Draws]], initializers: Mapping[str, Draws]) -> Iterator[Test]:
    """Every statistical test of a run."""
    for rule, tensors in networks.items():
        pooled = {f"{rule}: {kind}": tensor for kind, tensor in pool(tensors).items()}
        if rule == "article":
            for name, tensor in tensors.items():
                yield from law_tests("U-Net", name, tensor)
            for name, (found, expected, _, _) in pooled.items():
                test = partial(laws.kolmogorov_smirnov, QUESTION, name, found, expected)
                yield Test("U-Net: pooled, against PyTorch's", "Kolmogorov-Smirnov, two samples", test)
        else:
            for name, tensor in pooled.items():
                yield from law_tests("U-Net by other rules", name, tensor)
        yield independence("U-Net", rule, tensors)
    for name, tensor in initializers.items():
        yield from law_tests("initializers", name, tensor)
    yield independence("initializers", "initializers", initializers)


def law_tests(of: str, name: str, tensor: Draws) -> Iterator[Test]:
    """Tests of one tensor: scale, reach and shape of jaxseg's draws, and scale of PyTorch's against the same law."""
    found, expected, law, _ = tensor
    kind = type(law).__name__.lower()
    yield Test(f"{of}: standard deviation", f"spread, {kind}", partial(laws.spread, QUESTION, name, found, law))
    if isinstance(law, Normal):
        test = partial(laws.truncation, QUESTION, name, found, law.sigma)
        yield Test(f"{of}: not truncated", "truncation", test)
    else:
        yield Test(f"{of}: bounds", "support", partial(laws.support, QUESTION, name, found, law.bound))
    test = partial(laws.kolmogorov_smirnov, QUESTION, name, found, law)
    yield Test(f"{of}: shape", f"Kolmogorov-Smirnov, {kind}", test)
    yield Test(f"{of}: PyTorch's draws", f"spread, {kind}", partial(laws.spread, QUESTION, name, expected, law))


def independence(of: str, name: str, tensors: Mapping[str, Draws]) -> Test:
    """Test that no two tensors were drawn from the same numbers."""
    found = {key: tensor.found for key, tensor in tensors.items()}
    return Test(f"{of}: independent", "independence", partial(laws.independent, QUESTION, name, found))


def pool(tensors: Mapping[str, Draws]) -> dict[str, Draws]:
    """Pools the tensors of each kind, each in units of its law."""
    kinds = {"kernels": lambda name: ".up." not in name and "weight" in name}
    kinds |= {"transposed kernels": lambda name: name.endswith("up.weight"), "biases": lambda name: "bias" in name}
    out = {}
    for kind, belongs in kinds.items():
        of = [tensor for name, tensor in tensors.items() if belongs(name)]
        normal = isinstance(of[0].law, Normal)
        scales = [tensor.law.sigma if normal else tensor.law.bound for tensor in of]
        found = np.concatenate([tensor.found.ravel() / scale for tensor, scale in zip(of, scales)])
        expected = np.concatenate([tensor.reference.ravel() / scale for tensor, scale in zip(of, scales)])
        out[kind] = Draws(found, expected, Normal(1.0) if normal else Uniform(1.0), {})
    return out


# Exact rows -----------------------------------------------------------------------------------------------------------


def network_rows(sample: Sample, article: Mapping[str, Draws]) -> list[Row]:
    """Rows for names and shapes of all arrays, initial values of BatchNorm, and the fans of the kernels."""
    found, expected = (
        {f"{rule}: {name}": array for rule, arrays in side.items() for name, array in arrays.items()}
        for side in (sample.found, sample.expected)
    )
    shapes = ({name: np.array(array.shape) for name, array in side.items()} for side in (found, expected))
    of_norms = {name for name in expected if f"{name.rpartition('.')[0]}.running_var" in expected}
    norms = ({name: array for name, array in side.items() if name in of_norms} for side in (found, expected))
    note = f"{len(expected)} arrays by {len(sample.expected)} rules"
    return [
        compare.equal_bytes(QUESTION, "U-Net: names and shapes", *shapes, note=note),
        compare.equal_bytes(QUESTION, "U-Net: BatchNorm", *norms, note="weight 1, bias 0, mean 0, variance 1"),
        fans("U-Net: fans", article, "fan_out; transposed, PyTorch's fan_in"),
    ]


def initializer_rows(sample: Sample) -> list[Row]:
    """Rows for the fans, gains and constants of single initializers, and one that nothing is left out."""
    names = ("linear", "conv2d", "conv_transpose2d", "sigmoid", "tanh", "relu", "leaky_relu", "selu")
    gains = {name: np.array(initializers.calculate_gain(name, 0.2)) for name in names}
    expected_gains = {name: np.array(init.calculate_gain(name, 0.2)) for name in names}
    shapes = {case.torch_kernel: (case.kernel, case.transposed) for case in cases().values()}
    counted = {str(shape): np.array(initializers.fans(*given)) for shape, given in shapes.items()}
    expected_fans = {str(shape): np.array(reference.fans(shape)) for shape in shapes}
    filled = np.asarray(initializers.constant(0.1)(jax.random.key(0), (2, 3)))
    return [
        fans("initializers: fans", sample.initializers, "fan_in, fan_out and their mean, by the mode asked for"),
        compare.equal_bytes(QUESTION, "initializers: fans of shapes", counted, expected_fans),
        compare.close(QUESTION, "initializers: gains", gains, expected_gains, 1e-15, measure=compare.max_abs),
        compare.equal_bytes(QUESTION, "initializers: constant", filled, init.constant_(torch.empty(2, 3), 0.1).numpy()),
        every_initializer(),
    ]


def fans(name: str, tensors: Mapping[str, Draws], note: str) -> Row:
    """Row for the reading of the fans that sets the scale of each kernel."""
    kernels = {name: tensor for name, tensor in tensors.items() if tensor.readings}
    found = {name: float(np.sqrt(np.square(kernel.found, dtype=np.float64).mean())) for name, kernel in kernels.items()}
    return laws.fan_rule(QUESTION, name, found, {name: kernel.readings for name, kernel in kernels.items()}, note)


def every_initializer() -> Row:
    """Row that passes if every initializer, rule and choice of the trainer has a counterpart here."""
    asked = {case.call[0] for case in cases().values()} | {"calculate_gain", "fans", "constant"}
    public = {name for name, f in vars(initializers).items() if inspect.isfunction(f) and name[0] != "_"}
    known = {name for name in public if getattr(initializers, name).__module__ == initializers.__name__}
    rules = set(initializers.RULES) | set(typing.get_args(typing.get_type_hints(config.Model)["init"]))
    left_out = sorted(known - asked) + sorted(rules ^ set(reference.RULES))
    note = f"{len(asked)} functions, {len(rules)} rules"
    return compare.at_most(QUESTION, "initializers: none left out", len(left_out), 0, note, ", ".join(left_out))


# Pictures -------------------------------------------------------------------------------------------------------------


def histograms(sample: Sample, article: Mapping[str, Draws], seed: int) -> Iterator[dict]:
    """Histograms of some tensors on both sides; one also has `jax.nn.initializers.he_normal`."""
    decoder, xavier = "up1.conv.double_conv.0.weight", "xavier_normal(gain=1), 3x3"
    biases = ("inc.double_conv.3.bias", "up1.up.bias")
    tensors = {name: article[name] for name in ("inc.double_conv.0.weight", decoder, "up1.up.weight", *biases)}
    for name, tensor in (tensors | {xavier: sample.initializers[xavier]}).items():
        picture = histogram(name, tensor)
        if name == decoder:
            other = jax.nn.initializers.he_normal(batch_axis=0)(jax.random.key(seed), tensor.found.shape)
            picture["jax_he_normal"] = density(other, picture["edges"])
        yield picture


def histogram(name: str, tensor: Draws, bins: int = 32) -> dict:
    """Histogram of one tensor, as in the evidence of `run`."""
    kind, parameter, reach = ("normal", "sigma", 4.0) if isinstance(tensor.law, Normal) else ("uniform", "bound", 1.2)
    value = getattr(tensor.law, parameter)
    edges = np.linspace(-reach * value, reach * value, bins + 1).tolist()
    sides = {"jaxseg": density(tensor.found, edges), "torch": density(tensor.reference, edges)}
    return {"name": name, "law": kind, parameter: value, "edges": edges, **sides}


def density(numbers: np.ndarray, edges: list[float]) -> list[float]:
    """Density in each bin: share of the numbers over the bin's width."""
    return (np.histogram(np.ravel(numbers), edges)[0] / np.size(numbers) / np.diff(edges)).tolist()
