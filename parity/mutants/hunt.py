"""Puts random mutants into a copy of the project, one at a time, and asks the tests and the questions that reach them.

A mutant is killed if a test fails, or a row of a question, or if either raises or does not end. The tests come first,
and stop at the first failure. Results are kept in a folder: a run that was stopped goes on. A survivor is tried again
when tests, questions or jaxseg have changed since.
"""

import dataclasses
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

from parity.mutants import reach
from parity.mutants.changes import Mutant, compiles, mutants

PATIENCE = 90
"""CPU seconds of tests, by the time they took before, after which a mutant counts as alive."""
EQUIVALENT = Path(__file__).with_name("equivalent.toml")
GOAL = 0.95


@dataclasses.dataclass(frozen=True)
class Fate:
    """What became of a mutant."""

    name: str
    place: str
    """File and line."""
    diff: tuple[str, str]
    """Changed line, before and after."""
    killed_by: str
    """The first test or question that failed; empty for a survivor."""
    asked: int
    """Tests and questions that reach it and were asked, if all passed."""
    state: str
    """Digest of the project that it was tried on."""


def sample(root: Path, count: int, seed: int) -> list[Mutant]:
    """Draws `count` mutants from all of them, equally likely."""
    texts = {path.as_posix(): (root / path).read_text() for path in reach.sources(root)}
    everything = [mutant for file, text in texts.items() for mutant in mutants(text, file)]
    random.Random(seed).shuffle(everything)
    drawn = (mutant for mutant in everything if compiles(mutant.applied(texts[mutant.file])))
    return [mutant for mutant, _ in zip(drawn, range(count))]


def hunt(root: Path, drawn: Sequence[Mutant], out: Path, jobs: int = 1) -> Iterator[Fate | str]:
    """Yields the fate of each mutant, and before that the names of what is run to find what reaches them."""
    out.mkdir(parents=True, exist_ok=True)
    env = os.environ | {"JAX_PLATFORMS": "cpu", "JAXSEG_TEST_COMPILED": str((out / "compiled").absolute())}
    known, state = fates(out), state_of(root)
    todo = [m for m in drawn if m.name not in known or not (known[m.name].killed_by or known[m.name].state == state)]
    yield from (known[m.name] for m in drawn if m not in todo)
    if not todo:
        return
    with tempfile.TemporaryDirectory() as scratch:
        yield from reach.find(root, (out / "reach").absolute(), Path(scratch), env)
    reached, copies = reach.Reach(out / "reach"), Queue()
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(jobs) as pool:
        for number in range(jobs):
            (folder := Path(scratch, str(number))).mkdir()
            copies.put(reach.copy_of(root, folder))

        def tried(mutant: Mutant) -> Fate:
            copy = copies.get()
            try:
                return try_one(copy, mutant, reached, state, env)
            finally:
                copies.put(copy)

        for fate in pool.map(tried, todo):
            with (out / "fates.jsonl").open("a") as file:
                file.write(json.dumps(dataclasses.asdict(fate)) + "\n")
            yield fate


def try_one(copy: Path, mutant: Mutant, reached: reach.Reach, state: str, env: dict[str, str]) -> Fate:
    """Puts a mutant into the project in `copy`, asks what reaches it, and takes it out again."""
    file = copy / mutant.file
    text = file.read_text()
    asked = reached.of(mutant.file, mutant.statement, text)
    tests, questions = [t for t in asked if "::" in t], [q for q in asked if "::" not in q]
    chosen, spent = [], 0.0
    for test in tests:
        spent += reached.seconds[test]
        if chosen and spent > PATIENCE:
            break
        chosen.append(test)
    wrong = mutant.applied(text)
    line = wrong[: mutant.begin].count("\n")
    diff = mutant.source, wrong.splitlines()[line].strip()
    file.write_text(wrong)
    env = env | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        killed_by = _failing(chosen, copy, env, 60 + 6 * spent) if chosen else ""
        for question in sorted(questions, key=reached.seconds.__getitem__):
            killed_by = killed_by or _noticing(question, copy, env, 60 + 6 * reached.seconds[question])
    finally:
        file.write_text(text)
    return Fate(mutant.name, f"{mutant.file}:{mutant.line}", diff, killed_by, len(chosen) + len(questions), state)


