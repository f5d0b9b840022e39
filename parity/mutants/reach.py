"""Finds which tests and questions run a statement: `Reach`, kept in a folder as one file per test file and question.

A test that fails without any mutant is left out.

They run once in a copy of the project in which every statement of `ROOMS` first notes that it is reached. A statement
is known by its function and its text, so the notes outlive changes elsewhere in the file.
"""

import ast
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from parity.mutants.changes import statements

ROOMS = ("jaxseg/nn", "jaxseg/learn", "jaxseg/data")
LEFT_OUT = ("jaxseg/data/made",)  # made-up fields: no value is the right one
COPIED = ("jaxseg", "parity", "tests", "scripts", "pyproject.toml", "README.md")
ASKED = ("schedule", "losses", "optimizers", "layers", "init", "data", "augmentation", "model", "training")
"""Questions, the quick ones first."""
NOTES = "reached.py"


def sources(root: Path) -> list[Path]:
    """Files that get mutants, relative to `root`."""
    found = [path.relative_to(root) for room in ROOMS for path in sorted((root / room).rglob("*.py"))]
    return [path for path in found if not path.as_posix().startswith(LEFT_OUT)]


def test_files(root: Path) -> list[Path]:
    """Test files that import one of `ROOMS`; not those that ask whole questions."""
    wanted = re.compile("|".join(re.escape(room.replace("/", ".")) for room in ROOMS))
    tests = [path.relative_to(root) for path in sorted((root / "tests").glob("test_*.py"))]
    tests = [p for p in tests if not p.name.startswith(("test_parity", "test_muta", "test_race"))]
    return [path for path in tests if wanted.search((root / path).read_text())]


def copy_of(root: Path, folder: Path) -> Path:
    """Copies the project to `folder`, without caches."""
    for name in COPIED:
        if (root / name).is_dir():
            shutil.copytree(
                root / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True
            )
        elif (root / name).exists():
            shutil.copy(root / name, folder / name)
    return folder


class Reach:
    """Tests by the statements that they run, with their seconds. Read from `folder`, and found where it lacks them."""

    def __init__(self, folder: Path):
        self.by_statement: dict[str, set[str]] = {}
        self.seconds: dict[str, float] = {}
        self.width: dict[str, int] = {}
        for file in sorted(folder.glob("*.json")):
            for test, (seconds, hits) in json.loads(file.read_text())["tests"].items():
                self.seconds[test], self.width[test] = seconds, len(hits)
                for hit in hits:
                    self.by_statement.setdefault(hit, set()).add(test)

    def of(self, file: str, statement: str, text: str) -> list[str]:
        """Tests that run a statement, those first that run the fewest others.

        A statement that runs on import has those of the functions that mention what it defines, then of its file.
        """
        found = self.by_statement.get(f"{file}{statement}")
        if found:
            return self._sorted(found)
        path, _, line = statement.partition(": ")
        defined = re.match(r"(?:def|class)\s+(\w+)|(\w+)\s*[:=]", line)
        name = defined and (defined[1] or defined[2])
        users = [f"{path}.{name}"] if defined and defined[1] else _mentioning(text, name) if name else [path]
        first = self._within(file, users)
        return self._sorted(first) + self._sorted(self._within(file, [""]) - first)

    def _sorted(self, tests: set[str]) -> list[str]:
        return sorted(tests, key=lambda test: (self.width[test], test))

    def _within(self, file: str, paths: Iterable[str]) -> set[str]:
        starts = tuple(f"{file}{path}{end}" for path in paths for end in (":", "."))
        return {t for statement, tests in self.by_statement.items() if statement.startswith(starts) for t in tests}


def _mentioning(text: str, name: str) -> list[str]:
    """Paths of the functions that use `name`."""
    found = []

    def walk(node: ast.AST, path: str) -> None:
        for child in ast.iter_child_nodes(node):
            inside = isinstance(child, ast.FunctionDef | ast.ClassDef)
            if (isinstance(child, ast.Name) and child.id == name) or (
                isinstance(child, ast.Attribute) and child.attr == name
            ):
                found.append(path)
            walk(child, f"{path}.{child.name}" if inside else path)

    walk(ast.parse(text), "")
    return [path for path in dict.fromkeys(found) if path]


