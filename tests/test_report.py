"""The page: one file that opens from disk, with every section, every picture, every row, and nothing from elsewhere."""

import base64
import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

from parity.judge import ledger
from parity.judge.answer import Answer
from parity.judge.compare import at_most
from parity.report import drawings, page, report

CURVE = [1.0, 0.5, 0.1]
ERRORS = {"jaxseg": [1e-7, 2e-7], "torch": [2e-7, 1e-7], "between": [0.0, 1e-7]}
LAYER = {"jaxseg": 1e-7, "torch": 2e-7, "between": 0.0, "float64": 1e-16, "equal": 0.5, "ulps": 1.0}
ULPS = {
    "0": 0.1,
    "1": 0.3,
    "4": 0.5,
    "16": 0.8,
    "64": 0.9,
    "256": 1.0,
    "median": 4.0,
    "p99": 200.0,
    "max": 250,
    "counted": 0.9,
}
EVIDENCE = {
    "schedule": {"epochs": [0, 1, 2], "curves": [{"name": "article", "torch": CURVE, "jaxseg": CURVE}]},
    "init": {
        "histograms": [
            {"name": "conv", "law": "normal", "sigma": 1.0, "edges": [-1, 0, 1], "jaxseg": [3, 4], "torch": [4, 3]},
            {"name": "bias", "law": "uniform", "bound": 1.0, "edges": [-1, 0, 1], "jaxseg": [3, 4], "torch": [4, 3]},
        ]
    },
    "precision": {
        "three_way": [{"case": case, "quantity": "logits"} | ERRORS for case in ("float32", "bfloat16")],
        "ulps": {"logits": {"jaxseg": ULPS, "channels_last": ULPS}},
        "layers": [{"name": f"down.{i}", "kind": "conv", "forward": LAYER, "backward": LAYER} for i in range(3)],
    },
    "divergence": {
        "recipes": [
            {
                "name": "SGD",
                "steps": [1, 2, 3],
                "jaxseg": [[0.0, 1e-8, 1e-5]],
                "variations": {"one ulp": [[0.0, 1e-8, 1e-5]], "permuted": [[1e-9, 1e-8, 1e-5]]},
                "ratio": [0.9],
            }
        ],
        "flips": {
            "steps": [1, 2, 3],
            "distance": [0.0, 1e-8, 1e-5],
            "layers": ["a", "b"],
            "counts": [[0, 0], [0, 1], [2, 9]],
        },
    },
    "mutations": {
        "questions": ["schedule", "model"],
        "mistakes": [{"name": "one tick late", "own": "schedule", "cells": {"schedule": 3, "model": 0}}],
    },
}


class Reader(HTMLParser):
    """Notes ids, texts and where things are fetched from."""

    def __init__(self, text: str):
        super().__init__()
        self.ids, self.sources, self.texts = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.ids += [found["id"]] if "id" in found else []
        self.sources += [found[key] for key in ("src", "href") if key in found]

    def handle_data(self, data):
        self.texts.append(data)


def answers(passed: bool = True) -> list[Answer]:
    out = []
    for question in page.TITLES:
        if question in ("gpu", "ledger"):
            continue
        rows = (at_most(question, f"{question} <row>", 0.5 if passed else 2, 1, "a note", "x[1]: 1.0 against 2.0"),)
        out.append(Answer(question, rows, EVIDENCE.get(question, {}), seconds=1.0))
    return [*out, Answer("gpu", (), not_run="no GPU: JAX sees cpu")]


@pytest.fixture(scope="module", autouse=True)
def drawn_once():
    """All tests show the same evidence, so its pictures are drawn once."""
    known = {}

    def once(draw):
        def drawn(evidence):
            key = (draw.__name__, json.dumps(evidence))
            if key not in known:
                known[key] = list(draw(evidence))
            return known[key]

        return drawn

    with pytest.MonkeyPatch.context() as patch:
        for draw in (drawings.schedules, drawings.histograms, drawings.run, drawings.rounding, drawings.divergence):
            patch.setattr(drawings, draw.__name__, once(draw))
        yield


