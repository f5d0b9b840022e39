"""Runs from end to end: what they leave, how they end, and that a run that was stopped goes on to the same bits."""

import contextlib
import dataclasses
import functools
import io
import json
import logging
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore
from flax import nnx
from image_files import write
from test_tracker import scalars

from jaxseg import load, predict, train
from jaxseg.base import cli, config
from jaxseg.base.config import Data
from jaxseg.base.errors import NonFiniteLoss
from jaxseg.data.feed.pipeline import Pipeline
from jaxseg.data.find.folders import find_pairs, find_split
from jaxseg.data.read import samples
from jaxseg.data.read.samples import Reading
from jaxseg.learn import losses, optimizers, schedules
from jaxseg.learn.compiled import compile_eval_step
from jaxseg.runs.checkpoint import Checkpoints, load_model
from jaxseg.runs.pictures import draw_samples
from jaxseg.training import assembly, loop, report
from jaxseg.training.dataset import open_data
from jaxseg.training.steps import Signals, run_steps

EPOCHS, STEPS = 3, 3  # 10 tiles in batches of 4, 4 and 2
TINY = ["--widths", "4", "8", "-e", str(EPOCHS), "-b", "4", "--log-every", "2", "--workers", "2"]
CONSTANT = ["--schedule", "constant", "--warmup-epochs", "0"]  # one program for runs of any length


