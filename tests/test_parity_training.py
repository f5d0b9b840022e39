"""The checks of training pass on jaxseg, in float64 and in float32, and fail where it is broken on purpose."""

import contextlib
import json
import math
from dataclasses import replace
from unittest import mock

import jax
import numpy as np
import optax
import pytest

pytest.importorskip("torch")

import torch
import torch.nn.functional as F

from jaxseg.learn import compiled, optimizers
from jaxseg.nn import layers
from parity.checks import divergence, training
from parity.judge.answer import Settings
from parity.twins import branches

ARTICLE, IMBALANCED, ACCUMULATED = training.QUICK_RECIPES
STANDSTILL = {f"{what} after an epoch at 1e-9" for what in ("way of the parameters", "running statistics", "momentum")}


def failed(rows) -> set[str]:
    return {row.name.split(": ")[1] for row in rows if not row.passed}


def ask(recipe: training.Recipe) -> set[str]:
    with jax.enable_x64(True):
        rows, _ = training.exact_rows(recipe, 0, quick=True)
    return failed(rows)


# Training in float64 --------------------------------------------------------------------------------------------------


@pytest.mark.full  # CI asks `python -m parity --quick`
def test_training_passes_and_its_evidence_is_json():
    answer = training.run(Settings(quick=True))
    assert failed(answer.rows) == set()
    assert {row.name.split(": ")[1] for row in answer.rows} >= STANDSTILL
    steps = len(training.QUICK_SIZES) * training.QUICK_EPOCHS
    curves = json.loads(json.dumps(answer.evidence))["curves"]
    assert [curve["name"] for curve in curves] == [ARTICLE.name, IMBALANCED.name, ACCUMULATED.name]
    assert all(len(curve["losses"]) == len(curve["apart"]) == steps for curve in curves)
    assert all(0 < max(map(abs, curve["apart"])) < 1e-12 for curve in curves)  # two computations, not one


def test_training_sees_a_biased_running_variance_and_nothing_else(monkeypatch):
    right = layers.BatchNorm._statistics

    def biased(self, x, valid):
        before = self.var[...]
        mean, var = right(self, x, valid)
        self.var[...] = (1 - self.momentum) * before + self.momentum * var
        return mean, var

    monkeypatch.setattr(layers.BatchNorm, "_statistics", biased)
    expected = {"running statistics", "evaluation logits", "running statistics after an epoch at 1e-9"}
    assert ask(ARTICLE) == expected


def test_training_sees_weights_that_leave_the_epoch_at_1e_9_too_early(monkeypatch):
    right = optimizers.sgd
    monkeypatch.setattr(optimizers, "sgd", lambda rate, *a, **k: right(lambda count: rate(count + 1), *a, **k))
    names = ask(ARTICLE)
    assert {"way of the parameters after an epoch at 1e-9", "parameters"} <= names
    assert "learning rates" not in names  # what the step says of itself is right


def test_training_sees_a_learning_rate_inside_the_buffer(monkeypatch):
    def sgd(rate, momentum, *, nesterov, weight_decay):
        decay, rate = optax.add_decayed_weights(weight_decay), optax.scale_by_learning_rate(rate)
        return optax.chain(decay, rate, optax.trace(momentum, nesterov))

    monkeypatch.setattr(optimizers, "sgd", sgd)
    assert {"momentum after an epoch at 1e-9", "parameters"} <= ask(ARTICLE)


def test_training_compiles_what_the_trainer_compiles(monkeypatch):
    wrapped = mock.Mock(wraps=compiled.compile_train_step)
    monkeypatch.setattr(compiled, "compile_train_step", wrapped)
    net, _ = ARTICLE.networks(0, "float32")
    ours = training.Ours(ARTICLE.optimization, net, 3)
    assert wrapped.call_args.args == (net, ours.optimizer)


# Divergence in float32 ------------------------------------------------------------------------------------------------


