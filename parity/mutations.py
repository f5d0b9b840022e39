"""Can the suite fail? Injects known mistakes into jaxseg, one at a time: `python -m parity.mutations`

Each module of `parity/mistakes` lists the mistakes that the question of its name should catch. A mistake is injected
by `unittest.mock`, in this process only, and the questions are asked in their quick form. It is caught if a row of its
own question fails. A check that raises an exception has caught nothing. Without a mistake every row must pass.

The detection matrix shows which other questions see a mistake. A question that never calls the replaced function
cannot see it, and is not asked. `--quick` asks only the mistake's own question, and stops at the first failed row.

Exit status: 0 if every mistake is caught, 1 if one escapes, 2 for a mistake in the command.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Literal
from unittest import mock

import tyro

from parity.mistakes import Mistake
from parity.twins.quickly import as_flags

QUESTION = "mutations"
COLUMNS = ("schedule", "data", "layers", "losses", "optimizers", "model", "training")
OPTIMIZED = ("schedule",)  # questions with a mistake that XLA's optimization makes: it turns a power into NaN
ALONE = ("init", "augmentation", "recipes", "devices", "precision", "encoders")
"""Questions that are asked about their own mistakes alone, as no other question is. In most of them every wrong formula
would show. Initial weights and draws are the opposite: elsewhere both sides get the same ones."""


def all_mistakes() -> dict[str, list[Mistake]]:
    """Every mistake, by the question that should catch it."""
    questions = (*COLUMNS, *ALONE)
    return {question: importlib.import_module(f"parity.mistakes.{question}").MISTAKES for question in questions}


@contextlib.contextmanager
def injected(wrong: Mistake) -> Iterator[None]:
    """Context with the mistake injected. Clears JAX's caches before and after, because they would hide a patch."""
    import jax

    jax.clear_caches()
    try:
        with contextlib.ExitStack() as stack:
            for owner, attribute, break_it in wrong.patches:
                broken = break_it(getattr(owner, attribute))
                stack.enter_context(mock.patch.object(owner, attribute, broken))
            yield
    finally:
        jax.clear_caches()


def ask(question: str, data: Path, briefly: bool = False, recipe: tuple[str, ...] = ()) -> list:
    """Rows of a question in its quick form; with `briefly` only the first failed row, if there is one.

    recipe: values of the recipe to ask, for the recipes question; parts, for the encoders and devices questions.
    """
    from parity.judge.answer import Settings

    check = importlib.import_module(f"parity.checks.{question}")
    with failures_raised() if briefly else contextlib.nullcontext():
        try:
            return list(check.run(Settings(quick=True, seeds=1, data=data, device="cpu", recipe=recipe)).rows)
        except Failure as failure:
            return [failure.row]


class Failure(BaseException):
    """Raised at the first failed row; a BaseException, so no check catches it."""

    def __init__(self, row):
        super().__init__(row.name)
        self.row = row


@contextlib.contextmanager
def failures_raised() -> Iterator[None]:
    """Context where creating a failed row raises `Failure`."""
    from parity.judge.compare import Row

    make = Row.__init__

    def made(row, *args, **kwargs):
        make(row, *args, **kwargs)
        if not row.passed:
            raise Failure(row)

    with mock.patch.object(Row, "__init__", made):
        yield


def control(question: str, data: Path, briefly: bool = False) -> tuple[list, set[tuple[str, int]]]:
    """Rows of a question without any mistake, and the mistakes (question, number) whose target it calls."""
    called: set[tuple[int, str]] = set()

    def noting(owner, attribute):
        right = getattr(owner, attribute)
        if isinstance(right, dict):
            return Noted(right, lambda: called.add((id(owner), attribute)))
        if not callable(right):
            return right  # a number, whose use is not observable: only its own question is asked
        if isinstance(right, type):
            called.add((id(owner), attribute))  # nor is that of a class
            return right

        @functools.wraps(right)
        def noted(*args, **kwargs):
            called.add((id(owner), attribute))
            return right(*args, **kwargs)

        return noted

    mistakes = [(own, i, m.patches) for own, group in all_mistakes().items() for i, m in enumerate(group)]
    targets = {(id(owner), name): (owner, name) for _, _, patches in mistakes for owner, name, _ in patches}
    with contextlib.ExitStack() as stack:
        for owner, name in targets.values():
            stack.enter_context(mock.patch.object(owner, name, noting(owner, name)))
        rows = ask(question, data, briefly)
    reached = {(own, i) for own, i, patches in mistakes if any((id(o), a) in called for o, a, _ in patches)}
    return rows, reached


class Noted(dict):
    """Copy of a dict that calls `note` when a value is looked up."""

    def __init__(self, right: dict, note: Callable[[], None]):
        super().__init__(right)
        self.note = note

    def __getitem__(self, key):
        self.note()
        return super().__getitem__(key)