def launch(*argv) -> SimpleNamespace:
    """Exit status and output of `python -m jaxseg.train argv`, in this process."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = train.main([str(arg) for arg in argv])
    return SimpleNamespace(code=code, out=out.getvalue(), err=err.getvalue())


def refused(*argv) -> str:
    """The message of a run that ends with status 2, one error and no traceback."""
    result = launch(*argv)
    assert result.code == 2
    assert result.err.startswith("error: ")
    assert "Traceback" not in result.err
    return result.err


class AtStep:
    """Takes the place of `compile_train_step`: does `action` after a process's step `number`, counted from 1.

    `compilations`: how many programs had been `compiled` before each step, and after it.
    """

    def __init__(self, number=None, action=None, compiled=()):
        self.number, self.action, self.real = number, action, assembly.compile_train_step
        self.taken, self.compiled, self.compilations = 0, compiled, []

    def __call__(self, *args, **kwargs):
        step = self.real(*args, **kwargs)

        def counted(batch):
            before = len(self.compiled)
            record = step(batch)
            self.compilations.append((before, len(self.compiled)))
            self.taken += 1
            return (self.action(record) or record) if self.taken == self.number else record

        return counted


@contextlib.contextmanager
def compilations():
    """A list that grows by each program that XLA compiles."""
    found = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record) if "Finished XLA compilation" in record.getMessage() else None
    logger = logging.getLogger("jax")
    logger.addHandler(handler)
    with jax.log_compiles():
        yield found
    logger.removeHandler(handler)


def assert_compiled_in_the_first_epoch(counts: list[tuple[int, int]]):
    (_, first), (start, _), (_, last) = counts[0], counts[STEPS], counts[-1]
    assert 0 < first < start == last


def sends(number):
    return lambda record: signal.raise_signal(number)


class Crash(BaseException):
    """Nothing catches it, as nothing catches kill -9."""


def crashes(*_, **__):
    raise Crash


@pytest.fixture(scope="module")
def whole(tiles_root, tmp_path_factory):
    """A run that was never stopped, in a folder of an awkward name."""
    run = tmp_path_factory.mktemp("runs") / "it's a run"
    with pytest.MonkeyPatch.context() as patch, compilations() as found:
        watch = AtStep(compiled=found)
        patch.setattr(assembly, "compile_train_step", watch)
        result = launch("--data", tiles_root, "--out", run, *TINY)
    result.run, result.compilations = run, watch.compilations
    return result


@pytest.fixture
def start(undrawn, tiles_root, tmp_path):
    """Starts the run that `whole` is, in another folder."""
    return functools.partial(launch, "--data", tiles_root, "--out", tmp_path / "run", *TINY)


# what a run has in its folder


def records(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def timeless(record: dict | None) -> dict | None:
    """A record without what differs between two equal runs."""
    return record and {
        name: value for name, value in record.items() if name not in ("seconds", "images_per_second", "waited")
    }


def arrays_of(run: Path) -> list[np.ndarray]:
    """All arrays of the last checkpoint."""
    settings = config.load(run)
    net, description = load_model(run, "last")
    schedule = schedules.schedule_from(settings.optimization, STEPS)
    optimizer = nnx.Optimizer(net, optimizers.optimizer_from(settings.optimization, schedule), wrt=nnx.Param)
    Checkpoints(run, settings, description).restore("last", net, optimizer)
    return [np.asarray(x) for x in jax.tree.leaves(nnx.state((net, optimizer)))]


def files_of(run: Path, which: str) -> dict[str, bytes]:
    """All arrays of a checkpoint with their types and shapes, by name: the bytes that TensorStore keeps of them."""
    found = {}
    for part in ("model", "optimizer"):
        base = {"driver": "file", "path": f"{run}/checkpoints/{which}/{step_of(run, which)}/{part}/"}
        store = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
        found |= {f"{part} {key.decode()}": store.read(key).result().value for key in store.list().result()}
    return found


def progress_of(run: Path, which: str) -> dict:
    """Position of the run in a checkpoint."""
    path = run / f"checkpoints/{which}/{step_of(run, which)}/meta/metadata"
    progress = json.loads(path.read_text())["progress"]
    return progress | {"best": timeless(progress["best"])}


def step_of(run: Path, which: str) -> int:
    (folder,) = (run / "checkpoints" / which).iterdir()
    return int(folder.name)


def pasted(out: str, module: str) -> list[str]:
    """Arguments of the command that `out` tells to go on with, as a shell would read it."""
    (line,) = [line for line in out.splitlines() if f"python -m {module}" in line]
    return shlex.split(line)[3:]


def assert_same_run(run: Path, other: Path):
    """Parameters, statistics, optimizer and progress to the bit, best and last, and the log."""
    for which in ("last", "best"):
        arrays, others = files_of(run, which), files_of(other, which)
        assert len(arrays) > 100  # two for each array, which has its shape and type beside it
        assert {name for name in arrays.keys() | others.keys() if arrays.get(name) != others.get(name)} == set()
        assert progress_of(run, which) == progress_of(other, which)
        assert step_of(run, which) == step_of(other, which)
    assert [timeless(record) for record in records(run)] == [timeless(record) for record in records(other)]


# a run


@pytest.mark.full  # tests/test_services.py has the rest
def test_a_tracker_changes_no_bit_of_a_run(whole, start, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(Path(__file__).parent / "services")
    monkeypatch.setenv("FAKE_CALLS", str(tmp_path / "calls"))
    found = start("--log", "wandb")
    assert (found.code, found.err) == (0, "")
    assert_same_run(tmp_path / "run", whole.run)
    calls = [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]
    logged = [values for name, values, *_ in calls if name == "log"]
    assert sorted(values["global_step"] for values in logged if "step/loss" in values) == list(range(1, 10))
    assert [name for name, *_ in calls][-2:] == ["update", "finish"]  # the scores of the best epoch
    assert config.load(tmp_path / "run").run.log == ("wandb",)


def test_a_run_ends_well_and_leaves_everything(whole):
    assert (whole.code, whole.err) == (0, "")
    found = {path.relative_to(whole.run).as_posix() for path in whole.run.rglob("*") if path.is_file()}
    assert {
        "config.json",
        "log.jsonl",
        "README.md",
        "curves.png",
        "samples/batch.png",
        "samples/predictions.png",
    } <= found
    assert any(name.startswith("tensorboard/events") for name in found)
    assert [path.name for path in sorted((whole.run / "checkpoints").iterdir())] == ["best", "last"]
    assert samples.read_image(whole.run / "curves.png").std() > 0


def test_predictions_png_shows_the_best_checkpoints_classes(whole, tiles_root):
    predictor = load(whole.run)
    images = sorted((tiles_root / "val").glob("*.png"))
    read = [(predictor.read(path), samples.read_mask(mask_of(path), predictor.reading)) for path in images]
    expected = draw_samples(
        [image for image, _ in read],
        [mask for _, mask in read],
        [predictor.classes(image) for image, _ in read],
        class_names=predictor.names,
        captions=[path.stem for path in images],
        palette=predictor.reading.labels.palette(),
    )
    shown = samples.read_image(whole.run / "samples/predictions.png")[..., ::-1]
    assert shown.shape == expected.shape
    assert np.mean(shown == expected) > 0.999  # a pixel between two classes may fall to either


def mask_of(image: Path) -> Path:
    """The mask of a made-up field's image."""
    return image.parent.with_name(f"L{image.parent.name}") / f"{image.stem}_mask.png"


