"""The model of training on many GPUs: its formulas, and the sums that it reads from a step."""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

sys.path.append(str(Path(__file__).parents[1] / "scripts"))
import scaling
from many_devices import local
from many_devices.network import BUCKET, HOPPER, PUBLISHED, Network, Traffic, step
from many_devices.traffic import compiled_step, compiled_sums, sums, traffic

from jaxseg.base.config import Model
from jaxseg.devices import rows
from jaxseg.devices.mesh import EVERYWHERE, Devices
from jaxseg.learn.compiled import compiler_options
from jaxseg.nn import unet
from jaxseg.nn.layers import BatchNorm

SIMPLE = Network(4, start=100.0, near_hop=1.0, far_hop=10.0, slower=2.0, near=8.0, far=2.0)

# Formulas


@pytest.mark.parametrize(
    ("devices", "latency", "transfer"),
    [
        (1, 0, 0),
        (2, 100 + 2 * 1, 1 / 8),
        (4, 100 + 2 * 3, 1.5 / 8),
        (8, 100 + 2 * (3 * 2 + 10), 1.5 / 8 + 1 / 4 / 2),
        (16, 100 + 2 * (3 * 2 + 20), 1.5 / 8 + 1.5 / 4 / 2),
    ],
)
def test_a_sum_takes_hops_and_a_share_of_its_bytes_in_each_stage(devices, latency, transfer):
    assert SIMPLE.latency(devices) == pytest.approx(latency)
    assert SIMPLE.transfer(24.0, devices) == pytest.approx(24 * transfer)
    assert SIMPLE.seconds(24.0, devices) == pytest.approx(latency + 24 * transfer)


@pytest.mark.parametrize(("devices", "size", "seconds"), [found[:3] for found in PUBLISHED])
def test_the_formula_is_near_what_others_measured(devices, size, seconds):
    assert HOPPER.seconds(size, devices) == pytest.approx(seconds, rel=0.26)


def test_a_step_waits_for_every_round_and_for_the_gradient_in_buckets():
    parts = step(1000.0, Traffic((8, 16), 2 * BUCKET + 8), SIMPLE, 4)
    assert parts.compute == 1000
    assert parts.between == pytest.approx(2 * 106 + 24 * 1.5 / 8)
    assert parts.gradient == pytest.approx(3 * 106 + (2 * BUCKET + 8) * 1.5 / 8)
    assert parts.efficiency == pytest.approx(1000 / parts.total)
    assert step(1000.0, Traffic((8,), 8), SIMPLE, 1).efficiency == 1


def test_computation_hides_the_gradient_and_not_what_lies_in_between():
    found = Traffic((8, 16), 80)
    open_, half, whole = (step(100.0, found, SIMPLE, 4, hidden) for hidden in (0.0, 0.5, 2.0))
    assert open_.between == half.between == whole.between
    assert half.gradient == pytest.approx(open_.gradient - 50)
    assert whole.gradient == 0


# Sums of a program


def traced(function, *arguments):
    """Program of `function` on two devices."""
    run = Devices.of(jax.devices()[:2]).shared(function, [False] * len(arguments), EVERYWHERE)
    return jax.jit(run).trace(*arguments).jaxpr.jaxpr


def test_sums_that_need_each_other_are_rounds_and_others_share_one():
    def program(x):
        first = rows.total(x)  # 12 bytes
        beside = jax.jit(lambda x: (x + 1, rows.total(x[:1]), rows.total(x[:2])))(x)  # 8 bytes of use, 4 of none
        second = rows.total(first[:2] * 2)  # 8 bytes
        choice = jax.lax.cond(second[0] > 0, lambda x: x, lambda x: -x, beside[2])
        return rows.total(jnp.tile(choice, 500)), beside[1], rows.total(beside[0])  # 4000 and 12 bytes

    found = sums(traced(program, np.ones(3, np.float32)))
    assert found == Traffic((12 + 8, 8), 4000 + 4 + 12)


def test_sums_in_a_loop_are_refused():
    def program(x):
        return jax.lax.scan(lambda x, _: (rows.total(x), None), x, None, length=3)[0]

    with pytest.raises(ValueError, match=r"sums over devices in a loop \(scan\)"):
        sums(traced(program, np.ones(3, np.float32)))