def test_divergence_passes_and_gives_the_evidence_that_it_documents(monkeypatch):
    """With one of the recipes that CI asks by `python -m parity --quick`."""
    monkeypatch.setattr(divergence, "QUICK", replace(divergence.QUICK, recipes=divergence.QUICK.recipes[:1]))
    answer = divergence.run(Settings(quick=True))
    assert failed(answer.rows) == set()
    assert {"jaxseg again", "PyTorch again", "first update"} < {row.name.split(": ")[1] for row in answer.rows}
    found = json.loads(json.dumps(answer.evidence))
    names = {"batch permuted", "one ulp", "channels_last"}
    for recipe in found["recipes"]:
        looks = len(recipe["steps"])
        for curves in (recipe, *recipe["others"].values()):
            assert set(curves["variations"]) == names
            assert {len(run) for runs in (curves["jaxseg"], *curves["variations"].values()) for run in runs} == {looks}
        assert recipe["ratio"] == [recipe["jaxseg"][0][-1] / max(run[0][-1] for run in recipe["variations"].values())]
    flips = found["flips"]
    down = ["down.0.relu1", "down.0.relu2", "down.1.max_pool", "down.1.relu1", "down.1.relu2"]
    assert flips["layers"] == [*down, "up.0.block.relu1", "up.0.block.relu2"]
    for log in (flips, flips["one_ulp"]):
        assert np.shape(log["counts"]) == (len(flips["steps"]), len(flips["layers"]))
        assert len(log["distance"]) == len(flips["steps"])
        assert all(0 < distance < 1e-6 for distance in log["distance"])


def test_divergence_sees_a_gradient_that_is_wrong_by_1e_4(monkeypatch):
    right = optimizers.sgd

    def scaled(path, grad):
        return grad * (1 + 1e-4) if "head" in jax.tree_util.keystr(path) else grad

    def sgd(*args, **kwargs):
        wrong = optax.stateless(lambda grads, _: jax.tree_util.tree_map_with_path(scaled, grads))
        return optax.chain(wrong, right(*args, **kwargs))

    monkeypatch.setattr(optimizers, "sgd", sgd)
    monkeypatch.setattr(divergence, "QUICK", replace(divergence.QUICK, recipes=divergence.QUICK.recipes[:1]))
    assert "first update" in failed(divergence.run(Settings(quick=True)).rows)


@pytest.fixture
def found():
    """Of two seeds: distances 1 of jaxseg, 1 and 2 of PyTorch from itself; SGD's first update likewise."""
    names = (*divergence.QUANTITIES, "argmax flips")
    ours, theirs = ({name: [[0.1, x], [0.1, x]] for name in names} for x in (1.0, 2.0))
    end = {name: {"x": np.zeros(2, np.float32)} for name in divergence.QUANTITIES}
    first = {"jaxseg": [1.0, 1.0, 1e3], "one ulp": [1.0, 2.0, 1.0]}
    return divergence.Found(ours, {"one ulp": theirs}, first, {"jaxseg": (end, end), "PyTorch": (end, end)})


def rows_of(found) -> list:
    sides = mock.Mock(form=divergence.QUICK, recipe=divergence.QUICK.recipes[0], device="cpu")
    return divergence.recipe_rows("divergence", sides, found, {})


