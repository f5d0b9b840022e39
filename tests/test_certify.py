"""`parity.certify`: correct twins pass, wrong ones are told their first difference and its cause."""

import doctest
import importlib
import importlib.util
import types
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import jax  # noqa: E402
import optax  # noqa: E402
from flax import nnx  # noqa: E402

from jaxseg.base.errors import UserError  # noqa: E402
from parity import certify  # noqa: E402
from parity.certificate import certificate  # noqa: E402

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


@pytest.mark.full
def test_same_padding_is_named_and_confirmed(classifier):
    report = run(classifier, twin=classifier.Twin(padding="SAME", rngs=nnx.Rngs(0)), optimizer=None)
    assert report.first.name == "depthwise"
    assert report.causes[0].what.startswith("depthwise: convolution: padding, (1, 1) against 'SAME'")
    assert report.causes[0].confirmed == "padding=[(1, 1), (1, 1)]"
    assert "depthwise (Conv2d) is the first to differ" in report.verdict


@pytest.mark.full
def test_layer_norm_eps_is_named_and_confirmed(block):
    report = run(block, twin=block.twin_of(epsilon=1e-6), optimizer=None)
    assert (report.first.name, report.first.kind) == ("norm1", "LayerNorm")
    assert report.causes[0].what == "norm1: LayerNorm: eps, 1e-05 against 1e-06"
    assert report.causes[0].confirmed == "epsilon=1e-05"
    assert "against" in report.first.forward.worst


@pytest.mark.full
def test_approximate_gelu_is_named_before_the_layer_that_gets_it(block):
    report = run(block, twin=block.twin_of(approximate=True), optimizer=None)
    assert report.first.name == "linear2"
    assert [cause.what for cause in report.causes] == ["GELU: exact against approximate"]


class Recurrent(nnx.Module):
    def __init__(self, cell, rngs):
        self.embed = nnx.Embed(11, 6, rngs=rngs)
        self.rnn = nnx.RNN(cell(6, 8, rngs=rngs))
        self.head = nnx.Linear(8, 11, rngs=rngs)

    def __call__(self, tokens):
        return self.head(self.rnn(self.embed(tokens))[:, -1])


@pytest.mark.full
def test_gru_without_the_second_bias_of_its_candidate_is_named_and_confirmed(rnn):
    torch.manual_seed(0)
    twin = Recurrent(nnx.GRUCell, nnx.Rngs(0))
    report = run(rnn, torch_model=rnn.Model(torch.nn.GRU), twin=twin, optimizer=None)
    assert (report.first.name, report.first.kind) == ("rnn", "GRU")
    assert report.causes[0].what.startswith("GRU: the candidate's second bias")
    assert report.causes[0].confirmed


@pytest.mark.full
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


