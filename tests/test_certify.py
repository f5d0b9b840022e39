"""`parity.certify`: correct twins pass, wrong ones are told their first difference and its cause."""

import importlib
import importlib.util
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import optax  # noqa: E402
from flax import nnx  # noqa: E402

from parity import certify  # noqa: E402

PAIRS = Path(__file__).parents[1] / "scripts/pairs"
door = importlib.import_module("parity.certify")


def example(name: str):
    spec = importlib.util.spec_from_file_location(name, PAIRS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(example, steps: int = 3, mistakes: bool = False, **changed):
    names = ("torch_model", "twin", "batch", "loss", "optimizer")
    return certify(**{name: getattr(example, name) for name in names} | changed, steps=steps, mistakes=mistakes)


def failed(report) -> list[str]:
    return [row.name for row in report.rows if not row.passed]


@pytest.fixture(scope="module")
def classifier():
    return example("classifier")


@pytest.fixture(scope="module")
def block():
    return example("transformer_block")


@pytest.fixture(scope="module")
def rnn():
    return example("rnn")


# Correct twins


@pytest.mark.parametrize("name", ["classifier", "transformer_block", "rnn"])
def test_example_passes_with_every_module_compared(name):
    report = run(example(name))
    assert report.passed, failed(report)
    modules = {
        "classifier": ["stem", "norm", "depthwise", "pointwise", "dropout", "head"],
        "transformer_block": ["norm1", "self_attn", "norm2", "linear1", "linear2"],
        "rnn": ["embed", "rnn", "head"],
    }
    assert [line.name for line in report.lines] == modules[name]
    assert max(line.forward.figure for line in report.lines) < 1e-14


# Wrong twins


def test_biased_running_variance_is_named_and_confirmed(classifier):
    def norm(features):
        return nnx.BatchNorm(features, momentum=0.9, rngs=nnx.Rngs(0))

    report = run(classifier, twin=classifier.Twin(norm=norm, rngs=nnx.Rngs(0)))
    assert failed(report)[0] == "running statistics"
    (cause,) = report.causes
    assert cause.what == "norm: BatchNorm: running variance: biased against unbiased"
    assert "n = 384" in cause.confirmed


def test_momentum_convention_is_named_and_confirmed(classifier):
    def norm(features):
        return nnx.BatchNorm(features, rngs=nnx.Rngs(0))

    report = run(classifier, twin=classifier.Twin(norm=norm, rngs=nnx.Rngs(0)))
    assert report.causes[0].what == "norm: BatchNorm: momentum, which weighs the old value in Flax: 0.99 against 0.9"
    assert report.causes[0].confirmed == "momentum=0.9"


def test_same_padding_is_named_and_confirmed(classifier):
    report = run(classifier, twin=classifier.Twin(padding="SAME", rngs=nnx.Rngs(0)))
    assert report.first.name == "depthwise"
    assert report.causes[0].what.startswith("depthwise: convolution: padding, (1, 1) against 'SAME'")
    assert report.causes[0].confirmed == "padding=[(1, 1), (1, 1)]"
    assert "depthwise (Conv2d) is the first to differ" in report.verdict


def test_layer_norm_eps_is_named_and_confirmed(block):
    report = run(block, twin=block.twin_of(epsilon=1e-6))
    assert (report.first.name, report.first.kind) == ("norm1", "LayerNorm")
    assert report.causes[0].what == "norm1: LayerNorm: eps, 1e-05 against 1e-06"
    assert report.causes[0].confirmed == "epsilon=1e-05"
    assert "against" in report.first.forward.worst


def test_approximate_gelu_is_named_before_the_layer_that_gets_it(block):
    report = run(block, twin=block.twin_of(approximate=True))
    assert report.first.name == "linear2"
    assert [cause.what for cause in report.causes] == ["GELU: exact against approximate"]


class Recurrent(nnx.Module):
    def __init__(self, cell, rngs):
        self.embed = nnx.Embed(11, 6, rngs=rngs)
        self.rnn = nnx.RNN(cell(6, 8, rngs=rngs))
        self.head = nnx.Linear(8, 11, rngs=rngs)

    def __call__(self, tokens):
        return self.head(self.rnn(self.embed(tokens))[:, -1])


def test_gru_without_the_second_bias_of_its_candidate_is_named_and_confirmed(rnn):
    torch.manual_seed(0)
    twin = Recurrent(nnx.GRUCell, nnx.Rngs(0))
    report = run(rnn, torch_model=rnn.Model(torch.nn.GRU), twin=twin, optimizer=None)
    assert (report.first.name, report.first.kind) == ("rnn", "GRU")
    assert report.causes[0].what.startswith("GRU: the candidate's second bias")
    assert report.causes[0].confirmed


def test_two_biases_of_an_lstm_in_one_are_equal_until_they_learn(rnn):
    report = run(rnn, twin=Recurrent(nnx.OptimizedLSTMCell, nnx.Rngs(0)))
    assert report.first is None
    assert failed(report)[0] == "weights after step 1"
    assert report.causes[0].what.startswith("recurrent biases: PyTorch has two")


def test_other_constants_of_the_optimizer_are_named_with_what_to_write():
    reference, twin = torch.nn.Sequential(torch.nn.Linear(3, 2)), nnx.Sequential(nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
    batch = np.random.default_rng(0).normal(size=(4, 3)), np.arange(4) % 2
    adamw = (lambda params: torch.optim.AdamW(params, 1e-2)), optax.adamw(1e-2)
    report = certify(reference, twin, batch, loss="cross_entropy", optimizer=adamw, steps=3)
    assert report.first is None
    assert report.causes[0].confirmed.startswith("jaxseg.optimizers.adamw(0.01, weight_decay=0.01")


def test_loss_that_sums_is_named():
    reference, twin = torch.nn.Sequential(torch.nn.Linear(3, 2)), nnx.Sequential(nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
    batch = np.random.default_rng(0).normal(size=(4, 3)), np.zeros((4, 2))
    loss = torch.nn.functional.mse_loss, lambda x, y: ((x - y) ** 2).mean(1).sum()
    report = certify(reference, twin, batch, loss=loss)
    assert failed(report)[0] == "loss"
    assert report.causes[0].what == "loss: 4 times PyTorch's: a sum over the samples against a mean"