def test_a_jump_in_one_batch_does_not_move_the_first_update(found):
    assert failed(rows_of(found)) == set()


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("side", ["jaxseg", "PyTorch"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_run_that_ends_in_no_number_fails(found, seed, side, bad):
    curves = found.jaxseg if side == "jaxseg" else found.variations["one ulp"]
    curves["parameters"][seed][-1] = bad
    assert failed(rows_of(found)) == {"parameters after 10 steps"}


def test_a_first_update_that_is_no_number_fails(found):
    found.first["jaxseg"][2] = math.nan
    assert failed(rows_of(found)) == {"first update"}


def test_the_largest_over_the_seeds_counts(found):
    found.jaxseg["evaluation logits"][1][-1] = 6.1  # of 2
    assert failed(rows_of(found)) == {"evaluation logits after 10 steps"}


def test_a_run_that_does_not_repeat_its_bits_fails(found):
    once, _ = found.again["jaxseg"]
    found.again["jaxseg"] = (once, once | {"parameters": {"x": np.array([0, 1e-45], np.float32)}})
    assert failed(rows_of(found)) == {"jaxseg again"}


@pytest.mark.parametrize("name", divergence.VARIATIONS)
def test_a_variation_is_undone_even_after_an_error(name):
    recipe = divergence.QUICK.recipes[0]
    _, reference = recipe.networks(0, "float32")
    theirs = divergence.Theirs(recipe.optimization, reference, 1)
    weights, data = theirs.weights(), divergence.pairs.batches(0, [2], 16, 16)
    before, threads = theirs.weights(), torch.get_num_threads()
    with (
        contextlib.suppress(ZeroDivisionError),
        divergence.VARIATIONS[name](theirs, weights, data) as (changed, batches),
    ):
        theirs.start(changed)
        kernel = reference.inc.double_conv[3].weight
        assert kernel.is_contiguous(memory_format=torch.channels_last) == (name == "channels_last")
        assert torch.get_num_threads() == (threads if name != "threads" else 2 if threads == 1 else 1)
        differing = sum(int((changed[key] != before[key]).sum()) for key in before)
        assert differing == (name == "one ulp")
        assert np.array_equal(batches[0]["image"], data[0]["image"][:: -1 if name == "batch permuted" else 1])
        raise ZeroDivisionError
    assert torch.get_num_threads() == threads
    assert theirs.layout == torch.contiguous_format
    assert kernel.is_contiguous()
    assert all(np.array_equal(weights[key], before[key]) for key in before)


# Branches -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 3, 4, 6), (1, 2, 5, 7)])
def test_pooling_choices_are_those_of_torch(rng, shape):
    x = rng.integers(0, 3, shape).astype(np.float32)  # with ties
    found = branches.choices({"down.0.relu2": x}, ["down.0.relu2", "down.1.max_pool"])
    _, flat = F.max_pool2d(torch.from_numpy(x), 2, return_indices=True)
    row, column = np.divmod(flat.numpy(), shape[3])
    assert np.array_equal(found["down.1.max_pool"], row % 2 * 2 + column % 2)
    assert np.array_equal(found["down.0.relu2"], x > 0)


def test_the_compiled_step_reports_the_relus_of_the_reference():
    recipe = divergence.QUICK.recipes[0]
    sides = divergence.Sides(recipe, divergence.QUICK, 0, "float32", "cpu", watched=True)
    weights, data, _ = sides.begin(0)
    for batch in data[:2]:  # traced once, reported each time
        sides.ours.start(weights)
        sides.theirs.start(weights)
        sides.ours.step(batch)
        found, expected = sides.ours.relus(sides.layers), branches.reference_relus(sides.theirs, batch)
        assert list(found) == list(expected)
        assert all(np.allclose(found[name], expected[name], atol=1e-5) for name in expected)


def flips(distance: list[float], counts: list[int]) -> dict:
    first = branches.first(["relu"], [[n] for n in counts])
    log = {"distance": distance, "counts": [[n] for n in counts], "first": first}
    return log | {"one_ulp": log}


@pytest.mark.parametrize(
    ("distance", "counts", "passes", "told"),
    [
        pytest.param([1e-9, 1e-6, 2e-6], [0, 3, 0], True, "first at step 2 in relu; largest jump", id="with"),
        pytest.param([1e-9, 1e-6, 2e-6], [0, 0, 3], False, "first at step 3 in relu", id="without"),
        pytest.param([1e-9, 2e-9, math.nan], [0, 0, 0], False, "0 branches differ, none", id="no number"),
    ],
)
def test_a_jump_needs_a_branch_that_differs(distance, counts, passes, told):
    row = divergence.branch_row("divergence", divergence.QUICK.recipes[0], flips(distance, counts))
    assert row.passed == passes
    assert told in row.note
