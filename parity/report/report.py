"""Tables on the terminal, report.json with every figure, and report.html."""

import dataclasses
import json
import math
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from parity.judge import ledger
from parity.judge.answer import Answer
from parity.report import page
from parity.report.environment import environment

console = Console(highlight=False)


def show(answer: Answer) -> None:
    """Prints the table of a question; a failed row also shows its worst element."""
    if answer.not_run:
        console.print(f"[italic]{answer.question}[/italic]  not run: {escape(answer.not_run)}\n")
        return
    table = Table(title=f"{answer.question}  ({answer.seconds:.0f} s)", title_justify="left")
    for heading, justify in (("", "left"), ("figure", "right"), ("gate", "right"), ("", "left")):
        table.add_column(heading, justify=justify)
    for row in answer.rows:
        verdict = "ok" if row.passed else "[bold red]FAIL"
        table.add_row(escape(row.name), page.figure(row.figure), page.figure(row.gate), verdict)
        if not row.passed:
            table.add_row(f"  [red]{escape(row.worst) or 'no detail'}", "", "", "")
    console.print(table)


def finish(answers: list[Answer], out: Path, asked: dict[str, str]) -> int:
    """Writes the report to folder `out`, prints the verdict and returns the exit status.

    asked: options of the run (seed, quick or full, and so on), shown on the page.
    """
    pinned = Answer("ledger", tuple(ledger.rows(answers)))
    if pinned.rows and not pinned.passed:
        show(pinned)
    answers = [*answers, *([pinned] if pinned.rows else [])]
    rows = [row for answer in answers for row in answer.rows]
    failed = [row for row in rows if not row.passed]
    passed = bool(rows) and not failed and all(answer.passed for answer in answers)
    left_out = [answer.question for answer in answers if answer.not_run]
    verdict = f"{len(rows) - len(failed)} of {len(rows)} rows pass"
    verdict += f" ({', '.join(left_out)} not run)" if left_out else ""
    facts = environment() | {"asked": asked}
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(as_json(answers, facts, passed), encoding="utf-8")
    (out / "report.html").write_text(page.write(answers, facts, passed, verdict), encoding="utf-8")
    console.print(f"{verdict}; report in {out / 'report.html'}", style="bold" if passed else "bold red", soft_wrap=True)
    return 0 if passed else 1


def as_json(answers: list[Answer], facts: dict, passed: bool) -> str:
    """Text of report.json; figures that are not finite become null."""
    known = [dataclasses.asdict(entry) for entry in ledger.LEDGER]
    questions = [dataclasses.asdict(answer) | {"passed": answer.passed} for answer in answers]
    report = {"passed": passed, "environment": facts, "questions": questions, "ledger": known}
    return json.dumps(_finite(report), indent=1, allow_nan=False) + "\n"


def _finite(value):
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
