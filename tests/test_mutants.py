"""Random mutants: which changes are made, what runs a line, and what is told about survivors."""

import ast
import json
import sys
import types
from pathlib import Path

import pytest

from parity.mutants import hunt, reach
from parity.mutants.changes import compiles, mutants, statements

SOURCE = '''"""Module."""

LEAST = 2


def area(h: int = 3, w: int = 4, *, twice: bool = False) -> int:
    """Area of 1 or 2."""
    if h < LEAST:
        raise ValueError(f"{h + 1} is below {LEAST}")
    for i in range(h):
        w = w - i
    return max(h, w) if twice else area(w, h, twice=True)
'''


def made(source: str) -> set[tuple[str, str]]:
    return {(m.before, m.after.strip("()")) for m in mutants(source, "a.py")}


def test_each_kind_of_change_is_made():
    found = made(SOURCE)
    assert {("2", "3"), ("2", "1"), ("h < LEAST", "h <= LEAST"), ("False", "True")} < found
    assert {("w - i", "w + i"), ("w - i", "w"), ("w - i", "i - w"), ("3", "4")} < found
    assert {("area(w, h, twice=True)", "area(h, w, twice=True"), ("area(w, h, twice=True)", "area(w, h")} < found
    assert ("max(h, w) if twice else area(w, h, twice=True)", "area(w, h, twice=True) if twice else max(h, w") in found
    assert made("x = -1") == {("-1", "1"), ("1", "2")}
    assert made("x = a.sum() and b") == {
        ("a.sum", "a.mean"),
        ("a.sum() and b", "a.sum() or b"),
        ("a.sum() and b", "a.sum"),
    }


@pytest.mark.parametrize(
    "source", ['"""1 + 1"""', "raise ValueError(1 + 1)", "x: 'Float[1]'", "Kind = dict[str, int | None]"]
)
def test_words_types_and_errors_stay(source):
    assert made(source) == set()


def test_a_change_touches_its_place_alone():
    for mutant in mutants(SOURCE, "a.py"):
        changed = mutant.applied(SOURCE)
        assert changed != SOURCE
        assert compiles(changed)
        different = [i for i, (a, b) in enumerate(zip(SOURCE.splitlines(), changed.splitlines())) if a != b]
        assert different == [mutant.line - 1]


def test_names_of_mutants_do_not_depend_on_other_lines():
    names = [m.name for m in mutants(SOURCE, "a.py")]
    assert len(set(names)) == len(names)
    moved = SOURCE.replace("LEAST = 2\n", "LEAST = 2\n\n\nOTHER = 'x'\n")
    assert [m.name for m in mutants(moved, "a.py")] == names


def test_instrumented_code_notes_its_statements_and_does_the_same(monkeypatch):
    hits = []
    monkeypatch.setitem(sys.modules, "reached", types.SimpleNamespace(hit=hits.append))
    module = {}
    exec(reach.instrumented(SOURCE, "a.py"), module)
    hits.clear()
    assert module["area"](2, 5, twice=True) == 4
    assert hits[0] == "a.py.area: if h < LEAST:"
    assert "a.py.area: raise ValueError" not in str(hits)
    known = {f"a.py{key}" for _, key in statements(ast.parse(SOURCE), SOURCE.splitlines())}
    assert set(hits) < known


@pytest.fixture
def reached(tmp_path):
    tests = {
        "t.py::wide": [1.0, ["a.py.area: if h < LEAST:", "a.py.area: w = w - i", "a.py.other: x", "a.py.third: y"]],
        "t.py::narrow": [2.0, ["a.py.area: if h < LEAST:"]],
        "t.py::elsewhere": [0.1, ["a.py.other: x"]],
    }
    (tmp_path / "t.json").write_text(json.dumps({"tests": tests}))
    return reach.Reach(tmp_path)


def test_the_narrowest_test_that_runs_a_statement_comes_first(reached):
    assert reached.of("a.py", ".area: if h < LEAST:", SOURCE) == ["t.py::narrow", "t.py::wide"]
    assert reached.of("a.py", ".area: w = w - i", SOURCE) == ["t.py::wide"]