def test_bias_correction_of_optax_in_float32_is_named_and_confirmed():
    torch.manual_seed(0)
    reference, twin = torch.nn.Sequential(torch.nn.Linear(3, 2)), nnx.Sequential(nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
    batch = np.random.default_rng(0).normal(size=(4, 3)), np.arange(4) % 2
    adam = (lambda params: torch.optim.Adam(params, 0.1)), optax.adam(0.1)
    report = certify(reference, twin, batch, loss="cross_entropy", optimizer=adam, steps=10, mistakes=False)
    assert failed(report) == ["float32: weights after 10 steps"]
    assert report.causes[0].what.startswith("Adam: bias correction in float32")
    assert report.causes[0].confirmed.startswith("jaxseg.optimizers.adam(0.1, ")


def test_loss_that_sums_is_named():
    reference, twin = torch.nn.Sequential(torch.nn.Linear(3, 2)), nnx.Sequential(nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
    batch = np.random.default_rng(0).normal(size=(4, 3)), np.zeros((4, 2))
    loss = torch.nn.functional.mse_loss, lambda x, y: ((x - y) ** 2).mean(1).sum()
    report = certify(reference, twin, batch, loss=loss)
    assert failed(report)[0] == "loss"
    assert report.causes[0].what == "loss: 4 times PyTorch's: a sum over the samples against a mean"


def test_outputs_of_other_shapes_name_the_module_that_makes_them(classifier):
    reference = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.Conv2d(4, 2, 1))
    conv, last = nnx.Conv(3, 4, (3, 3), padding="VALID", rngs=nnx.Rngs(0)), nnx.Conv(4, 2, (1, 1), rngs=nnx.Rngs(0))
    report = certify(reference, nnx.Sequential(conv, last), classifier.batch[0], loss="mse", optimizer="sgd")
    assert report.first.name == "0"
    assert report.first.forward.worst == "shape (6, 6, 6, 4) against (6, 4, 8, 8)"
    assert report.causes[0].what == "0: convolution: padding, (1, 1) against 'VALID'"


# Weights


def perceptron(p, x):
    y = jax.numpy.tanh(x @ p["first"]["weight"].T + p["first"]["bias"][None])
    return y @ p["second"]["w"] + p["second"]["b"][None]


def square_pair():
    torch.manual_seed(0)
    reference = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh(), torch.nn.Linear(4, 4))
    square, row = np.eye(4, dtype=np.float32), np.ones(4, np.float32)
    params = {"first": {"weight": square, "bias": row}, "second": {"w": square, "b": row}}
    return reference, (perceptron, params), np.random.default_rng(0).normal(size=(3, 4))


def test_layouts_of_square_kernels_are_decided_by_outputs():
    report = certify(*square_pair(), mistakes=False)
    assert report.passed
    layouts = {match.leaf: (match.layout.name, match.by) for match in report.pair.matches}
    assert layouts["first.weight"] == ("as it is", "outputs")
    assert layouts["second.w"] == ("transposed", "auto")


def test_weights_of_the_twin_can_be_taken():
    reference, twin, batch = square_pair()
    report = certify(reference, twin, batch, weights_from="twin", mistakes=False)
    assert report.passed
    np.testing.assert_array_equal(report.pair.model[0].weight.detach(), np.eye(4))
    assert not np.array_equal(reference[0].weight.detach(), np.eye(4))  # the user's model stays


def test_weights_without_counterpart_are_named_all_at_once_and_rules_match_them():
    reference, (function, params), batch = square_pair()
    reference = torch.nn.Sequential(*reference, torch.nn.Linear(4, 2), torch.nn.Linear(2, 2, bias=False))
    with pytest.raises(UserError) as caught:
        certify(reference, (function, params), batch)
    message = str(caught.value)
    assert "4 weights match; 3 of PyTorch's and 0 of the twin's have no counterpart" in message
    assert all(name in message for name in ("3.weight (2, 4)", "3.bias (2,)", "4.weight (2, 2)", "rules={"))
    with pytest.raises(UserError, match="the twin has no 'second'; second"):
        certify(reference, (function, params), batch, rules={"^2.weight$": "second"})
    report = certify(
        *square_pair(),
        rules=[(r"^(0)\.weight$", "first.weight", lambda w: w), (r"^2\.weight$", "second.w", (1, 0))],
        mistakes=False,
    )
    assert report.passed
    assert [match.by for match in report.pair.matches] == ["rule", "auto", "rule", "auto"]


@pytest.mark.full
@pytest.mark.parametrize("packed", [False, True])
def test_packed_attention_is_split_among_heads(packed):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.proj = torch.nn.Linear(8, 24), torch.nn.Linear(8, 8)

        def forward(self, x):
            q, k, v = self.qkv(x).view(*x.shape[:2], 3, 2, 4).permute(2, 0, 3, 1, 4)
            y = torch.nn.functional.scaled_dot_product_attention(q, k, v)
            return self.proj(y.transpose(1, 2).reshape(x.shape))

    class Attention(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = torch.nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=True)

        def forward(self, x):
            return self.attention(x, x, x)[0]

    twin = nnx.MultiHeadAttention(2, 8, decode=False, dropout_rate=0.1, rngs=nnx.Rngs(0))
    report = certify(Model() if packed else Attention(), twin, np.random.default_rng(0).normal(size=(2, 5, 8)))
    assert report.passed, failed(report)