def test_a_run_keeps_the_settings_it_was_given(whole, tiles_root):
    given = cli.parse(["--data", str(tiles_root), "--out", str(whole.run), *TINY])
    assert config.load(whole.run) == given


def test_the_log_has_an_epoch_a_line(whole):
    log = records(whole.run)
    schedule = schedules.schedule_from(config.load(whole.run).optimization, STEPS)
    assert [record["epoch"] for record in log] == [0, 1, 2]
    assert [record["step"] for record in log] == [3, 6, 9]
    assert [record["learning_rate"] for record in log] == [float(schedule(step)) for step in (2, 5, 8)]
    for record in log:
        assert record["seconds"] > 0
        assert record["images_per_second"] > 0
        assert 0 <= record["waited"] < 1
        for part in ("train", "validation"):
            assert all(math.isfinite(record[part][name]) for name in ("loss", "accuracy", "miou"))
            assert len(record[part]["iou"]) == 2


def test_a_run_prints_its_epochs_and_a_table(whole):
    best = max(records(whole.run), key=lambda record: record["validation"]["miou"])["validation"]
    for part in ("10 training images of 32x32", "4 validation images", "1,786 parameters", "epoch 1/3", "epoch 3/3"):
        assert part in whole.out
    table = {row[0]: row[1:] for line in whole.out.splitlines() if (row := line.replace("│", " ").split())}
    assert table["background"][0] == f"{best['iou'][0]:.4f}"
    assert table["foreground"][0] == f"{best['iou'][1]:.4f}"
    assert f"mIoU {best['miou']:.4f}" in whole.out
    assert f"pixel accuracy {best['accuracy']:.4f}" in whole.out
    for name in ("samples/predictions.png", "curves.png", "checkpoints/best"):
        assert str(whole.run / name) in whole.out


def test_the_next_command_can_be_pasted(whole, tmp_path):
    arguments = pasted(whole.out, "jaxseg.predict")
    with contextlib.redirect_stdout(io.StringIO()):
        assert predict.main([*arguments[:-1], str(tmp_path)]) == 0
    assert Path(arguments[-1]).parent == whole.run
    assert len(list(tmp_path.glob("*.png"))) == 4


def test_folders_are_printed_as_they_are_called(whole, capsys):
    best = records(whole.run)[0]
    classes, images = ["background", "foreground"], Path("my tiles [red]/val")
    report.report(best, Path("runs/a [b]"), classes, images, Path("runs/a [b]/samples/predictions.png"), 1.0)
    out = capsys.readouterr().out
    assert pasted(out, "jaxseg.predict")[:2] == [str(Path("runs/a [b]")), str(Path("my tiles [red]/val"))]
    assert str(Path("runs/a [b]/samples/predictions.png")) in out


def test_the_step_is_compiled_once_though_the_last_batch_is_short(whole):
    assert len(whole.compilations) == EPOCHS * STEPS
    assert [after > before for before, after in whole.compilations] == [True] + [False] * (EPOCHS * STEPS - 1)


def test_nothing_is_compiled_after_the_first_epoch(whole):
    """Not by a step, an evaluation, a record or a checkpoint."""
    assert_compiled_in_the_first_epoch(whole.compilations)


def test_the_best_checkpoint_has_the_best_scores_whatever_the_batch(whole, tiles_root):
    log = records(whole.run)
    best = max(log, key=lambda record: record["validation"]["miou"])
    assert step_of(whole.run, "best") == best["step"]
    assert step_of(whole.run, "last") == log[-1]["step"]
    net, description = load_model(whole.run)
    assert (description["classes"], description["in_channels"]) == (["background", "foreground"], 3)
    assert description["tile"] == [32, 32]
    assert Reading.from_dict(description["reading"]).labels.values == (0, 255)
    pairs = find_pairs(tiles_root / "val", tiles_root / "Lval")
    for size in (4, 3):  # 3 leaves a batch of one tile and two that only pad it
        scores = loop.evaluate(compile_eval_step(net), Pipeline(pairs, batch_size=size), 0)
        loss, expected = scores.pop("loss"), dict(best["validation"])
        assert loss == pytest.approx(expected.pop("loss"), rel=1e-6)
        assert scores == expected


# how long a run is


