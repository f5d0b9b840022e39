"""The script that tries things on a GPU: verdicts, workers, its log, and that its rewrites are what they say."""

import dataclasses
import json
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxseg.learn import losses, step
from jaxseg.nn.unet import UNet

sys.path.append(str(Path(__file__).parents[1] / "scripts"))

import gpu_attempts
from attempts import rewrites
from attempts.catalog import ATTEMPTS
from attempts.child import Child, Failed, reason
from attempts.spec import Attempt, Spec, loads
from attempts.verdicts import LEVEL, judged
from traces.operations import FORWARD, INPUT_GRADIENT, PRODUCT, WEIGHT_GRADIENT

TINY = Spec((2, 4), side=8, batch=2)
UNOPTIMIZED = {"xla_backend_optimization_level": 0}


# Verdicts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("with_it", "verdict"),
    [
        ([0.9, 0.91, 0.9, 0.92, 0.9, 0.9], "kept"),
        ([1.1, 1.12, 1.1, 1.11, 1.3, 1.1], "dropped"),
        ([0.9, 1.1, 1.0, 0.95, 1.05, 1.0], "noise"),
        ([0.999, 0.998, 0.999, 0.998, 0.999, 0.999], "noise"),  # always faster, by too little
        ([0.5, 0.5, 0.5, 0.5, 0.5], "noise"),  # five rounds can fall so by chance, one time in sixteen
        ([*[0.9] * 8, 5.0], "kept"),  # one round went wrong
    ],
)
def test_verdicts(with_it, verdict):
    found = judged([1.0] * len(with_it), with_it)
    assert found.verdict == verdict
    assert found.gain == pytest.approx(np.median(1 / np.array(with_it)))
    assert found.interval[0] <= found.gain <= found.interval[1]


def test_what_is_reckoned_needs_no_rounds():
    assert judged([2.0], [1.0], exact=True) == ("kept", 2.0, (2.0, 2.0))


@pytest.mark.parametrize("rounds", [6, 9, 20])
def test_what_changes_nothing_is_seldom_judged(rng, rounds):
    pairs = rng.lognormal(sigma=0.3, size=(2000, 2, rounds))
    wrong = sum(judged(*pair).verdict != "noise" for pair in pairs)
    assert wrong < 2000 * LEVEL * 1.3


# Workers --------------------------------------------------------------------------------------------------------------


def test_a_spec_survives_the_command_line():
    spec = Spec((2, 4), 8, 2, rewrites=("einsum up",), flags="--xla_gpu_autotune_level=2")
    assert loads(spec.dumps()) == spec


def test_a_worker_runs_steps_and_profiles_them():
    with Child(TINY, timeout=120) as child:
        assert child.built["kernels"] > 0
        assert len(child.built["losses"]) == 2
        assert child.ask(run=2)["seconds"] > 0
        kinds = child.ask(profile=1)["kinds"]
        assert all(kinds[kind] > 0 for kind in (FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT))


@pytest.mark.full
def test_a_flag_that_xla_does_not_know_is_a_failure_with_a_reason():
    spec = dataclasses.replace(TINY, flags="--xla_no_such_flag=1")
    with pytest.raises(Failed, match=r"status -?\d+: .*xla_no_such_flag"), Child(spec, timeout=120):
        pass


def test_the_reason_is_the_error_itself():
    printed = "Traceback\n  File x\njaxlib.XlaRuntimeError: RESOURCE_EXHAUSTED: out of memory\nI0000 shutting down\n"
    assert reason(printed) == "jaxlib.XlaRuntimeError: RESOURCE_EXHAUSTED: out of memory"
    assert reason("") == "nothing printed"


class Stand:
    """In a worker's stead: a step takes 1 ms, with plain pooling 2, and without biases memory is short."""

    def __init__(self, spec, timeout, caches):
        self.spec = spec
        self.failed = False
        self.built = {"device": "cpu", "kernels": 9, "gigabytes": 1.0, "bound_ms": 1.0}

    def __enter__(self):
        if self.spec.conv_bias is False:
            raise Failed("RESOURCE_EXHAUSTED")
        return self

    def __exit__(self, *_):
        pass

    def ask(self, run=0, profile=0):
        took = 2e-3 if self.spec.rewrites else 1e-3
        return {"seconds": run * took} if run else {"kinds": {FORWARD: 3.0, PRODUCT: 1.0}, "longest": []}


