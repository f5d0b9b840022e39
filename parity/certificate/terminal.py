"""The certificate on the terminal, and the sentences on the first difference, which the page has too."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape as markup
from rich.table import Table

from parity.report.page import figure

if TYPE_CHECKING:
    from parity.certificate.certificate import Certificate


def show(certificate: "Certificate") -> None:
    """Prints verdict, first difference, causes and rows."""
    console = Console(highlight=False)
    style = "bold green" if certificate.passed else "bold red"
    console.print(markup(certificate.verdict), style=style, soft_wrap=True)
    for sentence in [*first(certificate), *causes(certificate)]:
        console.print(f"  {markup(sentence)}", soft_wrap=True)
    table = Table()
    for heading, justify in (("row", "left"), ("figure", "right"), ("gate", "right"), ("", "left")):
        table.add_column(heading, justify=justify)
    for row in certificate.rows:
        verdict = "ok" if row.passed else "[bold red]FAIL"
        table.add_row(markup(row.name), figure(row.figure), figure(row.gate), verdict)
        if not row.passed:
            table.add_row(f"  [red]{markup(row.worst) or 'no detail'}", "", "", "")
    console.print(table)
    if certificate.mistakes:
        seen = sum(bool(mistake.failed) for mistake in certificate.mistakes)
        console.print(f"{seen} of {len(certificate.mistakes)} injected mistakes are seen")
    for sentence in certificate.unseen:
        console.print(f"not seen: {markup(sentence)}", soft_wrap=True)


def first(certificate: "Certificate") -> Iterator[str]:
    """Where the sides differ first, with index and both values."""
    line = certificate.first
    failed = next((row for row in certificate.rows if not row.passed), None)
    if line is not None:
        row, what = (line.backward, "gradient of its output") if line.forward.passed else (line.forward, "output")
        yield f"First module that differs: {line.name} ({line.kind}), in the twin {line.twin}; {what}, {row.worst}"
        place = certificate.lines.index(line)
        if not line.forward.passed and place:
            before = certificate.lines[place - 1]
            yield f"The {place} modules before it agree; the last of them is {before.name} ({before.kind})."
    elif failed is not None:
        last = certificate.lines[-1].name if failed.name == "outputs in training" and certificate.lines else ""
        after = f" The difference lies after {last}, in no module." if last else ""
        yield f"Modules agree.{after} First row that fails: {failed.name}; {failed.worst}"


def causes(certificate: "Certificate") -> Iterator[str]:
    """Each cause as a sentence."""
    for cause in certificate.causes:
        if cause.confirmed:
            yield f"Cause: {cause.what}. Confirmed: with {cause.confirmed} in the twin the sides agree."
        else:
            yield f"Perhaps: {cause.what}."