def test_what_runs_on_import_has_the_tests_of_its_users(reached):
    assert reached.of("a.py", ": LEAST = 2", SOURCE) == ["t.py::narrow", "t.py::wide", "t.py::elsewhere"]
    line = ": def area(h: int = 3, w: int = 4, *, twice: bool = False) -> int:"
    assert reached.of("a.py", line, SOURCE) == ["t.py::narrow", "t.py::wide", "t.py::elsewhere"]
    assert set(reached.of("a.py", ": UNUSED = 2", SOURCE)) == set(reached.seconds)


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    root = tmp_path / "project"
    for folder in ("jaxseg/nn", "parity", "tests"):
        (root / folder).mkdir(parents=True)
    (root / "jaxseg/nn/area.py").write_text(SOURCE)
    monkeypatch.setattr(reach, "find", lambda *how: iter(()))
    return root


def test_mutants_are_put_in_one_at_a_time_and_taken_out(project, tmp_path, monkeypatch):
    seen = []

    def try_one(copy, mutant, *rest):
        text = (copy / mutant.file).read_text()
        seen.append((text == SOURCE, mutant.applied(text)))
        return hunt.Fate(mutant.name, "a.py:1", ("a", "b"), "FAILED t.py" if len(seen) % 2 else "", 3, rest[1])

    monkeypatch.setattr(hunt, "try_one", try_one)
    drawn = hunt.sample(project, 6, 0)
    assert len({(m.begin, m.after) for m in drawn}) == 6
    first = list(hunt.hunt(project, drawn, tmp_path / "out"))
    assert [bool(fate.killed_by) for fate in first] == [True, False] * 3
    assert all(right for right, _ in seen)
    assert len(hunt.fates(tmp_path / "out")) == len({m.name for m in drawn})
    again = list(hunt.hunt(project, drawn, tmp_path / "out"))  # kept: nothing is tried again
    assert len(again) == 6
    assert len(seen) == 6
    (project / "tests/test_more.py").write_text("#")
    list(hunt.hunt(project, drawn, tmp_path / "out"))  # another state: survivors are
    assert len(seen) >= 8


def test_a_mutant_is_killed_by_the_test_that_fails_and_the_file_is_restored(project, tmp_path, monkeypatch):
    (project / "tests/test_area.py").write_text(
        "from jaxseg.nn.area import area\n\ndef test_area():\n    assert area(3, 9, twice=True) == 6\n"
    )
    (tmp_path / "t.json").write_text(
        json.dumps({"tests": {"tests/test_area.py::test_area": [1.0, ["jaxseg/nn/area.py.area: w = w - i"]]}})
    )
    reached, env = reach.Reach(tmp_path), {"PATH": "", "PYTHONDONTWRITEBYTECODE": "1"}
    by_change = {m.after: m for m in mutants(SOURCE, "jaxseg/nn/area.py") if m.before == "w - i"}
    killed = hunt.try_one(project, by_change["(w + i)"], reached, "now", env)
    assert "test_area" in killed.killed_by
    assert killed.diff == ("w = w - i", "w = (w + i)")
    assert (project / "jaxseg/nn/area.py").read_text() == SOURCE


def test_the_share_leaves_out_equivalent_mutants(project, tmp_path, monkeypatch, capsys):
    fates = [
        hunt.Fate(name, "a.py:1", ("a", "b"), by, 2, "now")
        for name, by in (("x", "FAILED t"), ("y", "question losses: a"), ("z", ""), ("w", ""))
    ]
    monkeypatch.setattr(hunt, "sample", lambda *how: [])
    monkeypatch.setattr(hunt, "hunt", lambda *how: iter(["tests/test_a.py", *fates]))
    monkeypatch.setattr(hunt, "equivalents", lambda: {"z": "padding is dropped"})
    assert hunt.main(4, 0, 1, tmp_path) == 1
    out = capsys.readouterr().out
    assert "1 killed by tests, 1 by questions, 1 equivalent, 1 alive; 66.7%" in out
    monkeypatch.setattr(hunt, "equivalents", lambda: {"z": "a", "w": "b"})
    assert hunt.main(4, 0, 1, tmp_path) == 0


def test_every_mutant_that_is_called_equivalent_exists_and_says_why():
    root = Path(hunt.__file__).parents[2]
    names = {m.name for path in reach.sources(root) for m in mutants((root / path).read_text(), path.as_posix())}
    assert set(hunt.equivalents()) <= names
    assert all(len(why) > 10 for why in hunt.equivalents().values())
