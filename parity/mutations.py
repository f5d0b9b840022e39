"""Can the suite fail? Known mistakes, injected one at a time into jaxseg: `python -m parity.mutations`

Each module of `parity/mistakes` lists the mistakes that the question of the same name is meant to catch. A mistake is
injected by replacing what it breaks (with `unittest.mock`, in this process only), the questions are asked in their
quick form, and the mistake is caught when a row of its own question fails. A check that merely breaks, with an
exception, has caught nothing. Without a mistake, every row has to pass.

The detection matrix also says which other questions see a mistake. A question that never calls what the mistake
replaces cannot, and is not asked. `--quick` asks only the mistake's own question, up to the first row that fails.

Exit status: 0 when every mistake is caught, 1 when one escapes, 2 on a mistake in the command.
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
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Literal
from unittest import mock

import tyro

from parity.mistakes import Mistake

QUESTION = "mutations"
COLUMNS = ("schedule", "init", "data", "layers", "losses", "optimizers", "model", "training")
FLOAT32 = ("precision",)  # asked only where the mistake is its own: every mistake in meaning shows there too


def all_mistakes() -> dict[str, list[Mistake]]:
    """Every mistake, by the question that has to catch it."""
    questions = (*COLUMNS, *FLOAT32)
    return {question: importlib.import_module(f"parity.mistakes.{question}").MISTAKES for question in questions}


@contextlib.contextmanager
def injected(wrong: Mistake) -> Iterator[None]:
    """jaxseg with the mistake in it. Compiled functions are forgotten on both sides: JAX knows them by name only."""
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


def ask(question: str, data: Path, briefly: bool = False) -> list:
    """The rows of a question in its quick form; `briefly`, the first that fails alone, if one does."""
    from parity.judge.answer import Settings

    check = importlib.import_module(f"parity.checks.{question}")
    with failures_raised() if briefly else contextlib.nullcontext():
        try:
            return list(check.run(Settings(quick=True, seeds=1, data=data, device="cpu")).rows)
        except Failure as failure:
            return [failure.row]


class Failure(BaseException):
    """A row that fails."""

    def __init__(self, row):
        super().__init__(row.name)
        self.row = row


@contextlib.contextmanager
def failures_raised() -> Iterator[None]:
    """A row that does not pass raises `Failure` when it is made."""
    from parity.judge.compare import Row

    make = Row.__init__

    def made(row, *args, **kwargs):
        make(row, *args, **kwargs)
        if not row.passed:
            raise Failure(row)

    with mock.patch.object(Row, "__init__", made):
        yield


def control(question: str, data: Path, briefly: bool = False) -> tuple[list, set[tuple[str, int]]]:
    """The rows of a question on jaxseg as it is, and the mistakes (question, number) that it could see at all."""
    called: set[tuple[int, str]] = set()

    def noting(owner, attribute):
        right = getattr(owner, attribute)
        if not callable(right) or isinstance(right, type):
            called.add((id(owner), attribute))  # whether a number is used cannot be told
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


@dataclasses.dataclass(frozen=True)
class Cell:
    """What a question made of a mistake: the rows that failed, or the exception that ended it."""

    own: str
    number: int
    question: str
    failed: tuple[str, ...] = ()
    broke: str = ""


def try_one(own: str, number: int, question: str, data: Path, briefly: bool = False) -> Cell:
    """Asks `question` with mistake `number` of question `own` injected."""
    try:
        with injected(all_mistakes()[own][number]):
            rows = ask(question, data, briefly)
    except Exception as error:
        return Cell(own, number, question, broke=f"{type(error).__name__}: {error}"[:200])
    return Cell(own, number, question, tuple(row.name for row in rows if not row.passed))


# The matrix -----------------------------------------------------------------------------------------------------------


def run(settings, only: tuple[str, ...] = (*COLUMNS, *FLOAT32)):
    """The mutations question: a row for each mistake of the questions `only`, and one without any mistake.

    evidence: {"questions": [...], "mistakes": [{"name", "own", "cells": {question: rows that failed}}]}, without the
    cells of questions that never call what the mistake replaces.
    """
    from parity.judge.answer import Answer

    rows, matrix = [], []
    with contextlib.ExitStack() as stack:
        data = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        make_tiles(data)
        compiled = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        pool = stack.enter_context(workers(os.cpu_count() or 1, compiled))
        asked = [q for q in (*COLUMNS, *FLOAT32) if q in only or (not settings.quick and q in COLUMNS)]
        controls = {question: pool.submit(control, question, data, settings.quick) for question in asked}
        controls = {question: future.result() for question, future in controls.items()}
        rows.append(control_row({question: rows for question, (rows, _) in controls.items()}))
        jobs = [
            pool.submit(try_one, own, i, question, data, settings.quick)
            for own in only
            for i in range(len(all_mistakes()[own]))
            for question, (_, reached) in controls.items()
            if question == own or (not settings.quick and question in COLUMNS and (own, i) in reached)
        ]
        cells = {(cell.own, cell.number, cell.question): cell for cell in (job.result() for job in jobs)}
    for own in only:
        for i, wrong in enumerate(all_mistakes()[own]):
            seen = {cell.question: cell for cell in cells.values() if (cell.own, cell.number) == (own, i)}
            rows.append(verdict(wrong, own, seen, (own, i) in controls[own][1]))
            matrix.append({"name": wrong.name, "own": own, "cells": {q: len(cell.failed) for q, cell in seen.items()}})
    evidence = {"questions": asked, "mistakes": matrix}
    return Answer(QUESTION, tuple(rows), evidence)


def control_row(rows: dict[str, list]):
    """Without a mistake nothing fails."""
    from parity.judge import compare

    failed = [f"{question}: {row.name}" for question, group in rows.items() for row in group if not row.passed]
    asked = sum(map(len, rows.values()))
    return compare.at_most(
        QUESTION, "no mistake injected: rows that fail", len(failed), 0, f"{asked} rows asked", "; ".join(failed)
    )


def verdict(wrong: Mistake, own: str, seen: dict[str, Cell], reached: bool):
    """The row of a mistake: 0 when caught by a row of its own question, 1 when it escapes."""
    from parity.judge import compare

    cell = seen[own]
    others = ", ".join(f"{question} {len(c.failed)}" for question, c in seen.items() if question != own and c.failed)
    note = f"caught by {own}: {'; '.join(cell.failed[:3])}"
    note += f" and {len(cell.failed) - 3} more" if len(cell.failed) > 3 else ""
    note += f" (rows elsewhere: {others})" if others else ""
    if cell.failed:
        return compare.at_most(QUESTION, f"{own}: {wrong.name}", 0, 0, note)
    why = cell.broke and f"the check broke instead of failing: {cell.broke}"
    why = why or ("no row fails" if reached else f"{own} never calls what the mistake replaces")
    return compare.at_most(QUESTION, f"{own}: {wrong.name}", 1, 0, worst=why)


def make_tiles(folder: Path) -> None:
    """Few and small made-up fields, for the data question."""
    from jaxseg.data.made.fields import make_fields

    make_fields(folder, train=23, val=6, size=64)


def workers(number: int, compiled: Path) -> ProcessPoolExecutor:
    """Processes of their own, started afresh as on every platform."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(number, context, initializer=set_up, initargs=(compiled,))


