"""Which rows each device has, what a pipeline reads for them, and runs in several processes."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from test_pipeline import write_pairs

from jaxseg.base import cli
from jaxseg.base.config import IGNORE_INDEX, Augmentation
from jaxseg.base.errors import UserError
from jaxseg.data.feed.pipeline import Pipeline, to_device
from jaxseg.data.read.samples import Reading
from jaxseg.devices import processes
from jaxseg.devices.mesh import Devices
from jaxseg.inference.predictor import Predictor
from jaxseg.learn import losses, optimizers
from jaxseg.learn.augment import augment_from
from jaxseg.learn.compiled import compile_train_step
from jaxseg.nn import unet
from jaxseg.training.loop import fit


def some(count: int) -> Devices:
    """Devices of this process: real ones, or more than there are, for what touches none."""
    many = [mock.Mock(spec=jax.devices()[0], process_index=0, id=i) for i in range(count)]
    return Devices.of(jax.devices()[:count] if count <= 2 else many)


# Rows


@given(st.integers(1, 8), st.integers(1, 5), st.integers(1, 4))
def test_every_sample_is_on_one_device_and_a_micro_batch_is_on_all(count, micro, parts):
    places = some(count).rows(micro * parts, parts).reshape(count, parts, -1)
    assert sorted(places[places >= 0]) == list(range(micro * parts))
    for part in range(parts):
        held = places[:, part].ravel()
        assert held[:micro].tolist() == list(range(part * micro, (part + 1) * micro))
        assert (held[micro:] == -1).all()
    assert places.shape[2] == -(-micro // count), "no more padding than it takes"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("tiles"), 7, 6, 8)


@pytest.mark.parametrize(("cache", "count", "parts"), [("none", 2, 1), ("none", 4, 2), ("device", 2, 2)])
def test_a_pipeline_reads_the_samples_of_one_device_in_other_places(pairs, cache, count, parts):
    how = {"batch_size": 6, "shuffle": True, "seed": 3, "crop": (4, 4)}
    one = Pipeline(pairs, **how)
    shared = Pipeline(pairs, **how, cache=cache, devices=some(count), parts=parts)
    expected, found = list(one.epoch(1)), jax.device_get(list(shared.epoch(1)))
    assert len(found) == len(expected) == 2
    for batch, right in zip(found, expected):
        held = batch["valid"]
        assert sorted(batch["position"][held]) == np.flatnonzero(right["valid"]).tolist()
        for name in ("image", "mask"):
            np.testing.assert_array_equal(batch[name][held], right[name][batch["position"][held]])
        assert (batch["image"][~held] == 0).all()
        assert (batch["mask"][~held] == IGNORE_INDEX).all()


def test_rows_lie_on_their_devices(pairs):
    shared = Pipeline(pairs, batch_size=6, devices=some(2))
    (batch, _) = to_device(shared.epoch(), devices=shared.devices)
    for name, array in batch.items():
        assert [shard.data.shape[0] for shard in array.addressable_shards] == [3, 3], name
        assert {shard.device for shard in array.addressable_shards} == set(jax.devices()[:2]), name


def test_augmentation_follows_from_the_place_in_the_batch(pairs):
    augment = jax.jit(augment_from(Augmentation(noise=0.1, zoom=0.3), lambda image: image / np.float32(255)))
    key = jax.random.key(5)
    right = augment(key, next(Pipeline(pairs, batch_size=6).epoch()))
    found = augment(key, next(Pipeline(pairs, batch_size=6, devices=some(4), parts=2).epoch()))
    for name in ("image", "mask"):
        np.testing.assert_array_equal(found[name][found["valid"]], right[name][found["position"][found["valid"]]])


# Communication


def communication(jaxpr, times: int = 1) -> Counter:
    """Bytes that a step sums or gathers over devices, by operation."""
    found = Counter()
    for equation in jaxpr.eqns:
        name, repeats = equation.primitive.name, equation.params.get("length", 1)
        if name.startswith(("psum", "all_gather", "ppermute", "all_to_all", "reduce_scatter", "pmin", "pmax")):
            found[name] += times * sum(x.aval.size * x.aval.dtype.itemsize for x in equation.invars)
        for value in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                found += communication(inner, times * (repeats if name == "scan" else 1))
    return found


@pytest.mark.parametrize(
    ("loss", "parts", "others"),
    [(losses.cross_entropy, 1, set()), (losses.dice, 4, set()), (losses.lovasz, 1, {"all_gather"})],
)
def test_the_gradient_is_summed_once_and_little_else(loss, parts, others):
    devices, b = some(2), 16
    net = unet.UNet(rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(net, optimizers.adam(1e-3), wrt=nnx.Param)
    how = {"schedule": lambda step: 1e-3, "loss": loss, "accumulate": parts, "devices": devices}
    step = compile_train_step(net, optimizer, **how)
    batch = {"image": np.zeros((b, 16, 16, 3), np.uint8), "mask": np.zeros((b, 16, 16), np.uint8)}
    batch |= {"valid": np.ones(b, bool), "position": devices.rows(b, parts).astype(np.int32)}
    found = communication(step.trace(batch).traced.jaxpr.jaxpr)
    assert set(found) == {"psum"} | others
    assert 1 <= found["psum"] / (4 * net.parameters) < 1.02
    assert found["all_gather"] <= 16 * b * 16 * 16, "errors and labels of each pixel and class"


# Settings


def test_a_cpu_is_one_device_unless_more_are_asked_for():
    assert processes.devices_of(None).all == (jax.devices()[0],)
    assert processes.devices_of(2).all == tuple(jax.devices()[:2])
    with pytest.raises(UserError, match="--devices is 3, but there are 2"):
        processes.devices_of(3)
    with pytest.raises(UserError, match="--devices is 0; expected 1 or more"):
        processes.devices_of(0)


@pytest.mark.parametrize(
    ("environment", "launcher"),
    [
        ({}, None),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, None),  # a batch script
        ({"SLURM_STEP_ID": "0", "SLURM_NTASKS": "1"}, None),
        ({"SLURM_STEP_ID": "0", "SLURM_NTASKS": "4"}, "Slurm"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "Open MPI"),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, None),
        ({"JOBSET_NAME": "fields"}, "Kubernetes"),
    ],
)
def test_launchers_are_known_by_their_variables(environment, launcher):
    assert processes.launched(environment) == launcher


def test_settings_of_the_machine_are_checked_together():
    with pytest.raises(UserError) as caught:
        cli.parse(["--devices", "0", "--coordinator", "here", "--process", "2"])
    assert str(caught.value).splitlines() == [
        "--devices is 0; expected 1 or more",
        "--coordinator and --process: give all of --coordinator, --processes and --process",
    ]
    with pytest.raises(UserError) as caught:
        cli.parse(["--coordinator", "here", "--process", "2", "--processes", "2"])
    assert str(caught.value).splitlines() == [
        "--coordinator is here; expected HOST:PORT",
        "--process is 2 of --processes 2; expected a number from 0 below their number",
    ]


# Prediction


def test_tiles_are_spread_over_devices_and_the_map_stays(rng):
    net, image = unet.UNet((2, 4), rngs=nnx.Rngs(0)), rng.integers(0, 256, (70, 90, 3), np.uint8)
    expected = Predictor(net, Reading(), tile=32).probabilities(image)
    spread = Predictor(net, Reading(), tile=32, batch_size=2, devices=some(2))
    np.testing.assert_allclose(spread.probabilities(image), expected, atol=1e-6)
    np.testing.assert_allclose(
        spread.probabilities(image[:20, :20]),
        Predictor(net, Reading(), tile=32).probabilities(image[:20, :20]),
        atol=1e-6,
    )


# Runs

TINY = ["--widths", "2", "4", "-b", "4", "--epochs", "2", "--no-conv-bias", "--workers", "0"]


def test_a_run_goes_on_on_other_devices_and_says_so(tiles_root, tmp_path, capsys, undrawn):
    words = ["--data", str(tiles_root), *TINY, "--schedule", "constant", "--warmup-epochs", "0"]
    whole = fit(cli.parse([*words, "--out", str(tmp_path / "whole")]))
    run = fit(cli.parse([*words, "--out", str(tmp_path / "run"), "--steps", "3", "--devices", "2"]))
    capsys.readouterr()
    fit(cli.parse(["--resume", str(run), "--steps", "6"]))
    assert "on 1 device, before that on 2 devices; results differ by rounding alone" in capsys.readouterr().out
    losses = [[line["train"]["loss"] for line in lines_of(folder)][-1] for folder in (whole, run)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def lines_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def together(folder: Path, *words: str, count: int = 2) -> list[subprocess.Popen]:
    """Starts `count` processes of a run."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        place = f"localhost:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "jaxseg.train", *words, "--coordinator", place, "--processes", str(count)]
    return [
        subprocess.Popen(
            [*command, "--process", str(i)], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for i in range(count)
    ]


@pytest.mark.full
def test_two_processes_leave_the_run_of_one(tiles_root, tmp_path, undrawn):
    words = ["--data", str(tiles_root), *TINY]
    run = fit(cli.parse([*words, "--out", str(tmp_path / "one")]))
    started = together(tmp_path, *words, "--out", "two")
    said = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    assert "2 devices in 2 processes" in said[0][0]
    assert "epoch" not in said[1][0], "the first process prints"
    one, two = lines_of(run), lines_of(tmp_path / "two")
    assert [line["train"]["loss"] for line in two] == pytest.approx([line["train"]["loss"] for line in one], rel=1e-4)
    assert sorted(p.name for p in (tmp_path / "two").iterdir()) == sorted(p.name for p in run.iterdir())


@pytest.mark.full
@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_to_one_process_ends_all_and_the_run_goes_on(tiles_root, tmp_path, number, sent):
    words = ["--data", str(tiles_root), *TINY, "--epochs", "3000", "--log-every", "2", "--out", "run"]
    started = together(tmp_path, *words)
    last, until = tmp_path / "run/checkpoints/last", time.monotonic() + 200
    while not (last.is_dir() and any(entry.name.isdigit() for entry in last.iterdir())):
        assert time.monotonic() < until
        time.sleep(0.1)
    os.kill(started[number].pid, sent)
    said = [process.communicate(timeout=60) for process in started]
    other = 1 - number
    if sent == signal.SIGTERM:
        assert [process.returncode for process in started] == [143, 143]
        assert "stopped and saved" in said[0][0]
    else:
        assert started[other].returncode == 1
        assert f"process {number} of 2 has ended, so process {other} ends too" in said[other][1]
        assert "Traceback" not in said[other][1]
    epochs = len(lines_of(tmp_path / "run"))
    fit(cli.parse(["--resume", str(tmp_path / "run"), "--epochs", str(epochs + 1), "--debug"]))


@pytest.mark.full
@pytest.mark.skipif(shutil.which("mpirun") is None, reason="needs Open MPI")
def test_open_mpi_starts_a_run_without_flags(tiles_root, tmp_path):
    words = [sys.executable, "-m", "jaxseg.train", "--data", str(tiles_root), *TINY, "--out", "run"]
    command = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2", *words]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    assert "2 devices in 2 processes" in ran.stdout
    assert len(lines_of(tmp_path / "run")) == 2


@pytest.mark.full
def test_slurms_variables_start_a_run_without_flags(tiles_root, tmp_path):
    words = [sys.executable, "-m", "jaxseg.train", "--data", str(tiles_root), *TINY, "--out", "run"]
    step = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_NODES": "1"}
    step |= {"SLURM_STEP_NODELIST": "localhost"}
    how = {"cwd": tmp_path, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [
        subprocess.Popen(words, env=os.environ | step | {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)}, **how)
        for i in range(2)
    ]
    said = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    assert "2 devices in 2 processes" in said[0][0]


@pytest.mark.full
def test_an_error_of_the_first_process_is_said_once(tmp_path):
    started = together(tmp_path, "--data", "nowhere", *TINY)
    said = [process.communicate(timeout=300)[1] for process in started]
    assert [process.returncode for process in started] == [2, 2]
    assert "nowhere" in said[0]
    assert "nowhere" not in said[1]
