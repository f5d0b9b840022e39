"""The GPU question runs only where there is one, switches TF32 off and back on, and labels what it may have touched."""

import contextlib

import jax
import pytest
import torch

from jaxseg.base.errors import UserError
from parity.checks import divergence, gpu, precision
from parity.judge.answer import Settings
from parity.judge.compare import at_most


def test_without_a_gpu_it_says_what_was_found(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    answer = gpu.run(Settings(device="auto"))
    assert answer.rows == ()
    assert answer.passed
    assert "PyTorch" in answer.not_run
    assert "--device cpu" in gpu.run(Settings(device="cpu")).not_run


def test_a_gpu_that_was_asked_for_and_is_not_there_is_a_mistake(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"PyTorch .* sees no GPU"):
        gpu.run(Settings(device="gpu"))


def test_tf32_is_off_inside_and_as_it_was_outside():
    before, precise = gpu.switches(), jax.config.jax_default_matmul_precision
    with contextlib.suppress(KeyError), gpu.without_tf32():
        inside = gpu.switches()
        raise KeyError
    assert inside == {
        "jax_default_matmul_precision": "highest",
        "torch.backends.cuda.matmul.allow_tf32": "False",
        "torch.backends.cudnn.allow_tf32": "False",
    }
    assert gpu.switches() == before
    assert jax.config.jax_default_matmul_precision == precise


def test_what_tf32_may_have_touched_is_labeled(monkeypatch):
    asked = []

    def passes(question, settings, device, label, dtypes, allowed):
        asked.append((device, gpu.switches()["jax_default_matmul_precision"], dtypes, [*allowed.values()]))
        return (at_most(question, f"{label}float32: logits", 1, 3),), {}

    def steps(settings, device, question, allowed):
        assert [*allowed.values()] == asked[-1][-1]
        return (at_most(question, "SGD: parameters", 1, 3),), {"recipes": []}

    monkeypatch.setattr(precision, "measure", passes)
    monkeypatch.setattr(divergence, "measure", steps)
    answer = gpu.measure(Settings(), "gpu")
    own = str(jax.config.jax_default_matmul_precision)
    assert asked == [("gpu", "highest", ("float32", "bfloat16"), []), ("gpu", own, ("float32",), [2.0**-11])]
    labeled = ["TF32" in row.name for row in answer.rows]
    assert labeled == [False, False, True, True]
    assert {row.question for row in answer.rows} == {"gpu"}


@pytest.mark.full
def test_the_whole_of_it_runs_with_the_cpu_in_a_gpus_stead():
    answer = gpu.measure(Settings(quick=True, seeds=1), "cpu")
    assert len(answer.rows) > 40
    assert all(row.passed for row in answer.rows)
    assert answer.evidence["switches"]["exact"]["jax_default_matmul_precision"] == "highest"