def test_steps_end_a_run_within_an_epoch_and_more_of_them_go_on_there(whole, start, tmp_path):
    how = [*CONSTANT, "-e", "1"]
    assert start(*how, "--steps", 5).code == 0
    log = records(tmp_path / "run")
    assert [(record["epoch"], record["step"]) for record in log] == [(0, 3), (1, 5)]
    assert step_of(tmp_path / "run", "last") == 5
    assert launch("--resume", tmp_path / "run", "--steps", 9).code == 0
    at_once = tmp_path / "at once"
    assert start(*how, "--steps", 9, "--out", at_once).code == 0
    assert files_of(tmp_path / "run", "last") == files_of(at_once, "last")
    assert [timeless(record) for record in records(tmp_path / "run")[2:]] == [timeless(records(at_once)[2])]


def test_a_run_made_longer_says_how_its_learning_rate_changes(whole, undrawn, tmp_path):
    shutil.copytree(whole.run, tmp_path / "run")
    longer = launch("--resume", tmp_path / "run", "-e", 4)
    assert longer.code == 0
    assert [record["epoch"] for record in records(tmp_path / "run")] == list(range(4))
    assert "resumed at epoch 4, step 9, learning rate" in longer.out
    assert "(was 1e-09, of 9 steps)" in longer.out
    assert "goes up again" in longer.out
    assert config.load(tmp_path / "run").optimization.epochs == 4


def test_early_stopping_ends_a_run_that_gets_no_better_and_patience_lets_it_go_on(start, monkeypatch, tmp_path):
    evaluate, miou = loop.evaluate, iter([0.3, 0.5, 0.4, 0.45, 0.4, 0.4, 0.4])
    monkeypatch.setattr(loop, "evaluate", lambda *args: evaluate(*args) | {"miou": next(miou)})
    stopped = start("-e", 9, "--early-stopping", 2, *CONSTANT)
    assert stopped.code == 0
    assert "no better mIoU for 2 epochs" in stopped.out
    assert len(records(tmp_path / "run")) == 4
    assert step_of(tmp_path / "run", "best") == 6
    assert launch("--resume", tmp_path / "run").code == 0
    assert len(records(tmp_path / "run")) == 4
    assert launch("--resume", tmp_path / "run", "--early-stopping", 3).code == 0
    assert len(records(tmp_path / "run")) == 5


def test_what_averages_accumulates_drops_augments_and_waits_goes_on_to_the_same_bits(start, monkeypatch, tmp_path):
    """All that a run keeps beside weights and moments: average, random numbers, and the plateau that it waits on."""
    evaluate = loop.evaluate
    monkeypatch.setattr(loop, "evaluate", lambda *args: evaluate(*args) | {"miou": 0.5})
    how = ["--ema", 0.5, "--accumulate", 2, "--dropout", 0.5, "--noise", 0.1, "--class-weights", "auto"]
    how += ["--loss", "dice_ce", "--optimizer", "adamw", "-e", 4, "-l", 2**-7]
    how += ["--schedule", "plateau", "--patience", 1, "--gamma", 0.5]
    with monkeypatch.context() as patch, compilations() as found:
        patch.setattr(assembly, "compile_train_step", watch := AtStep(compiled=found))
        assert start(*how).code == 0
    assert_compiled_in_the_first_epoch(watch.compilations)
    rates = [record["learning_rate"] for record in records(tmp_path / "run")]
    assert rates == [2**-7, 2**-7, 2**-7, 2**-8]
    with monkeypatch.context() as patch:
        patch.setattr(assembly, "compile_train_step", AtStep(11, sends(signal.SIGTERM)))
        assert start(*how, "--out", tmp_path / "stopped").code == 143
    assert launch("--resume", tmp_path / "stopped").code == 0
    assert_same_run(tmp_path / "stopped", tmp_path / "run")


def test_a_dry_run_writes_nothing(start, tmp_path):
    dry = start("--dry-run")
    assert dry.code == 0
    assert "9 steps" in dry.out
    assert not (tmp_path / "run").exists()


def test_batch_larger_than_the_data_set_is_told(start):
    told = "only 10 tiles for --batch-size 16: 6 places of each step are empty; try --batch-size 10"
    assert told in start("--dry-run", "-b", 16).out
    assert "places" not in start("--dry-run", "-b", 10).out


def test_a_run_starts_from_the_weights_of_another(whole, start, tmp_path):
    assert start("--load", whole.run, "--steps", 1, "-l", 0, "--schedule", "constant").code == 0
    before, after = (
        nnx.to_pure_dict(nnx.state(load_model(run)[0], nnx.Param)) for run in (whole.run, tmp_path / "run")
    )
    jax.tree.map(np.testing.assert_array_equal, before, after)