@dataclasses.dataclass(frozen=True)
class Cell:
    """Result of a question about a mistake: names of the failed rows, or the exception that ended it."""

    own: str
    number: int
    question: str
    failed: tuple[str, ...] = ()
    broke: str = ""


def try_one(own: str, number: int, question: str, data: Path, briefly: bool = False) -> Cell:
    """Asks `question` with mistake `number` of question `own` injected."""
    wrong = all_mistakes()[own][number]
    try:
        with injected(wrong):
            rows = ask(question, data, briefly, *([wrong.recipe] if question == own and wrong.recipe else []))
    except Exception as error:
        return Cell(own, number, question, broke=f"{type(error).__name__}: {error}"[:200])
    return Cell(own, number, question, tuple(row.name for row in rows if not row.passed))


# The matrix -----------------------------------------------------------------------------------------------------------


def run(settings, only: tuple[str, ...] = (*COLUMNS, *ALONE), part: tuple[int, int] = (1, 1)):
    """Answers the mutations question: a row for each mistake of the questions `only`, and one without a mistake.

    With `part` (k, n), only the k-th of n parts of the mistakes is injected. In full, a row counts the rows that no
    mistake fails: they show nothing.

    Evidence: {"questions": [...], "mistakes": [{"name", "own", "cells": {question: number of failed rows}}],
    "unfailed": {question: rows that no mistake fails}}. Cells of questions that never call the replaced function are
    missing. Other questions than its own stop at the first failed row.
    """
    from parity.judge.answer import Answer

    rows, matrix = [], []
    chosen = share(only, *part)
    with contextlib.ExitStack() as stack:
        data = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        make_tiles(data)
        compiled = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        asked = [q for q in (*COLUMNS, *ALONE) if chosen.get(q) or (not settings.quick and q in COLUMNS)]
        pools = {quickly: stack.enter_context(workers(compiled, quickly)) for quickly in (True, False)}
        pool_of = {question: pools[question not in OPTIMIZED] for question in asked}
        controls = {question: pool_of[question].submit(control, question, data, settings.quick) for question in asked}
        controls = {question: future.result() for question, future in controls.items()}
        rows.append(control_row({question: rows for question, (rows, _) in controls.items()}))
        jobs = [
            pool_of[question].submit(try_one, own, i, question, data, settings.quick or question != own)
            for own, group in chosen.items()
            for i in group
            for question, (_, reached) in controls.items()
            if question == own or (not settings.quick and {own, question} <= {*COLUMNS} and (own, i) in reached)
        ]
        cells = {(cell.own, cell.number, cell.question): cell for cell in (job.result() for job in jobs)}
    for own, group in chosen.items():
        for i in group:
            wrong = all_mistakes()[own][i]
            seen = {cell.question: cell for cell in cells.values() if (cell.own, cell.number) == (own, i)}
            rows.append(verdict(wrong, own, seen, (own, i) in controls[own][1]))
            matrix.append({"name": wrong.name, "own": own, "cells": {q: len(cell.failed) for q, cell in seen.items()}})
    evidence = {"questions": asked, "mistakes": matrix}
    if not settings.quick and part == (1, 1) and set(only) == {*COLUMNS, *ALONE}:
        evidence["unfailed"] = unfailed(
            {q: [row.name for row in of] for q, (of, _) in controls.items()}, cells.values()
        )
        rows.append(unfailed_row(evidence["unfailed"]))
    return Answer(QUESTION, tuple(rows), evidence)