def find(root: Path, folder: Path, scratch: Path, env: dict[str, str]) -> Iterator[str]:
    """Runs what `folder` does not know yet, in an instrumented copy in `scratch`; yields what it is about to run."""
    folder.mkdir(parents=True, exist_ok=True)
    todo = [(_name(root, path), [str(path)]) for path in test_files(root)]
    todo.append(("doctests-.json", list(ROOMS[:2])))
    todo = [(name, args) for name, args in todo if not (folder / name).exists()]
    asked = [q for q in ASKED if not (folder / f"question-{q}.json").exists()]
    if not todo and not asked:
        return
    copy_of(root, scratch)
    (scratch / NOTES).write_text(PLUGIN)
    for path in sources(root):
        (scratch / path).write_text(instrumented((root / path).read_text(), path.as_posix()))
    for name, args in todo:
        yield args[0]
        out = ["--reached", str(folder / name)]
        command = [sys.executable, "-m", "pytest", "-q", "-p", "reached", "-p", "no:cacheprovider", *out, *args]
        subprocess.run(command, cwd=scratch, env=env | {"PYTHONPATH": str(scratch)}, capture_output=True, check=False)
        stem = name.rpartition("-")[0]
        for old in folder.glob(f"{stem}-*.json"):
            if old.name != name and (folder / name).exists():
                old.unlink()
    for question in asked:
        yield f"question {question}"
        command = [sys.executable, "-c", QUESTION, question, str(folder / f"question-{question}.json")]
        subprocess.run(command, cwd=scratch, env=env | {"PYTHONPATH": str(scratch)}, capture_output=True, check=False)


def _name(root: Path, path: Path) -> str:
    digest = hashlib.blake2b((root / path).read_bytes(), digest_size=6).hexdigest()
    return f"{path.as_posix().replace('/', '.').removesuffix('.py')}-{digest}.json"


def instrumented(text: str, file: str) -> str:
    """A module whose statements note that they are reached."""
    tree = ast.parse(text)
    known = {id(statement): key for statement, key in statements(tree, text.splitlines())}

    class Insert(ast.NodeTransformer):
        def generic_visit(self, node: ast.AST) -> ast.AST:
            super().generic_visit(node)
            for field in ("body", "orelse", "finalbody"):
                body = getattr(node, field, None)
                if isinstance(body, list):
                    setattr(node, field, [new for old in body for new in self.noted(old)])
            return node

        def noted(self, statement: ast.stmt) -> list[ast.stmt]:
            if id(statement) not in known:
                return [statement]
            key = f"{file}{known[id(statement)]}"
            return [*ast.parse(f"__import__('reached').hit({key!r})").body, statement]

    return ast.unparse(ast.fix_missing_locations(Insert().visit(tree)))


PLUGIN = """
import json
import time

import pytest

hits = set()
hit = hits.add
tests = {}


def pytest_addoption(parser):
    parser.addoption("--reached")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    hits.clear()
    began, failed = time.process_time(), item.session.testsfailed
    result = yield
    if item.session.testsfailed == failed:
        tests[item.nodeid] = [round(time.process_time() - began, 3), sorted(hits)]
    return result


def pytest_sessionfinish(session):
    with open(session.config.getoption("--reached"), "w") as file:
        json.dump({"tests": tests}, file)
"""

QUESTION = """
import json, os, sys, tempfile, time
from pathlib import Path
from parity import mutations
import reached

question, out = sys.argv[1:]
data = Path(tempfile.mkdtemp())
mutations.set_up(data / "compiled", True)
mutations.make_tiles(data)
reached.hits.clear()
began = time.process_time()
mutations.ask(question, data)
found = {"tests": {"question " + question: [time.process_time() - began, sorted(reached.hits)]}}
Path(out).write_text(json.dumps(found))
"""