def test_attempts_are_compared_logged_and_not_repeated(tmp_path, monkeypatch, capsys):
    attempts = (
        Attempt("pooling", "3 %", {"rewrites": ("plain pooling",)}, present=True),
        Attempt("flag", "0 %", {"flags": "--xla_gpu_autotune_level=2"}),
        Attempt("bias", "0 %", {"conv_bias": False}),
    )
    monkeypatch.setattr(gpu_attempts, "ATTEMPTS", attempts)
    monkeypatch.setattr(gpu_attempts, "Child", Stand)
    command = ["--widths", "2", "4", "--batch", "2", "--out", str(tmp_path / "log.json")]
    gpu_attempts.main([*command, "--budget", "0"])
    assert "4 not begun" in capsys.readouterr().out
    gpu_attempts.main(command)
    rows = json.loads((tmp_path / "log.json").read_text())["rows"]
    assert (rows["pooling"]["verdict"], rows["pooling"]["gain"]) == ("kept", pytest.approx(2.0))
    assert "GPU" in rows["flag"]["skipped"]
    assert rows["bias"]["error"] == "RESOURCE_EXHAUSTED"
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed] == ["profile", "pooling", "flag", "bias"]
    gpu_attempts.main(command)  # what failed is tried again, the rest is there
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["bias"]
    with pytest.raises(SystemExit, match="name another file"):
        gpu_attempts.main([*command, "--side", "16"])


def test_names_are_unique_and_rewrites_exist():
    assert len({attempt.name for attempt in ATTEMPTS}) == len(ATTEMPTS)
    assert {name for attempt in ATTEMPTS for name in attempt.change.get("rewrites", ())} <= set(rewrites.REWRITES)


NEW = (
    "einsum up",
    "padded logits",
    "split concatenation",
    "two-pass variance",
    "unpadded input",
    "cuDNN's order",
    "sums together",
)
NOT_OF_THE_LOSS = {"undonated", "flattened update", "plain argmax", "norm together"}
OTHERS = ("dilated up", "product head", "plain pooling", "plain cross-entropy", "one-pass variance", "norm and relu")


def test_rewrites_change_the_program_but_nothing_but_rounding(rng):
    batch = {"image": rng.integers(0, 256, (2, 8, 8, 3), np.uint8), "valid": np.ones(2, bool)}
    batch["mask"] = rng.integers(0, 2, (2, 8, 8), np.uint8)
    batch = jax.tree.map(jnp.asarray, batch)

    def split(dtype):
        return nnx.split(UNet((2, 4), dtype=dtype, rngs=nnx.Rngs(0)), nnx.Param, ...)

    graph, params, rest = split(jnp.float32)
    half, *_ = split(jnp.bfloat16)

    def loss(params, graph=graph):
        net = nnx.merge(graph, params, rest, copy=True)
        return step.loss_fn(net, batch, losses.cross_entropy)[0], nnx.state(net, nnx.BatchStat)

    def program(*names):
        jax.clear_caches()
        with rewrites.applied(names):
            ask = jax.grad(lambda params: loss(params, half), has_aux=True)
            return re.sub("0x[0-9a-f]+", "", str(jax.make_jaxpr(ask)(params)))

    def gradients(*names):
        jax.clear_caches()  # or functions traced before would be found again
        ask = jax.jit(jax.value_and_grad(lambda params: loss(params), has_aux=True), compiler_options=UNOPTIMIZED)
        with rewrites.applied(names):
            return jax.tree.leaves(ask(params))

    assert {*NEW, *OTHERS} | NOT_OF_THE_LOSS == set(rewrites.REWRITES)
    assert program() == program()
    assert len({program(name) for name in (*NEW, *OTHERS)} | {program()}) == len(NEW) + len(OTHERS) + 1
    expected, *found = (gradients(*names) for names in ((), NEW, OTHERS))
    for other in found:
        for a, b in zip(other, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5)


def test_the_norm_as_one_sum_is_that_of_optax(rng):
    tree = {"kernel": rng.normal(size=(3, 3, 4, 5)), "bias": rng.normal(size=5)}
    plain = optax.tree.norm
    with rewrites.applied(["norm together"]):
        assert optax.tree.norm is not plain
        np.testing.assert_allclose(jax.jit(optax.tree.norm)(tree), plain(tree), rtol=1e-6)