# a run that was stopped


@pytest.mark.parametrize(
    ("number", "code", "step", "cache"),
    [
        (signal.SIGTERM, 143, 2, "device"),
        (signal.SIGINT, 130, 5, "disk"),
    ],
)
def test_a_signal_saves_and_the_run_goes_on_to_the_same_bits_with_its_images_kept_elsewhere(
    whole, start, monkeypatch, tmp_path, number, code, step, cache
):
    monkeypatch.setenv("JAXSEG_CACHE_DIR", str(tmp_path / "cache"))
    with monkeypatch.context() as patch:
        patch.setattr(assembly, "compile_train_step", AtStep(step, sends(number)))
        stopped = start()
    assert (stopped.code, stopped.err) == (code, "")
    assert step_of(tmp_path / "run", "last") == step
    arguments = pasted(stopped.out, "jaxseg.train")
    assert arguments == ["--resume", str(tmp_path / "run")]
    assert launch(*arguments, "--cache", cache).code == 0
    assert_same_run(tmp_path / "run", whole.run)


@pytest.fixture(scope="module")
def stopped(tiles_root, tmp_path_factory):
    """A run stopped in its last epoch, whose second one is the best."""
    evaluate, miou, run = loop.evaluate, iter([0.3, 0.5]), tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "evaluate", lambda *args: evaluate(*args) | {"miou": next(miou)})
        patch.setattr(assembly, "compile_train_step", AtStep(8, sends(signal.SIGTERM)))
        assert launch("--data", tiles_root, "--out", run, *TINY).code == 143
    return run


def resume_worse(run: Path, monkeypatch) -> SimpleNamespace:
    """Goes on with a copy of `stopped`, whose last epoch is worse than its second."""
    evaluate = loop.evaluate
    monkeypatch.setattr(loop, "evaluate", lambda *args: evaluate(*args) | {"miou": 0.4})
    done = launch("--resume", run)
    assert done.code == 0
    return done


def test_the_best_epoch_is_kept_through_later_ones_and_through_a_stop(stopped, undrawn, monkeypatch, tmp_path):
    done = resume_worse(shutil.copytree(stopped, tmp_path / "run"), monkeypatch)
    assert (step_of(tmp_path / "run", "best"), step_of(tmp_path / "run", "last")) == (6, 9)
    assert "validation, best epoch (2)" in done.out
    assert "mIoU 0.5000" in done.out


def test_a_run_stopped_after_an_epochs_last_step_and_killed_later_logs_each_epoch_once(
    whole, start, monkeypatch, tmp_path
):
    for attempt, step, action in ((start, 6, sends(signal.SIGTERM)), (None, 2, crashes)):
        with monkeypatch.context() as patch, contextlib.suppress(Crash):
            patch.setattr(assembly, "compile_train_step", AtStep(step, action))
            (attempt or functools.partial(launch, "--resume", tmp_path / "run"))()
    assert step_of(tmp_path / "run", "last") == 6  # the crash was two steps later
    assert launch("--resume", tmp_path / "run").code == 0
    assert_same_run(tmp_path / "run", whole.run)


