"""The parity suite passes on jaxseg as it is, in small, and fails where jaxseg is broken on purpose."""

import json
import math
from dataclasses import replace

import cv2
import jax
import jax.numpy as jnp
import pytest

from jaxseg import model, optim, schedules, step
from jaxseg.data import tiles
from parity import __main__ as parity
from parity.answer import Settings
from parity.checks import data, schedule, training
from parity.checks import model as model_check

TINY = {"tiny": {"widths": (4, 8)}}


def failed(rows) -> set[str]:
    return {row.name.removeprefix("tiny: ") for row in rows if not row.passed}


@pytest.fixture
def tiny_model(monkeypatch):
    monkeypatch.setattr(model_check, "CASES", TINY)


def test_report_says_what_passed_and_exits_with_0(tmp_path, tiles_root, capsys):
    assert parity.main(["--only", "schedule", "data", "--data", str(tiles_root), "--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["passed"]
    assert [q["question"] for q in report["questions"]] == ["schedule", "data"]
    page = (tmp_path / "report.html").read_text()
    rows = [row for question in report["questions"] for row in question["rows"]]
    assert len(rows) >= 10
    assert all(row["name"].replace("'", "&#x27;") in page for row in rows)
    assert cv2.imread(str(tmp_path / "schedules.png")) is not None
    assert "rows pass" in capsys.readouterr().out


def test_a_failing_row_exits_with_1_and_names_the_worst_element(tmp_path, monkeypatch, capsys):
    right = schedules.article
    monkeypatch.setattr(schedules, "article", lambda *a, **k: lambda tick: right(*a, **k)(tick + 1))
    assert parity.main(["--only", "schedule", "--out", str(tmp_path)]) == 1
    assert not json.loads((tmp_path / "report.json").read_text())["passed"]
    assert " against " in capsys.readouterr().out


def test_a_check_that_breaks_fails_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(schedule, "run", lambda settings: 1 / 0)
    assert parity.main(["--only", "schedule", "--out", str(tmp_path)]) == 1


def test_missing_data_is_a_mistake_not_a_verdict(tmp_path, capsys):
    assert parity.main(["--only", "data", "--data", str(tmp_path / "nothing"), "--out", str(tmp_path)]) == 2
    assert "nothing" in capsys.readouterr().err


def test_data_check_sees_swapped_channels(monkeypatch, tiles_root):
    right = tiles.read_image
    monkeypatch.setattr(tiles, "read_image", lambda path: right(path)[..., ::-1])
    assert "training tiles, shuffled" in failed(data.run(Settings(data=tiles_root)).rows)


def test_data_check_sees_a_mask_that_counts_every_value_above_0(monkeypatch, tiles_root):
    monkeypatch.setattr(tiles, "read_mask", lambda path: (255 - tiles.read_gray(path)) // 255)
    assert "validation tiles, in order" in failed(data.run(Settings(data=tiles_root)).rows)


def test_data_check_sees_a_normalization_that_is_one_ulp_off(monkeypatch, tiles_root):
    monkeypatch.setattr(data, "normalize", lambda image: image.astype(jnp.float32) / 255)
    assert "all 256 bytes / 255" in failed(data.run(Settings(data=tiles_root)).rows)


def test_model_check_passes_on_a_tiny_network(tiny_model):
    assert failed(model_check.run(Settings()).rows) == set()


def test_model_check_sees_a_biased_running_variance_and_nothing_else(tiny_model, monkeypatch):
    right = model.BatchNorm._statistics

    def biased(self, x, valid):
        before = self.var[...]
        mean, var = right(self, x, valid)
        self.var[...] = (1 - self.momentum) * before + self.momentum * var
        return mean, var

    monkeypatch.setattr(model.BatchNorm, "_statistics", biased)
    assert failed(model_check.run(Settings()).rows) == {"12 running statistics", "evaluation logits"}


def test_model_check_sees_padding_that_takes_part(tiny_model, monkeypatch):
    right = model.BatchNorm.__call__
    monkeypatch.setattr(model.BatchNorm, "__call__", lambda self, x, valid=None: right(self, x))
    assert {"logits", "loss"} <= failed(model_check.run(Settings()).rows)


@pytest.mark.parametrize(
    ("broken", "fails"),
    [
        pytest.param(None, set(), id="right"),
        pytest.param(lambda lr: optim.adam(lr, eps=1e-6), {"parameters", "running statistics"}, id="eps"),
    ],
)
def test_training_check_sees_a_wrong_optimizer(broken, fails):
    recipe = replace(training.ADAMW, widths=(4, 8), ours=broken or training.ADAMW.ours)
    with jax.enable_x64(True):
        names = {row.name.split(": ")[1] for row in training.exact_rows(recipe, 0) if not row.passed}
    assert names >= fails
    assert bool(names) == bool(fails)


@pytest.mark.parametrize("bad_seed", [0, 1])
def test_training_check_sees_a_float32_run_that_ends_in_no_number(bad_seed, monkeypatch):
    runs = iter(range(2))

    def train(self, weights, data):
        training.from_torch(self.net, weights)
        if next(runs) == bad_seed:
            self.net.head.bias[...] = jnp.full(2, jnp.nan)

    monkeypatch.setattr(training.Ours, "train", train)
    monkeypatch.setattr(training, "SEEDS", 2)
    row = training.envelope_row(replace(training.SGD, widths=(4, 8)), 0)
    assert not row.passed
    assert math.isnan(row.figure)


def test_training_check_runs_the_function_that_the_trainer_compiles():
    assert training.compile_train_step is step.compile_train_step