def share(only: tuple[str, ...], k: int, n: int) -> dict[str, list[int]]:
    """Numbers of the mistakes in the k-th of n equal parts, by question.

    A part is a piece of the list of all questions' mistakes, so that few questions need a control.
    """
    listed = [(own, i) for own in only for i in range(len(all_mistakes()[own]))]
    k = (k - 1) % n
    listed = listed[len(listed) * k // n : len(listed) * (k + 1) // n]
    return {own: [i for question, i in listed if question == own] for own in only}


def unfailed(names: dict[str, list[str]], cells: Iterable[Cell]) -> dict[str, list[str]]:
    """Rows that no mistake fails, by question; `names` are those of all rows.

    Recipes are alike: what "recipe 3: losses" shows, a mistake may fail in another recipe.
    """

    def shown(question: str, row: str) -> tuple[str, str]:
        return question, row.partition(": ")[2] if question == "recipes" else row

    failed = {shown(cell.question, row) for cell in cells for row in cell.failed}
    return {q: [row for row in rows if shown(q, row) not in failed] for q, rows in names.items()}


def unfailed_row(never: dict[str, list[str]]):
    """Row for the number of rows that no mistake fails; names them by question."""
    from parity.judge import compare

    told = "; ".join(f"{question}: {', '.join(rows)}" for question, rows in never.items() if rows)
    count = sum(map(len, never.values()))
    return compare.at_most(QUESTION, "rows that no mistake fails", count, 0, "they show nothing", told)


def control_row(rows: dict[str, list]):
    """Row that passes if no row fails without a mistake."""
    from parity.judge import compare

    failed = [f"{question}: {row.name}" for question, group in rows.items() for row in group if not row.passed]
    asked = sum(map(len, rows.values()))
    return compare.at_most(
        QUESTION, "no mistake injected: rows that fail", len(failed), 0, f"{asked} rows asked", "; ".join(failed)
    )


def verdict(wrong: Mistake, own: str, seen: dict[str, Cell], reached: bool):
    """Row of a mistake: 0 if a row of its own question fails, 1 if it escapes."""
    from parity.judge import compare

    cell = seen[own]
    others = ", ".join(f"{question} {len(c.failed)}" for question, c in seen.items() if question != own and c.failed)
    note = f"caught by {own}: {'; '.join(cell.failed[:3])}"
    note += f" and {len(cell.failed) - 3} more" if len(cell.failed) > 3 else ""
    note += f" (rows elsewhere: {others})" if others else ""
    if cell.failed:
        return compare.at_most(QUESTION, f"{own}: {wrong.name}", 0, 0, note)
    why = cell.broke and f"the check raised instead of failing: {cell.broke}"
    why = why or ("no row fails" if reached else f"{own} never calls what the mistake replaces, unless it is a number")
    return compare.at_most(QUESTION, f"{own}: {wrong.name}", 1, 0, worst=why)


def make_tiles(folder: Path) -> None:
    """Writes a few small made-up fields for the data question."""
    from jaxseg.data.made.fields import make_fields

    make_fields(folder, train=23, val=6, size=64)


def workers(compiled: Path, quickly: bool) -> ProcessPoolExecutor:
    """Pool of fresh worker processes, one per core ("spawn", which works on every platform)."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(os.cpu_count(), context, initializer=set_up, initargs=(compiled, quickly))


def set_up(compiled: Path, quickly: bool) -> None:
    """Sets up a worker: JAX on the CPU, PyTorch on one thread, compiled programs cached in the folder `compiled`.

    Most of the time is compilation, and a mistake changes few programs. `quickly` turns XLA's optimization off.
    """
    os.environ["JAX_PLATFORMS"] = "cpu"
    if quickly:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {as_flags()}".strip()
    import jax
    import torch

    jax.config.update("jax_num_cpu_devices", 2)  # for the devices question
    jax.config.update("jax_compilation_cache_dir", str(compiled))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    torch.set_num_threads(1)


# The command ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Options:
    """Injects known mistakes into jaxseg, one at a time, and shows which question catches each."""

    quick: bool = False
    """Ask only the question that should catch the mistake, not the whole matrix."""
    only: tuple[Literal[(*COLUMNS, *ALONE)], ...] = ()
    """Inject only the mistakes of these questions."""
    part: tuple[int, int] = (1, 1)
    """Inject the K-th of N parts of the mistakes, as `K N`."""
    random: int = 0
    """Instead put this many random changes into the source, one at a time, and ask the tests and the questions that
    reach them. Runs from a checkout; results stay in --out, so a stopped run goes on."""
    seed: int = 0
    """Draws the random changes."""
    jobs: int = os.cpu_count() or 1
    """Random changes tried at a time."""
    out: Path = Path("parity-mutations")
    """Folder for report.html and report.json, or of --random for its results."""


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    options = tyro.cli(Options, args=argv, prog="python -m parity.mutations")
    if importlib.util.find_spec("torch") is None:
        print("error: parity needs PyTorch and SciPy: pip install 'jaxseg[parity]'", file=sys.stderr)
        return 2
    os.environ["JAX_PLATFORMS"] = "cpu"

    if options.part[1] < 1:
        print(f"error: --part {options.part[0]} {options.part[1]}: expected K and N with N at least 1", file=sys.stderr)
        return 2
    if options.random:
        from parity.mutants import hunt

        return hunt.main(options.random, options.seed, options.jobs, options.out)
    from parity.judge.answer import Settings
    from parity.report import report

    began = time.monotonic()
    answer = run(Settings(quick=options.quick), options.only or (*COLUMNS, *ALONE), options.part)
    answer = dataclasses.replace(answer, seconds=time.monotonic() - began)
    report.show(answer)
    form = "quick" if options.quick else "full"
    form += ", part {} of {}".format(*options.part) if options.part != (1, 1) else ""
    return report.finish([answer], options.out, {"form": form})


if __name__ == "__main__":
    sys.exit(importlib.import_module("parity.mutations").main())  # imported by name, so worker processes find it