def _failing(tests: list[str], copy: Path, env: dict[str, str], seconds: float) -> str:
    """First of the tests that fails, or what else went wrong; empty if all pass."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    try:
        ran = subprocess.run(command, cwd=copy, env=env, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return "timeout"
    if ran.returncode == 0:
        return ""
    lines = ran.stdout.splitlines()
    named = [line.split(" - ")[0] for line in lines if line.startswith(("FAILED ", "ERROR "))]
    return named[0] if named else f"pytest ended with {ran.returncode}"


def _noticing(question: str, copy: Path, env: dict[str, str], seconds: float) -> str:
    """The question with its first row that fails; empty if all pass."""
    command = [sys.executable, "-c", ASK, question.removeprefix("question ")]
    try:
        ran = subprocess.run(command, cwd=copy, env=env, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return f"{question}: timeout"
    if ran.returncode == 0:
        return ""
    return f"{question}: {(ran.stdout or ran.stderr).strip().splitlines()[-1:]}"


ASK = """
import sys, tempfile, os
from pathlib import Path
from parity import mutations
with tempfile.TemporaryDirectory() as data:
    mutations.set_up(Path(os.environ["JAXSEG_TEST_COMPILED"]), True)
    mutations.make_tiles(Path(data))
    failed = [row.name for row in mutations.ask(sys.argv[1], Path(data), briefly=True) if not row.passed]
print(*failed)
sys.exit(bool(failed))
"""


def main(count: int, seed: int, jobs: int, out: Path) -> int:
    """Hunts `count` mutants in this checkout and prints their fates; 0 if GOAL of them, without equivalents, die."""
    root = Path(__file__).parents[2]
    if not (root / "tests").is_dir():
        print("error: --random needs a checkout of jaxseg, with its tests", file=sys.stderr)
        return 2
    excused, found = equivalents(), []
    for fate in hunt(root, sample(root, count, seed), out, jobs):
        if isinstance(fate, str):
            print(f"looking at what {fate} reaches", flush=True)
            continue
        found.append(fate)
        print(f"{len(found)}/{count} {fate.place}: {fate.killed_by or f'alive after {fate.asked}'}", flush=True)
    alive = [fate for fate in found if not fate.killed_by]
    same = [fate for fate in alive if fate.name in excused]
    for fate in alive:
        print(f"\n{fate.place}: {excused.get(fate.name, 'ALIVE')}\n- {fate.diff[0]}\n+ {fate.diff[1]}")
    share = (len(found) - len(alive)) / max(len(found) - len(same), 1)
    by_parity = sum(fate.killed_by.startswith("question") for fate in found)
    by_tests = len(found) - len(alive) - by_parity
    print(
        f"\n{len(found)} mutants: {by_tests} killed by tests, {by_parity} by questions, {len(same)} equivalent, ",
        end="",
    )
    print(f"{len(alive) - len(same)} alive; {share:.1%} of those that are not equivalent killed")
    return int(share < GOAL)


def fates(out: Path) -> dict[str, Fate]:
    """Fates kept in `out`, by the mutant's name; the last counts."""
    file = out / "fates.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    found = [Fate(**json.loads(line)) for line in lines]
    return {fate.name: dataclasses.replace(fate, diff=tuple(fate.diff)) for fate in found}


def state_of(root: Path) -> str:
    """Digest of all files of jaxseg, parity and the tests."""
    digest = hashlib.blake2b(digest_size=8)
    for folder in ("jaxseg", "parity", "tests"):
        for path in sorted((root / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def equivalents() -> dict[str, str]:
    """Why mutants are equivalent, by their name: read by a person, one by one."""
    if not EQUIVALENT.exists():
        return {}
    return {entry["name"]: entry["why"] for entry in tomllib.loads(EQUIVALENT.read_text()).get("mutant", [])}