def test_bytes_of_compiled_sums_are_read_from_their_shapes():
    text = """
      %all-reduce.1 = f32[] all-reduce(%x), channel_id=1, to_apply=%add
      %all-reduce.2 = (bf16[2,3]{1,0}, s32[4]{0}) all-reduce(%x, %y), channel_id=2, to_apply=%add
      %all-reduce-start = f32[10]{0} all-reduce-start(%z), channel_id=3
      ROOT %other = f32[7]{0} add(%all-reduce.1, %w)
    """
    assert compiled_sums(text) == [4, 28, 40]


@pytest.mark.parametrize(
    ("settings", "beside"),
    [(Model(widths=(2, 2)), 0), pytest.param(Model(encoder="resnet18"), 3, marks=pytest.mark.full)],
)
def test_a_step_sums_twice_for_each_batchnorm_and_the_gradient_once(settings, beside):
    """`beside`: BatchNorm layers that lie beside others."""
    net = nnx.eval_shape(lambda: unet.unet_from(settings, in_channels=3, classes=2, seed=0))
    norms = sum(isinstance(layer, BatchNorm) for _, layer in nnx.iter_graph(net))
    found = traffic(settings)
    reported = 4 * 2 * 2 + 2 * 4 * norms  # the confusion matrix, and whether BatchNorm saw any image
    assert found.gradient - 4 * net.parameters == pytest.approx(reported, abs=16)
    assert len(found.rounds) == 2 * (norms - beside)


def test_compiled_program_has_few_sums_besides_the_rounds():
    settings = Model(widths=(2, 2))
    step, batch = compiled_step(settings, Devices.of(jax.devices()[:2]), 1, side=8)
    found = compiled_sums(step.lower(batch).compile(compiler_options()).as_text())
    expected = traffic(settings)
    assert 1 <= len(found) - len(expected.rounds) <= 4
    assert sum(found) == pytest.approx(sum(expected.rounds) + expected.gradient, rel=0.1)


# The command


def test_table_has_a_row_for_each_network_and_batch_and_takes_measured_steps(monkeypatch, tmp_path, capsys):
    small = scaling.Known(Model(widths=(2, 2)), 18.1e9, 18)
    monkeypatch.setattr(scaling, "NETWORKS", scaling.NETWORKS | {"base16": small})
    figures = {"jaxseg": {"rate": [900.0, 1000.0, 1100.0]}}
    task = {"base": 16, "encoder": None, "precision": "bf16", "batch": 8}
    matches = [{"section": "step", "configuration": task, "figures": figures}]
    (tmp_path / "benchmark.json").write_text(json.dumps({"matches": matches}), encoding="utf-8")
    words = [
        "--networks",
        "base16",
        "--batches",
        "5",
        "8",
        "--devices",
        "1",
        "64",
        "--picture",
        str(tmp_path / "scaling.png"),
    ]
    scaling.main([*words, "--benchmark", str(tmp_path / "benchmark.json")])
    said = capsys.readouterr().out
    assert "base16    batch 5      2.79 measured    1.000" in said
    assert "base16    batch 8      8.00 given       1.000" in said
    assert (tmp_path / "scaling.png").stat().st_size > 10_000


def test_unmeasured_steps_are_no_faster_than_the_start_of_kernels_allows():
    assert scaling.estimate("base64", 16) == (16 / 1208, "measured")
    assert scaling.estimate("base64", 32) == (pytest.approx(32 / 1208), "estimated")
    assert scaling.estimate("base16", 16) == (pytest.approx(5 / 1789), "estimated")
    assert scaling.estimate("resnet34", 16) == (pytest.approx(5 / 1789 * 46 / 18), "estimated")


@pytest.mark.full
def test_the_fit_of_single_sums_gives_the_time_of_all_sums_of_a_step():
    found = local.together(2, {"widths": [2, 4], "batch": 1, "side": 16, "repeats": 20})
    latency, speed = local.fit(found["probes"])
    assert sum(latency + size / speed for size in found["sums"]) == pytest.approx(found["set"], rel=0.5)
