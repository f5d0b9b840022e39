"""The command: what it asks, writes, prints and exits with."""

import importlib
import json

import pytest

from jaxseg.learn import schedules
from parity import __main__ as parity
from parity.checks import schedule
from parity.report import page


@pytest.mark.full  # CI runs the command
def test_report_says_what_passed_and_exits_with_0(tmp_path, tiles_root, capsys):
    assert parity.main(["--only", "schedule", "data", "--data", str(tiles_root), "--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["passed"]
    assert [q["question"] for q in report["questions"]] == ["schedule", "data"]
    text = (tmp_path / "report.html").read_text()
    rows = [row for question in report["questions"] for row in question["rows"]]
    assert len(rows) >= 10
    assert all(row["name"].replace("'", "&#x27;") in text for row in rows)
    assert text.count("data:image/svg+xml") >= 2
    assert "rows pass" in capsys.readouterr().out


def test_a_failing_row_exits_with_1_and_names_the_worst_element(tmp_path, monkeypatch, capsys):
    right = schedules.article
    monkeypatch.setattr(schedules, "article", lambda *a, **k: lambda tick: right(*a, **k)(tick + 1))
    assert parity.main(["--only", "schedule", "--quick", "--out", str(tmp_path)]) == 1
    assert not json.loads((tmp_path / "report.json").read_text())["passed"]
    assert " against " in capsys.readouterr().out


def test_a_check_that_breaks_fails_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(schedule, "run", lambda settings: 1 / 0)
    assert parity.main(["--only", "schedule", "--out", str(tmp_path)]) == 1


def test_missing_data_is_a_mistake_not_a_verdict(tmp_path, capsys):
    assert parity.main(["--only", "data", "--data", str(tmp_path / "nothing"), "--out", str(tmp_path)]) == 2
    assert "nothing" in capsys.readouterr().err


def test_quick_leaves_out_the_mutations_unless_they_are_named():
    assert "mutations" not in parity.questions(parity.Options(quick=True))
    assert "mutations" in parity.questions(parity.Options())
    assert parity.questions(parity.Options(quick=True, only=("mutations",))) == ["mutations"]


def test_a_gpu_that_is_not_there_is_a_mistake(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert parity.main(["--only", "gpu", "--device", "gpu", "--out", str(tmp_path)]) == 2
    assert "sees no GPU" in capsys.readouterr().err


def test_every_question_has_its_module_and_its_title():
    for question in parity.QUESTIONS:
        module = "parity.mutations" if question == "mutations" else f"parity.checks.{question}"
        assert callable(importlib.import_module(module).run)
        assert question in page.TITLES