def test_a_run_that_crashed_between_log_and_checkpoint_goes_on_to_the_same_bits(whole, start, monkeypatch, tmp_path):
    save = Checkpoints.save

    def dies_at_the_second_epoch(self, which, step, *rest):
        if (which, step) == ("last", 6):
            raise Crash
        save(self, which, step, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", dies_at_the_second_epoch)
        with pytest.raises(Crash):
            start()
    assert (len(records(tmp_path / "run")), step_of(tmp_path / "run", "last")) == (2, 3)
    assert launch("--resume", tmp_path / "run").code == 0
    assert_same_run(tmp_path / "run", whole.run)
    assert_every_step_once(tmp_path / "run")


def test_a_run_that_is_done_can_be_resumed_and_stays_as_it_is(whole, tmp_path):
    run = shutil.copytree(whole.run, tmp_path / "run")
    again = launch("--resume", run)
    assert again.code == 0
    assert "mIoU" in again.out
    assert_same_run(run, whole.run)


def test_run_killed_before_its_first_checkpoint_begins_again(whole, start, monkeypatch, tmp_path):
    """Between the first line of the log and the checkpoint."""
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", crashes)
        with pytest.raises(Crash):
            start()
    resumed = launch("--resume", tmp_path / "run")
    assert (resumed.code, resumed.err) == (0, "")
    assert "from the beginning" in resumed.out
    assert_same_run(tmp_path / "run", whole.run)
    assert_every_step_once(tmp_path / "run")


def assert_every_step_once(run: Path):
    """TensorBoard shows each of nine steps once, and each of three epochs at its last step; `scalars` sees doubles."""
    shown = scalars(run)
    steps, epochs = ({tag: sorted(v) for tag, v in shown.items() if tag.startswith("step/") == per} for per in (1, 0))
    assert len(steps) == 3
    assert all(found == list(range(1, 10)) for found in steps.values())
    assert {"loss/train", "miou/validation", "iou/class_1", "epoch/learning_rate"} <= epochs.keys()
    assert all(set(found) <= {3, 6, 9} for found in epochs.values())
    assert sorted(shown["loss/train"]) == [3, 6, 9]


def test_run_whose_last_checkpoint_is_damaged_goes_on_from_the_best(whole, stopped, undrawn, monkeypatch, tmp_path):
    run = shutil.copytree(stopped, tmp_path / "run")
    (path,) = (run / "checkpoints/last").glob("8/optimizer/manifest.ocdbt")
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    resumed = resume_worse(run, monkeypatch)
    assert resumed.err.startswith(f"warning: {run / 'checkpoints/last'}: cannot be read, it is damaged")
    assert "resumed at epoch 3, step 6" in resumed.out
    assert [record["epoch"] for record in records(run)] == [0, 1, 2]
    assert files_of(run, "last") == files_of(whole.run, "last")
    assert_every_step_once(run)


def test_run_whose_best_checkpoint_is_damaged_takes_the_last_for_it(whole, tmp_path):
    run = shutil.copytree(whole.run, tmp_path / "run")
    for path in (run / "checkpoints/best").glob("*/meta/metadata"):
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    resumed = launch("--resume", run)
    assert resumed.code == 0
    assert "the best weights so far are lost" in resumed.err
    assert "best epoch (3)" in resumed.out
    assert files_of(run, "best") == files_of(whole.run, "last")
    assert launch("--resume", run).err == ""


def test_run_that_started_from_weights_goes_on_to_the_same_bits(whole, start, monkeypatch, tmp_path):
    """From a checkpoint within the first epoch, and from the beginning, where it loads them again."""
    how, said = ["--load", whole.run, "-e", 1, *CONSTANT], []
    for name, action in (("signal", sends(signal.SIGTERM)), ("crash", crashes)):
        run = tmp_path / name
        with monkeypatch.context() as patch, contextlib.suppress(Crash):
            patch.setattr(assembly, "compile_train_step", AtStep(2, action))
            start(*how, "--out", run)
        resumed = launch("--resume", run)
        assert resumed.code == 0
        said.append("from the beginning" in resumed.out)
        assert config.load(run).run.load == whole.run
        assert sorted(scalars(run)["step/loss"]) == [1, 2, 3]
    assert said == [False, True]
    assert_same_run(tmp_path / "signal", run)


def test_a_run_whose_tiles_are_no_longer_the_same_is_not_resumed(whole, tiles_root, tmp_path):
    data = shutil.copytree(tiles_root, tmp_path / "data")
    run = shutil.copytree(whole.run, tmp_path / "run")
    config.save(dataclasses.replace(config.load(run), data=Data(data=data, workers=2)), run / "config.json")
    pair = find_pairs(data / "train", data / "Ltrain")[3]
    pair.image.unlink(), pair.mask.unlink()
    assert pair.image.name in refused("--resume", run)
    for path, new in ((pair.image, "other.png"), (pair.mask, "other_mask.png")):  # as many as before, but not the same
        shutil.copy(tiles_root / path.relative_to(data), path.with_name(new))
    assert "other.png" in refused("--resume", run)
    assert_same_run(run, whole.run)


@pytest.mark.full
def test_a_run_that_is_killed_goes_on_to_the_same_bits(whole, tiles_root, tmp_path):
    """`kill -9` while an epoch is being saved, in processes of their own."""
    command = [sys.executable, "-m", "jaxseg.train"]
    settings = ["--data", str(tiles_root), "--out", str(tmp_path / "run"), *TINY]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, [Path(train.__file__).parents[1], *sys.path]))}
    environment |= {"PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"}
    how = {"env": environment, "cwd": tmp_path, "encoding": "utf-8"}
    with subprocess.Popen(command + settings, stdout=subprocess.PIPE, **how) as process:
        for line in process.stdout:
            if line.startswith("epoch 2/3"):
                process.kill()
    assert process.returncode not in (0, 1, 2)
    assert step_of(tmp_path / "run", "best") in (3, 6)
    subprocess.run([*command, "--resume", str(tmp_path / "run")], check=True, capture_output=True, **how)
    assert_same_run(tmp_path / "run", whole.run)


