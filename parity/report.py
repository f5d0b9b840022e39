"""What a person sees of a run: tables on the terminal, report.html that opens from disk, report.json with the same
figures.
"""

import base64
import dataclasses
import html
import io
import json
import math
import os
import platform
from importlib import metadata

import numpy as np
from rich.console import Console
from rich.table import Table

from jaxseg import schedules
from parity.answer import Answer
from parity.reference.scheduler import WarmupCosineScheduler, textbook_warmup_cosine

console = Console(highlight=False)


def show(answer: Answer) -> None:
    """Prints a question's table; a failed row shows its worst element."""
    table = Table(title=f"{answer.question}  ({answer.seconds:.0f} s)", title_justify="left")
    for heading, justify in (("", "left"), ("figure", "right"), ("gate", "right"), ("", "left")):
        table.add_column(heading, justify=justify)
    for row in answer.rows:
        verdict = "ok" if row.passed else "[bold red]FAIL"
        table.add_row(row.name, figure(row.figure), figure(row.gate), verdict)
        if not row.passed:
            table.add_row(f"  [red]{row.worst or 'no detail'}", "", "", "")
    console.print(table)


def figure(value: float) -> str:
    """Three significant digits, or fewer for whole numbers."""
    return "not a number" if math.isnan(value) else f"{value:.3g}"


def finish(answers: list[Answer], options) -> int:
    """Writes the report to folder `options.out`, prints the verdict and returns the exit status."""
    rows = [row for answer in answers for row in answer.rows]
    failed = [row for row in rows if not row.passed]
    passed = bool(rows) and not failed and all(answer.passed for answer in answers)
    verdict = f"{len(rows) - len(failed)} of {len(rows)} rows pass"
    out = options.out
    out.mkdir(parents=True, exist_ok=True)
    picture = draw_schedules()
    facts = environment() | {"seed": options.seed}
    (out / "schedules.png").write_bytes(picture)
    (out / "report.json").write_text(as_json(answers, facts, passed), encoding="utf-8")
    (out / "report.html").write_text(as_html(answers, facts, passed, verdict, picture), encoding="utf-8")
    console.print(f"{verdict}; report in {out / 'report.html'}", style="bold" if passed else "bold red")
    return 0 if passed else 1


def environment() -> dict[str, str]:
    """What the figures depend on."""
    import torch

    packages = ["jaxseg", "jax", "jaxlib", "flax", "optax", "torch", "numpy"]
    packages += ["opencv-python", "opencv-python-headless"]
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found | {
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, CPU only",
        "torch threads": str(torch.get_num_threads()),
        "torch CPU capability": torch.backends.cpu.get_cpu_capability(),
    }


def as_json(answers: list[Answer], facts: dict, passed: bool) -> str:
    """Figures that are not numbers are null."""
    questions = [dataclasses.asdict(answer) for answer in answers]
    for row in (row for question in questions for row in question["rows"]):
        row["figure"] = row["figure"] if math.isfinite(row["figure"]) else None
    return (
        json.dumps({"passed": passed, "environment": facts, "questions": questions}, indent=1, allow_nan=False) + "\n"
    )


def as_html(answers: list[Answer], facts: dict, passed: bool, verdict: str, picture: bytes) -> str:
    """One self-contained page."""
    sections = "".join(_section(answer) for answer in answers)
    lines = "".join(f"<tr><td>{html.escape(k)}<td>{html.escape(str(v))}" for k, v in facts.items())
    image = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    return PAGE.format(
        color="#0a7d3c" if passed else "#b3261e",
        verdict=html.escape(verdict),
        sections=sections,
        environment=lines,
        picture=f'<img alt="learning rates of both schedules, reference and jaxseg" src="{image}">',
    )


def _section(answer: Answer) -> str:
    rows = "".join(
        f"<tr class={'ok' if row.passed else 'fail'}><td>{html.escape(row.name)}"
        f"<td class=n>{figure(row.figure)}<td class=n>{figure(row.gate)}<td>{'ok' if row.passed else 'FAIL'}"
        f"<td>{html.escape(row.note)}<div class=worst>{html.escape(row.worst)}</div>"
        for row in answer.rows
    )
    return (
        f"<h2>{answer.question} <small>{answer.seconds:.0f} s</small></h2><div class=scroll><table>"
        f"<tr><th>row<th class=n>figure<th class=n>gate<th>verdict<th>note, and the worst element{rows}</table></div>"
    )


PAGE = """<!doctype html><html lang=en><meta charset=utf-8>
<meta name=viewport content="width=device-width,initial-scale=1">
<title>jaxseg against PyTorch</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; color: #1c1c1c }}
h1 span {{ color: {color} }}
h2 {{ margin-top: 2rem }}
small {{ color: #666; font-weight: normal }}
table {{ border-collapse: collapse; width: 100% }}
th, td {{ text-align: left; vertical-align: top; padding: .25rem .6rem; border-top: 1px solid #ddd }}
td:last-child {{ min-width: 15rem }}
.n {{ text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }}
.fail td {{ background: #fdecea }}
.worst {{ color: #666; font-size: .85em; overflow-wrap: anywhere }}
.scroll {{ overflow-x: auto }}
img {{ max-width: 100% }}
</style>
<h1>jaxseg against PyTorch: <span>{verdict}</span></h1>
<p>A row passes when its figure is at most its gate. Gates and what each question cannot see are explained at the head
of the files in <code>parity/checks</code>. Meaning is judged in float64; float32 by PyTorch's distance from itself.</p>
<h2>The two schedules</h2>{picture}
{sections}
<h2>environment</h2><div class=scroll><table>{environment}</table></div></html>
"""


def draw_schedules() -> bytes:
    """PNG of both schedules with the article's numbers: the reference as lines, jaxseg as dots on them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    epochs, peak = np.arange(45), 1e-2
    reference = WarmupCosineScheduler(peak)
    curves = {
        "article: running product": ([reference(int(e)) for e in epochs], schedules.article(peak), "tab:red"),
        "warmup_cosine: one cosine": (
            [textbook_warmup_cosine(int(e), peak, 5, 40, 1e-9, 1e-9) for e in epochs],
            schedules.warmup_cosine(peak),
            "tab:blue",
        ),
    }
    page = Figure(figsize=(11, 4), layout="constrained")
    FigureCanvasAgg(page)
    for axes, scale in zip(page.subplots(1, 2), ("linear", "log")):
        for name, (expected, ours, color) in curves.items():
            axes.plot(epochs, expected, color=color, label=f"{name}, PyTorch")
            axes.plot(epochs, [float(ours(e)) for e in epochs], ".", color=color, label=f"{name}, jaxseg")
        axes.set(xlabel="epoch", ylabel="learning rate", yscale=scale)
        axes.grid(alpha=0.3)
    page.legend(*page.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9)
    buffer = io.BytesIO()
    page.savefig(buffer, dpi=110)
    return buffer.getvalue()
