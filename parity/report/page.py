"""report.html: one file that opens from disk, with the verdict first and then every figure."""

import base64
import html
import math
from collections.abc import Iterable, Mapping

from parity.judge import ledger
from parity.judge.answer import Answer
from parity.report import drawings

TITLES = {
    "schedule": "Learning rates",
    "init": "Initial weights",
    "data": "Data",
    "layers": "Layers",
    "losses": "Losses",
    "optimizers": "Optimizers",
    "augmentation": "Augmentation",
    "model": "The network",
    "training": "Training in float64",
    "encoders": "Networks with an encoder",
    "recipes": "Recipes: whole runs from their settings",
    "run": "A finished run, once more from its settings",
    "precision": "Rounding in one pass",
    "divergence": "Divergence over many steps, in float32",
    "gpu": "On a GPU",
    "mutations": "Can the suite fail?",
    "ledger": "Entries of the ledger whose row was not found",
}


def figure(value: float) -> str:
    """A figure as text, with three significant digits at most."""
    return "not a number" if math.isnan(value) else f"{value:.3g}"


def write(answers: list[Answer], facts: Mapping[str, Mapping[str, str]], passed: bool, verdict: str) -> str:
    """HTML of the whole page."""
    sections = "".join(section(answer) for answer in answers)
    return PAGE.format(
        color="#0a7d3c" if passed else "#b3261e",
        verdict=escape(verdict),
        summary=summary(answers),
        sections=sections,
        ledger=ledger_section(answers),
        environment="".join(group(name, values) for name, values in facts.items()),
    )


def summary(answers: Iterable[Answer]) -> str:
    """Table with a line for each question."""
    lines = []
    for answer in answers:
        good = sum(row.passed for row in answer.rows)
        state = "not run" if answer.not_run else f"{good} of {len(answer.rows)}"
        kind = "skip" if answer.not_run else "ok" if answer.passed else "fail"
        lines.append(
            f"<tr class={kind}><td><a href='#{answer.question}'>{escape(TITLES[answer.question])}</a>"
            f"<td class=n>{state}<td class=n>{answer.seconds:.0f} s"
        )
    return f"<table class=summary><tr><th>question<th class=n>rows that pass<th class=n>time{''.join(lines)}</table>"


def section(answer: Answer) -> str:
    """Section of a question: its pictures, then its rows, unfolded if one fails."""
    head = f"<h2 id={answer.question}>{escape(TITLES[answer.question])}</h2>"
    if answer.not_run:
        return f"{head}<p>Not run: {escape(answer.not_run)}</p>"
    shown = (
        "".join(PICTURES[answer.question](answer.evidence)) if answer.evidence and answer.question in PICTURES else ""
    )
    good = sum(row.passed for row in answer.rows)
    opened = "" if answer.passed else " open"
    verdict = f"<summary>{good} of {len(answer.rows)} rows pass</summary>"
    return f"{head}{shown}<details{opened}>{verdict}{table(answer)}</details>"


def table(answer: Answer) -> str:
    """Table of the rows of a question."""
    rows = "".join(
        f"<tr class={'ok' if row.passed else 'fail'}><td>{escape(row.name)}"
        f"<td class=n>{figure(row.figure)}<td class=n>{figure(row.gate)}<td>{'ok' if row.passed else 'FAIL'}"
        f"<td class=note>{escape(row.note)}<div class=worst>{escape(row.worst)}</div>"
        for row in answer.rows
    )
    heads = "<tr><th>row<th class=n>figure<th class=n>gate<th>verdict<th>note, and the worst element"
    return f"<div class=scroll><table>{heads}{rows}</table></div>"


def gallery(pictures: Iterable[tuple[str, str]]) -> str:
    """Pictures side by side, as many as fit the width; each is (caption, SVG)."""
    shown = "".join(
        f'<figure><img alt="{escape(caption)}" src="data:image/svg+xml;base64,'
        f'{base64.b64encode(svg.encode()).decode()}"><figcaption>{escape(caption)}</figcaption></figure>'
        for caption, svg in pictures
    )
    return f"<div class=gallery>{shown}</div>"


def matrix(evidence: Mapping) -> str:
    """Detection matrix: a line for each mistake, a column for each question, in each cell the rows that failed."""
    questions = evidence["questions"]
    heads = "".join(f"<th class=turn><span>{escape(question)}</span>" for question in questions)
    lines = []
    for wrong in evidence["mistakes"]:
        cells = "".join(_cell(wrong, question) for question in questions)
        lines.append(f"<tr><td>{escape(wrong['name'])}{cells}")
    caught = sum(bool(wrong["cells"].get(wrong["own"])) for wrong in evidence["mistakes"])
    words = (
        f"<p>{caught} of {len(evidence['mistakes'])} injected mistakes are caught by the question that is meant to "
        "catch them (framed). A number: rows of the question that failed. A dot: the question was asked and no row "
        "failed. Blank: the question was not asked, or never calls what the mistake replaces.</p>"
    )
    return f"{words}<div class=scroll><table class=matrix><tr><th>mistake{heads}{''.join(lines)}</table></div>"


def _cell(wrong: Mapping, question: str) -> str:
    failed = wrong["cells"].get(question)
    text = "" if failed is None else str(failed) if failed else "·"
    kinds = ["hit"] * bool(failed) + ["own"] * (question == wrong["own"])
    return f"<td class='{' '.join(kinds)}'>{text}"


