import importlib.util
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from parity.checks import init
from parity.twins import draws

spec = importlib.util.spec_from_file_location("false_alarms", Path(__file__).parents[1] / "scripts" / "false_alarms.py")
false_alarms = importlib.util.module_from_spec(spec)
spec.loader.exec_module(false_alarms)

TINY = draws.Size((8, 16), classes=8, builds=16, others=2, draws=1_000)


@pytest.mark.full  # a script
def test_runs_on_correct_code_raise_no_alarm(monkeypatch, capsys):
    monkeypatch.setattr(draws, "QUICK", TINY)
    assert false_alarms.main(["--seeds", "3"]) == 0
    printed = capsys.readouterr().out
    assert "runs that failed: 0; with 95 % confidence fewer than 0.63 of all do" in printed
    for kind in ("spread, normal", "spread, uniform", "truncation", "support", "independence", "whole runs"):
        assert f"\n{kind}" in printed


def test_a_run_that_failed_is_named(monkeypatch, capsys):
    outcomes = [false_alarms.Outcome([], {"support": [0.5]}), false_alarms.Outcome(["bounds"], {"support": [1e-9]})]
    monkeypatch.setattr(false_alarms, "ask", lambda seeds, workers: outcomes)
    assert false_alarms.main(["--seeds", "2"]) == 1
    assert "seed 1: bounds" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("power", "guilty"), [pytest.param(1.0, [], id="exact"), (0.5, []), pytest.param(1.3, ["test"], id="too small")]
)
def test_chances_that_are_too_small_too_often_are_seen(rng, capsys, power, guilty):
    chances = {"test": rng.random(20_000) ** power}
    assert false_alarms.show(chances) == guilty
    printed = capsys.readouterr().out
    assert ("more!" in printed) == bool(guilty)
    assert ("fewer" in printed) == (power < 1)


def test_whole_runs_count_the_smallest_chance_times_the_tests():
    outcomes = [
        false_alarms.Outcome([], {"a": [0.5, 0.01], "b": [0.2]}),
        false_alarms.Outcome([], {"a": [0.9], "b": []}),
    ]
    pooled = false_alarms.pooled(outcomes)
    assert pooled["a"].tolist() == [0.5, 0.01, 0.9]
    assert pooled[false_alarms.RUNS] == pytest.approx([0.03, 0.9])


def test_the_limit_for_no_failure_is_three_in_all():
    assert false_alarms.failure_limit(0, 1000) == pytest.approx(3e-3, rel=4e-3)
    assert false_alarms.failure_limit(3, 1000) > 3e-3
    assert false_alarms.failure_limit(5, 5) == 1
    low, high = false_alarms.band(1000, 0.1, 1e-5)
    assert low < 100 < high
    assert np.isclose(high - 100, 4.3 * np.sqrt(90), rtol=0.1)


def test_every_test_of_a_run_gets_its_share_of_the_rate():
    asked = []
    test = init.Test("row", "kind", lambda alpha: asked.append(alpha) or init.compare.at_most("init", "name", 0, 1))
    assert len(init.judge([test] * 4)) == 4
    assert asked == [init.FALSE_ALARMS / 4] * 4