# Mistakes, page and command


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A pair as a file, and its certificate."""
    folder = tmp_path_factory.mktemp("pair")
    (folder / "layers.py").write_text("import torch\nmodel = torch.nn.Sequential(torch.nn.Linear(3, 2))\n")
    (folder / "my_pair.py").write_text(
        "import numpy as np\nfrom flax import nnx\nfrom layers import model\n"
        "def pair():\n"
        "    twin = nnx.Sequential(nnx.Linear(3, 2, rngs=nnx.Rngs(0)))\n"
        "    batch = np.random.default_rng(0).normal(size=(4, 3)), np.arange(4) % 2\n"
        "    return dict(torch_model=model, twin=twin, batch=batch, loss='cross_entropy', optimizer='momentum')\n"
    )
    return folder


def test_command_writes_a_page_with_every_section_and_exits_with_0(small, capsys):
    assert door.main([str(small / "my_pair.py"), "--out", str(small / "c.html"), "--steps", "3"]) == 0
    said, page = capsys.readouterr().out, (small / "c.html").read_text(encoding="utf-8")
    assert "The twin does what the PyTorch model does: 1 modules, 3 training steps" in said
    assert "not seen: Other inputs" in said
    sections = ("Rows", "Modules", "Training", "Mistakes that were injected", "does not see", "Weights", "Environment")
    assert all(f"<h2>{name}" in page or name in page for name in sections)
    assert page.count("data:image/svg+xml;base64,") == 3
    assert "http" not in page
    assert "<tr class=fail>" not in page
    assert "learning rate times 1.001" in page
    assert "optimizer&#x27;s state forgotten" in page


def test_command_exits_with_1_and_names_what_differs(small, capsys):
    text = (small / "my_pair.py").read_text().replace("rngs=nnx.Rngs(0)))", "rngs=nnx.Rngs(0)), lambda x: x * 1.001)")
    (small / "wrong.py").write_text(text)
    assert door.main([str(small / "wrong.py"), "--out", str(small / "w.html"), "--steps", "1"]) == 1
    assert "of 9 rows fail; outputs in training" in capsys.readouterr().out
    assert "No certificate" in (small / "w.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("torch_mdel = 1\nbatch = 2", "does not define torch_model (it has torch_mdel), twin"),
        ("x = 1\ny = z", "line 2: NameError: name 'z' is not defined"),
        ("pair = lambda: 3", "pair() returned int; expected a dict"),
        ("torch_model, twin, batch, loss = 1, 2, 3, 'mae'", "`loss` is 'mae'; expected a pair (PyTorch's, JAX's)"),
    ],
)
def test_command_exits_with_2_and_names_the_mistake_in_the_file(tmp_path, capsys, text, said):
    (tmp_path / "p.py").write_text(text)
    assert door.main([str(tmp_path / "p.py"), "--out", str(tmp_path / "c.html")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "c.html").exists()


def test_wrong_arguments_are_named_all_at_once():
    with pytest.raises(UserError) as caught:
        certify(3, 4, object(), loss="mae", optimizer=5, layout="NHWC", weights_from="me")
    names = ("torch_model", "twin", "batch", "loss", "optimizer", "layout", "weights_from")
    assert all(f"`{name}` " in str(caught.value) for name in names)


def test_losses_that_do_not_take_the_outputs_are_both_named():
    reference, twin, batch = square_pair()
    with pytest.raises(UserError, match=r"(?s)`loss` of PyTorch fails: .*`loss` of the twin fails: "):
        certify(reference, twin, (batch, np.zeros((3, 7))), loss="mse")


def test_certify_is_the_function_after_the_command_was_imported():
    import parity

    assert isinstance(door, types.ModuleType)
    assert parity.certify is certify is certificate.certify


def test_example_of_certify_runs():
    found = doctest.DocTestFinder().find(certificate.certify, globs={})
    assert [doctest.DocTestRunner().run(test).failed for test in found] == [0]