def ledger_section(answers: list[Answer]) -> str:
    """The ledger under its heading; empty if no row of these answers pins an entry."""
    if not any(ledger.pinning(entry, answers) for entry in ledger.LEDGER):
        return ""
    return f"{LEDGER}{ledger_table(answers)}"


def ledger_table(answers: list[Answer]) -> str:
    """Table of every known divergence, with the state of the rows that pin it."""
    lines = []
    for entry in ledger.LEDGER:
        rows = ledger.pinning(entry, answers)
        state = "" if not entry.pin else "not asked" if not rows else "ok" if all(r.passed for r in rows) else "FAIL"
        pin = f"{entry.pin[0]}: {entry.pin[1]}" if entry.pin else ""
        lines.append(
            f"<tr class={'fail' if state == 'FAIL' else 'ok'}><td>{escape(entry.what)}<td>{escape(entry.pytorch)}"
            f"<td>{escape(entry.jax)}<td>{escape(entry.size)}<td><b>{entry.verdict}</b>: {escape(entry.why)}"
            f"<td>{escape(pin)} <small>{state}</small>"
        )
    heads = "<tr><th>what<th>PyTorch<th>JAX, Flax, Optax by default<th>size<th>jaxseg<th>pinned by"
    return f"<div class=scroll><table class=ledger>{heads}{''.join(lines)}</table></div>"


def group(name: str, values: Mapping[str, str]) -> str:
    """Facts of one kind as a definition list."""
    lines = "".join(f"<dt>{escape(key)}<dd>{escape(str(value))}" for key, value in values.items())
    return f"<div><h3>{escape(name)}</h3><dl>{lines}</dl></div>"


def escape(text: str) -> str:
    """Text escaped for HTML."""
    return html.escape(str(text), quote=True)


PICTURES = {
    "schedule": lambda evidence: gallery(drawings.schedules(evidence)),
    "init": lambda evidence: gallery(drawings.histograms(evidence)),
    "run": lambda evidence: gallery(drawings.run(evidence)),
    "precision": lambda evidence: gallery(drawings.rounding(evidence)),
    "divergence": lambda evidence: gallery(drawings.divergence(evidence)),
    "mutations": matrix,
}

LEDGER = """<h2 id=known>The ledger: every known divergence of the two stacks</h2>
<p><b>match</b>: jaxseg does what PyTorch does, and the row pins it. <b>accepted</b>: jaxseg differs on purpose.
<b>impossible</b>: the two cannot agree.</p>
"""

PAGE = """<!doctype html><html lang=en><meta charset=utf-8>
<meta name=viewport content="width=device-width,initial-scale=1">
<title>jaxseg against PyTorch</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 82rem; margin: 1.5rem auto; padding: 0 1rem; color: #1c1c1c }}
h1 {{ line-height: 1.2 }}
h1 span {{ color: {color} }}
h2 {{ margin: 2.5rem 0 .5rem }}
h3 {{ margin: .5rem 0 0; font-size: 1rem }}
small, .worst, figcaption {{ color: #666 }}
table {{ border-collapse: collapse }}
.scroll table {{ width: 100% }}
th, td {{ text-align: left; vertical-align: top; padding: .25rem .6rem; border-top: 1px solid #ddd }}
.n {{ text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }}
.note {{ min-width: 15rem }}
.fail td {{ background: #fdecea }}
.skip td {{ color: #888 }}
.worst {{ font-size: .85em; overflow-wrap: anywhere }}
.scroll {{ overflow-x: auto }}
.top {{ display: flex; flex-wrap: wrap; gap: 1rem 3rem; align-items: flex-start }}
.facts {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr)); gap: .5rem 2rem }}
.facts {{ flex: 1 1 20rem; font-size: .85rem }}
dl {{ display: grid; grid-template-columns: fit-content(60%) minmax(0, 1fr); gap: 0 .7rem; margin: 0 }}
dd {{ margin: 0 }}
dt {{ color: #666 }}
dt, dd {{ overflow-wrap: anywhere }}
.gallery {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: .5rem }}
figure {{ margin: 0; max-width: 34rem }}
figure img {{ width: 100% }}
figcaption {{ font-size: .85rem }}
summary {{ cursor: pointer; margin: .5rem 0 }}
.matrix td, .matrix th {{ padding: .1rem .35rem }}
.matrix td + td {{ text-align: center; min-width: 1.6rem; border-left: 1px solid #eee }}
.matrix .hit {{ background: #d6eadd }}
.matrix .own {{ outline: 2px solid #0a7d3c; outline-offset: -2px }}
.turn span {{ writing-mode: vertical-rl; transform: rotate(180deg); font-weight: normal }}
.ledger td {{ min-width: 8rem }}
</style>
<h1>jaxseg against PyTorch: <span>{verdict}</span></h1>
<p>A row passes when its figure is at most its gate. The head of a question's file in <code>parity/checks</code> gives
the reasons for its gates, and says what the question cannot see. Formulas are compared in float64, where correct code
differs by rounding alone. Results in float32 and below are judged by PyTorch's own rounding error.</p>
<div class=top>{summary}<div class=facts>{environment}</div></div>
{sections}
{ledger}</html>
"""