class Arrives(Signals):
    """A signal that comes in before the look at `received` number `look`, counted from 0."""

    def __init__(self, look):
        self.look, self.looks = look, -1

    @property
    def received(self):
        self.looks += 1
        return signal.SIGTERM if self.looks >= self.look else 0


@pytest.mark.parametrize("log_every", [1, 3, 10])
@pytest.mark.parametrize("look", range(12))
def test_no_step_is_lost_whenever_a_signal_comes_in(look, log_every):
    taken = []

    def step(batch):
        taken.append(batch)
        return {"loss": jnp.float32(batch)}

    given = [record for group in run_steps(step, range(5), 100, log_every, Arrives(look)) for record in group]
    assert [record["loss"] for record in given] == taken
    assert [record["step"] for record in given] == [100 + i for i in range(len(taken))]
    assert taken == list(range(len(taken)))


def test_steps_are_looked_at_every_so_often_and_the_first_alone():
    groups = list(run_steps(lambda batch: {"loss": jnp.float32(0)}, range(8), 5, 3, Signals()))
    assert [[record["step"] for record in group] for group in groups] == [[5], [6, 7, 8], [9, 10, 11], [12]]
    assert list(run_steps(None, [], 0, 3, Signals())) == []


def test_a_step_waits_for_its_batch_only_while_no_other_is_under_way():
    under_way = iter([True, False])

    class Loss(float):
        def is_ready(self):
            return not next(under_way)

    def batches():
        for i in range(4):
            time.sleep(0.02)
            yield i

    groups = run_steps(lambda batch: {"loss": Loss(batch)}, batches(), 0, 10, Signals())
    waited = [record["waited"] for group in groups for record in group]
    assert [seconds > 0 for seconds in waited] == [
        True,
        True,
        False,
        True,
    ]  # the first is fetched: none is under way
    assert min(seconds for seconds in waited if seconds) >= 0.015


# a loss that is no number


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_checkpoint(start, tmp_path):
    wild = ["--optimizer", "sgd", "--lr", "1e30", "--schedule-per", "epoch", "--warmup-epochs", "1"]
    stopped = start(*wild)  # the first epoch has a learning rate of 1e-9
    assert stopped.code == 1
    for part in ("nan", "epoch 2", "steps 4 to 5", "1e+30", "--learning-rate"):
        assert part in stopped.err
    assert "Traceback" not in stopped.err
    run = tmp_path / "run"
    assert (step_of(run, "last"), step_of(run, "best"), len(records(run))) == (3, 3, 1)
    assert progress_of(run, "last")["epoch"] == 1
    assert all(np.isfinite(x).all() for x in arrays_of(run))


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_first_step_that_is_no_number_is_named(name, value):
    good = {"loss": 0.5, "grad_norm": 1.0, "learning_rate": 0.25}
    group = [good | {"step": 7}, good | {"step": 8, name: value}, good | {"step": 9, name: value}]
    loop.check_finite(group[:1], 2)
    with pytest.raises(NonFiniteLoss) as caught:
        loop.check_finite(group, 2)
    for part in ("at step 8", "epoch 3", "steps 7 to 9", str(value), "0.25"):
        assert part in str(caught.value)


def test_no_checkpoint_is_promised_when_there_is_none(start, monkeypatch, tmp_path):
    spoiled = AtStep(2, lambda record: record | {"loss": jnp.float32(jnp.nan)})
    monkeypatch.setattr(assembly, "compile_train_step", spoiled)
    stopped = start()
    assert stopped.code == 1
    assert not list((tmp_path / "run/checkpoints/last").iterdir())
    assert "is kept" not in stopped.err


