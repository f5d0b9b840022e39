"""Which rows each device has, what a pipeline reads for them, and runs in several processes."""

import json
import os
import random
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

from jaxseg import evaluate
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
from jaxseg.runs.checkpoint import load_model
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


def test_an_image_a_device_is_predicted_to_the_bit_as_alone(rng):
    net = unet.UNet((2, 4), rngs=nnx.Rngs(0))
    images = [rng.integers(0, 256, (h, w, 3), np.uint8) for h, w in [(32, 32), (32, 24), (32, 32), (70, 32)]]
    one, two = (Predictor(net, Reading(), tile=32, devices=some(count)) for count in (1, 2))
    with mock.patch.object(two, "_step", wraps=two._step) as step:
        found = two.start(images)
        assert [call.args[0].shape for call in step.call_args_list] == [(2, 32, 32, 3), (2, 32, 24, 3)]
    for image, bands in zip(images, found):
        p, expected = np.concatenate([p for *_, p in bands]), one.probabilities(image)
        np.testing.assert_allclose(p, expected, rtol=0, atol=0 if one.is_small(image) else 1e-6)


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


def together(folder: Path, *words: str, count: int = 2, module: str = "jaxseg.train") -> list[subprocess.Popen]:
    """Starts `count` processes of a command."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        place = f"localhost:{free.getsockname()[1]}"
    command = [sys.executable, "-m", module, *words, "--coordinator", place, "--processes", str(count)]
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


EPOCHS = 12


@pytest.fixture(scope="module")
def whole(tiles_root, tmp_path_factory) -> tuple[Path, float]:
    """A run of two processes that nothing befell, and the seconds from its folder's appearance to its end."""
    folder = tmp_path_factory.mktemp("whole")
    started = together(folder, *killed_words(tiles_root))
    began = appeared(folder / "run", started)
    for process in started:
        process.communicate(timeout=300)
    assert [process.returncode for process in started] == [0, 0]
    return folder / "run", time.monotonic() - began


def killed_words(tiles_root: Path) -> list[str]:
    return ["--data", str(tiles_root), *TINY, "--epochs", str(EPOCHS), "--cache", "memory", "--out", "run"]


def appeared(run: Path, started: list[subprocess.Popen]) -> float:
    """Waits until the settings of a run are written; returns when."""
    until = time.monotonic() + 200
    while not (run / "config.json").exists():
        assert time.monotonic() < until
        assert all(process.poll() is None for process in started)
        time.sleep(0.01)
    return time.monotonic()


@pytest.mark.full
@pytest.mark.parametrize("seed", range(10))
def test_a_run_of_which_one_process_is_killed_ends_as_the_run_left_alone(whole, tiles_root, tmp_path, seed):
    """`kill -9` of one of two processes, at a moment that follows from the seed."""
    (expected, seconds), draws, run = whole, random.Random(seed), tmp_path / "run"
    victim, moment = draws.randrange(2), draws.uniform(0, seconds)
    started = together(tmp_path, *killed_words(tiles_root))
    appeared(run, started)
    time.sleep(moment)
    started[victim].kill()
    for process in started:
        process.communicate(timeout=60)
    epochs = len(lines_of(run)) if (run / "log.jsonl").exists() else 0
    if epochs < EPOCHS:
        assert [started[victim].returncode, started[1 - victim].returncode] == [-signal.SIGKILL, 1]
    resumed = together(tmp_path, "--resume", "run")
    said = [process.communicate(timeout=300) for process in resumed]
    assert [process.returncode for process in resumed] == [0, 0], said
    losses = [[line["train"]["loss"] for line in lines_of(folder)] for folder in (run, expected)]
    assert len(losses[0]) == EPOCHS
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    found, right = (nnx.to_flat_state(nnx.state(load_model(folder, "last")[0])) for folder in (run, expected))
    for (path, x), (_, y) in zip(found, right, strict=True):
        np.testing.assert_allclose(x[...], y[...], rtol=1e-6, atol=1e-7, err_msg=str(path))
    same = all(np.array_equal(x[...], y[...]) for (_, x), (_, y) in zip(found, right))
    print(f"seed {seed}: process {victim} killed after {moment:.2f} s, epoch {epochs}; same bits: {same}")


@pytest.fixture(scope="module")
def trained(tiles_root, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    fit(cli.parse(["--data", str(tiles_root), *TINY, "--out", str(folder)]))
    return folder


@pytest.mark.full
def test_evaluation_in_two_processes_leaves_the_files_of_one(trained, tmp_path):
    words = [str(trained), "--split", "all", "--tile", "32", "-o"]
    assert evaluate.main([*words, str(tmp_path / "one")]) == 0
    started = together(tmp_path, *words, "two", module="jaxseg.evaluate")
    said = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    assert "2 devices in 2 processes" in said[0][0]
    assert "classes" not in said[1][0], "the first process prints"
    for file in (tmp_path / "one").iterdir():
        assert (tmp_path / "two" / file.name).read_bytes() == file.read_bytes(), file.name


@pytest.mark.full
def test_faults_that_two_processes_find_are_said_once_and_together(trained, tiles_root, tmp_path):
    folder = shutil.copytree(tiles_root, tmp_path / "fields")
    masks = sorted((folder / "Lval").iterdir())
    for mask in masks[:2]:
        mask.write_bytes(b"no picture")
    said = []
    for words in ([str(trained), "--images", "fields/val", "--masks", "fields/Lval"], ["nowhere"]):
        started = together(tmp_path, *words, "-o", "out", module="jaxseg.evaluate")
        said += [process.communicate(timeout=300)[1] for process in started]
        assert [process.returncode for process in started] == [2, 2], said
    assert "2 problems in 4 pairs" in said[0]
    assert all(mask.name in said[0] for mask in masks[:2])
    assert "nowhere" in said[2]
    assert said[1] == said[3] == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.full
def test_two_processes_fill_one_cache_file(tiles_root, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXSEG_CACHE_DIR", str(tmp_path / "cache"))
    words = ["--data", str(tiles_root), *TINY, "--cache", "disk", "--out", "run"]
    started = together(tmp_path, *words)
    said = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    kept = [path.suffix for path in (tmp_path / "cache").glob("samples-*")]
    assert kept == [".bin", ".bin"], "one of training and one of validation, complete after one epoch"


@pytest.mark.full
@pytest.mark.skipif(shutil.which("mpirun") is None, reason="needs Open MPI")
def test_open_mpi_starts_every_command_without_flags(tiles_root, tmp_path):
    def launch(*words: str) -> str:
        command = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2", sys.executable, "-m", *words]
        ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    assert "2 devices in 2 processes" in launch("jaxseg.train", "--data", str(tiles_root), *TINY, "--out", "run")
    assert len(lines_of(tmp_path / "run")) == 2
    assert "2 devices in 2 processes" in launch("jaxseg.evaluate", "run")
    said = launch("jaxseg.predict", "run", str(tiles_root / "val"), "-o", "maps")
    assert "part 1 of 2 of the images, by Open MPI" in said
    assert "part 2 of 2 of the images, by Open MPI" in said
    assert len(list((tmp_path / "maps").glob("*.png"))) == 4


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
