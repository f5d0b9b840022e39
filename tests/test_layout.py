"""Imports only go down, floor by floor, so that the house stays one."""

import ast
from pathlib import Path

import pytest

import jaxseg

ROOT = Path(jaxseg.__file__).parents[1]
FLOORS = {
    "jaxseg": [
        ["base"],
        ["devices", "data.made", "data.find"],
        ["data.read"],
        ["data.feed", "data.convert", "geo", "nn"],
        ["learn", "doctor"],
        ["runs"],
        ["inference"],
        ["training", "export"],
        ["train", "predict", "evaluate", "check", "convert_labels", "schedules", "tile"],
    ],
    "parity": [
        ["judge"],
        ["reference"],
        ["twins"],
        ["report"],
        ["checks", "certificate"],
        ["mistakes", "mutants"],
        ["__main__", "mutations", "race", "certify"],
    ],
}
"""Rooms and doors from the ground up; rooms of one floor do not know each other."""


def room(module: str, rooms: list[str]) -> str | None:
    """The room that a module lies in; None for the package's own `__init__`."""
    return next((name for name in rooms if f"{module}.".startswith(f"{name}.")), None)


def imports(path: Path) -> set[str]:
    """Modules that a file imports anywhere in it."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    froms = {f"{n.module}.{a.name}" for n in nodes if isinstance(n, ast.ImportFrom) and n.module for a in n.names}
    return froms | {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}


@pytest.mark.parametrize("package", FLOORS)
def test_imports_only_go_down(package):
    floor = {f"{package}.{name}": i for i, names in enumerate(FLOORS[package]) for name in names}
    wrong, homeless = [], []
    for path in sorted((ROOT / package).rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if module in ("jaxseg", "jaxseg.data", "parity"):
            continue
        if (here := room(module, list(floor))) is None:
            homeless.append(module)
            continue
        for name in imports(path):
            there = room(name, list(floor))
            if there not in (None, here) and floor[there] >= floor[here]:
                wrong.append(f"{module} imports {name}")
    assert (wrong, homeless) == ([], [])