def test_an_epoch_that_ends_in_no_number_does_not_take_the_last_checkpoints_place(start, monkeypatch, tmp_path):
    """The last step's loss is that from before its update; what the update did shows in validation."""
    compile_eval_step, calls = assembly.compile_eval_step, []

    def spoiled(net, **how):
        step = compile_eval_step(net, **how)

        def counted(batch):
            calls.append(batch)
            return step(batch) | ({"loss": jax.numpy.nan} if len(calls) == 2 else {})

        return counted

    monkeypatch.setattr(assembly, "compile_eval_step", spoiled)
    stopped = start()
    assert stopped.code == 1
    assert step_of(tmp_path / "run", "last") == 3
    assert "epoch 2" in stopped.err


def test_the_loss_of_the_settings_is_trained_and_evaluated(start, monkeypatch):
    asked = []

    def crash(net, loss, **_):
        asked.append(loss)
        raise Crash

    monkeypatch.setattr(assembly, "compile_train_step", lambda net, optimizer, loss, **_: asked.append(loss))
    monkeypatch.setattr(assembly, "compile_eval_step", crash)
    with pytest.raises(Crash):
        start("--loss", "dice")
    assert asked == [losses.dice] * 2


# what is refused


def write_pair(root: Path, name: str, height: int, width: int):
    for folder in ("images", "masks"):
        write(root / folder / f"{name}.png", np.full((height, width, 3), 255, np.uint8))


def test_mistakes_in_flags_and_files_end_with_2_and_a_message(whole, tmp_path):
    assert "--epochs is 0" in refused("--epochs", 0)
    assert str(tmp_path / "nowhere") in refused("--data", tmp_path / "nowhere")
    assert "config.json" in refused("--resume", tmp_path)
    assert "--seed" in refused("--resume", whole.run, "--seed", 5)


def test_broken_tiles_of_both_sides_end_with_2_and_are_listed(tiles_root, tmp_path):
    data = shutil.copytree(tiles_root, tmp_path / "data")
    broken = [next((data / side).glob("*.png")) for side in ("train", "Lval")]
    for path in broken:
        path.write_bytes(b"no image")
    message = refused("--data", data, "--out", tmp_path / "run", *TINY)
    assert [path for path in broken if path.name not in message] == []
    assert not (tmp_path / "run").exists()


def test_a_tile_that_vanishes_during_the_run_ends_it_with_its_name(tiles_root, tmp_path, monkeypatch):
    data = shutil.copytree(tiles_root, tmp_path / "data")
    gone = data / "train/train_0003.png"
    monkeypatch.setattr(assembly, "compile_train_step", AtStep(STEPS, lambda record: gone.unlink()))
    assert str(gone) in refused("--data", data, "--out", tmp_path / "run", "--cache-mb", 0, *TINY)


def test_unknown_flags_end_with_2():
    command = [sys.executable, "-m", "jaxseg.train", "--bogus"]
    environment = os.environ | {"PYTHONPATH": str(Path(train.__file__).parents[1])}
    result = subprocess.run(command, capture_output=True, encoding="utf-8", env=environment)
    assert result.returncode == 2
    assert "--bogus" in result.stdout + result.stderr
    assert "Traceback" not in result.stderr


# the data of a run


def test_training_is_shuffled_by_the_seed_and_validation_is_not(tiles_root):
    def opened(seed):
        return open_data(cli.parse(["--data", str(tiles_root), *TINY])).pipelines(seed, workers=0)

    training, validation = opened(3)
    assert (training.shuffle, training.seed, training.batch_size) == (True, 3, 4)
    assert validation.order(1).tolist() == [0, 1, 2, 3]
    assert training.order(0).tolist() != opened(4)[0].order(0).tolist()


def test_a_split_by_percent_is_written_down(tiles_root, tmp_path, monkeypatch):
    images, masks = tmp_path / "images", tmp_path / "masks"
    shutil.copytree(tiles_root / "train", images), shutil.copytree(tiles_root / "Ltrain", masks)
    for side, folder in (("val", images), ("Lval", masks)):
        for path in sorted((tiles_root / side).iterdir())[:2]:
            shutil.copy(path, folder)
    monkeypatch.setattr(assembly, "compile_train_step", AtStep(1, sends(signal.SIGTERM)))
    assert launch("--data", tmp_path, "--validation", "20", "--out", tmp_path / "run", *TINY).code == 143
    text = (tmp_path / "run/split.json").read_text()
    validation = find_split(Data(data=tmp_path, validation=20.0), seed=0).validation
    assert len(validation) == 2
    assert [pair.image.name for pair in validation if pair.image.name not in text] == []