def set_up(compiled: Path) -> None:
    """For a worker: on the CPU, with PyTorch on one thread.

    Compiling is most of the time, so programs are kept in the folder `compiled`, by what is in them: a mistake changes
    few. (Without XLA's optimization it would be faster still, but a power that is NaN only with it would escape.)
    """
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax
    import torch

    jax.config.update("jax_compilation_cache_dir", str(compiled))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    torch.set_num_threads(1)


# The command ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Options:
    """Injects known mistakes into jaxseg, one at a time, and shows which question catches each."""

    quick: bool = False
    """Ask only the question that has to catch the mistake, not the whole matrix."""
    only: tuple[
        Literal["schedule", "init", "data", "layers", "losses", "optimizers", "model", "training", "precision"], ...
    ] = ()
    """Only the mistakes of these questions."""
    out: Path = Path("parity-mutations")
    """Folder for report.html and report.json."""


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    options = tyro.cli(Options, args=argv, prog="python -m parity.mutations")
    if importlib.util.find_spec("torch") is None:
        print("error: parity needs PyTorch and SciPy: pip install 'jaxseg[parity]'", file=sys.stderr)
        return 2
    os.environ["JAX_PLATFORMS"] = "cpu"

    from parity.judge.answer import Settings
    from parity.report import report

    began = time.monotonic()
    answer = run(Settings(quick=options.quick), options.only or (*COLUMNS, *FLOAT32))
    answer = dataclasses.replace(answer, seconds=time.monotonic() - began)
    report.show(answer)
    return report.finish([answer], options.out, {"form": "quick" if options.quick else "full"})


if __name__ == "__main__":
    sys.exit(importlib.import_module("parity.mutations").main())  # by its name, so that worker processes find it
