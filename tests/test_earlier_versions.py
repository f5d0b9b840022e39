"""Runs that earlier versions wrote, in `tests/runs/VERSION`, can be resumed, predicted with and evaluated.

Each was stopped at step 7 of 24 by SIGTERM, and lacks only its pictures and TensorBoard events. `tests/runs/expected`
has what that version went on to: class maps and scores of its best checkpoint, and the last epoch of the run that was
not stopped.
"""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from jaxseg import evaluate, predict, train
from jaxseg.runs.checkpoint import Checkpoints

RUNS = Path(__file__).parent / "runs"
FIELDS, EXPECTED = RUNS / "fields", RUNS / "expected"


@pytest.fixture(params=["v0.1.0"])
def run(request, tmp_path) -> Path:
    """A copy of the run, without one of its settings, as if it had come later."""
    copy = shutil.copytree(RUNS / request.param, tmp_path / request.param)
    settings = json.loads((copy / "config.json").read_text())
    del settings["optimization"]["label_smoothing"]
    (copy / "config.json").write_text(json.dumps(settings))
    return copy


def test_an_earlier_run_goes_on_to_the_same_end(run, capsys, undrawn, monkeypatch):
    def save_at_the_end(self, which, step, *rest, save=Checkpoints.save):
        """Saving after every epoch would be most of the time."""
        if step == 24:
            save(self, which, step, *rest)

    monkeypatch.setattr(Checkpoints, "save", save_at_the_end)
    assert train.main(["--resume", str(run), "--data", str(FIELDS)]) == 0
    assert "--label-smoothing 0.0" in capsys.readouterr().err
    found, expected = (
        json.loads(path.read_text().splitlines()[-1]) for path in (run / "log.jsonl", EXPECTED / "last_epoch.json")
    )
    assert (found["epoch"], found["step"]) == (expected["epoch"], expected["step"]) == (11, 24)
    for split in ("train", "validation"):
        # 1e-4 as users compile; without XLA's optimization, as tests do, sums have another order
        assert found[split]["loss"] == pytest.approx(expected[split]["loss"], rel=2e-3)
        assert found[split]["miou"] == pytest.approx(expected[split]["miou"], abs=5e-3)


def test_an_earlier_run_predicts_the_same_classes(run, tmp_path):
    assert predict.main([str(run), str(FIELDS / "val"), "-o", str(tmp_path / "maps")]) == 0
    for name in ("val_0.png", "val_1.png"):
        found, expected = (cv2.imread(str(folder / name)) for folder in (tmp_path / "maps", EXPECTED))
        assert np.mean(found == expected) > 0.999


def test_an_earlier_run_has_the_same_scores(run, tmp_path):
    out = tmp_path / "scores"
    assert evaluate.main([str(run), "--data", str(FIELDS), "--split", "validation", "-o", str(out)]) == 0
    found, expected = (json.loads((folder / "metrics.json").read_text()) for folder in (out, EXPECTED))
    assert found["miou"] == pytest.approx(expected["miou"], abs=5e-3)
    assert np.abs(np.subtract(found["confusion_matrix"], expected["confusion_matrix"])).sum() <= 4