@pytest.fixture
def pinned(monkeypatch):
    monkeypatch.setattr(ledger, "LEDGER", (ledger.Entry("what", "a", "b", "1", "match", "why", ("model", "<row>")),))


def write(given: list[Answer], passed: bool = True) -> Reader:
    facts = {"versions": {"jax": "1"}, "machine": {"processor": "a & b"}}
    return Reader(page.write(given, facts, passed, "verdict"))


def test_page_has_a_section_for_every_question_and_the_ledger(pinned):
    reader = write(answers())
    assert {*page.TITLES, "known"} - {"ledger"} <= set(reader.ids)
    text = " ".join(reader.texts)
    assert all(title in text for question, title in page.TITLES.items() if question != "ledger")
    assert "no GPU" in text
    assert "model <row>" in text
    assert "one tick late" in text


def test_page_needs_nothing_from_elsewhere(pinned):
    sources = write(answers()).sources
    pictures = [source for source in sources if source.startswith("data:image/svg+xml;base64,")]
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert len(pictures) == 2 + 2 + 5 + 2
    for picture in pictures:
        svg = ElementTree.fromstring(base64.b64decode(picture.partition(",")[2]))
        assert svg.tag.endswith("svg")


def test_every_anchor_of_the_summary_leads_somewhere(pinned):
    reader = write(answers())
    assert {source[1:] for source in reader.sources if source.startswith("#")} <= set(reader.ids)


def test_a_question_that_fails_is_open_and_shows_its_worst_element(pinned):
    text = page.write(answers(passed=False), {}, False, "verdict")
    assert "<details open>" in text
    assert "x[1]: 1.0 against 2.0" in text
    assert "<details open>" not in page.write(answers(), {}, True, "verdict")


def test_report_is_written_with_the_same_figures_and_the_status(tmp_path, pinned, capsys):
    assert report.finish(answers(), tmp_path, {"seed": "0"}) == 0
    found = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert found["passed"]
    assert found["environment"]["asked"] == {"seed": "0"}
    assert {question["question"] for question in found["questions"]} >= {"schedule", "gpu"}
    assert (tmp_path / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert "gpu not run" in capsys.readouterr().out
    assert report.finish(answers(passed=False), tmp_path, {}) == 1


def test_not_a_number_is_null_and_fails(tmp_path, pinned):
    broken = Answer("model", (at_most("model", "<row>", np.nan, 1),), {"curve": [float("inf"), 1.0]})
    assert report.finish([broken], tmp_path, {}) == 1
    found = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["questions"][0]
    assert found["rows"][0]["figure"] is None
    assert found["evidence"]["curve"] == [None, 1.0]


def test_nothing_asked_is_no_success(tmp_path, pinned):
    assert report.finish([], tmp_path, {}) == 1


def test_an_entry_of_the_ledger_without_its_row_fails(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ledger, "LEDGER", (ledger.Entry("lost", "a", "b", "1", "match", "why", ("model", "gone")),))
    assert report.finish(answers(), tmp_path, {}) == 1
    assert "no row named" in re.sub(r"\s+", " ", capsys.readouterr().out)
    assert report.finish([a for a in answers() if a.question != "model"], tmp_path, {}) == 0


def test_two_rows_of_one_name_fail(pinned):
    row, other = at_most("model", "<row>", 0, 1), at_most("model", "another <row>", 0, 1)
    assert list(ledger.rows([Answer("model", (row, other))])) == []
    (found,) = ledger.rows([Answer("model", (row, other, row))])
    assert not found.passed
    assert found.name == "model: rows named '<row>'"


def test_ledger_entries_are_complete():
    assert len(ledger.LEDGER) >= 50
    for entry in ledger.LEDGER:
        assert all((entry.what, entry.pytorch, entry.jax, entry.size, entry.why))
        assert entry.verdict in ("match", "accepted", "impossible")
        assert entry.pin is not None or entry.verdict == "accepted"
        assert entry.pin is None or entry.pin[0] in page.TITLES


def test_terminal_shows_markup_in_names_as_it_is(capsys):
    report.show(Answer("model", (at_most("model", "conv[0] [red]", 2, 1, worst="[b]x[/b]"),)))
    assert "conv[0] [red]" in capsys.readouterr().out
