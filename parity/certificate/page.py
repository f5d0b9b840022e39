"""certificate.html: one file that opens from disk, with the verdict first."""

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes

from parity.certificate import layers, terminal
from parity.certificate.injected import Injected, kinds
from parity.judge import compare
from parity.judge.answer import Answer
from parity.report import page
from parity.report.drawings import GRAY, JAXSEG, TORCH, legend, picture
from parity.report.page import escape, figure

if TYPE_CHECKING:
    from parity.certificate.certificate import Certificate

TINY = 1e-18
"""Drawn in place of 0 on logarithmic axes."""


def write(certificate: "Certificate") -> str:
    """HTML of the whole page."""
    rows = page.table(Answer(layers.QUESTION, certificate.rows))
    first = "".join(f"<p>{escape(s)}</p>" for s in [*terminal.first(certificate), *terminal.causes(certificate)])
    sections = [
        ("The first difference", first),
        ("Rows", f"<p>A row passes when its figure is at most its gate.</p>{rows}"),
        ("Modules", _modules(certificate)),
        ("Training", page.gallery(_training(certificate))),
        ("Mistakes that were injected into the twin", _matrix(certificate.mistakes)),
        ("What this certificate does not see", _list(certificate.unseen)),
        ("Weights", _weights(certificate)),
    ]
    body = "".join(f"<h2>{name}</h2>{content}" for name, content in sections if content)
    asked, *others = (page.group(name, values) for name, values in certificate.facts.items())
    return PAGE.format(
        color="#0a7d3c" if certificate.passed else "#b3261e",
        title=f"{escape(certificate.facts['asked']['model'])} and its twin in JAX",
        word="Certificate" if certificate.passed else "No certificate",
        verdict=escape(certificate.verdict),
        asked=asked,
        body=body,
        facts="".join(others),
    )


# Sections -------------------------------------------------------------------------------------------------------------


def _modules(certificate: "Certificate") -> str:
    """Picture and table of the errors by module."""
    lines = certificate.lines
    if not lines:
        return ""

    def draw(axes: Axes) -> None:
        places = np.arange(len(lines))
        for values, label, color in (
            ([_drawn(line.forward.figure) for line in lines], "output", JAXSEG),
            ([_drawn(line.backward.figure) if line.backward else math.nan for line in lines], "gradient", TORCH),
        ):
            axes.plot(places, values, ".-", color=color, label=label, lw=1, ms=5)
        axes.axhline(layers.GATE, color=GRAY, ls="--", lw=1, label="gate")
        names = [line.name for line in lines]
        shown = places if len(lines) <= 24 else places[:: math.ceil(len(lines) / 24)]
        axes.set(yscale="log", ylabel="relative l2, float64", ylim=(TINY / 3, None))
        axes.set_xticks(shown, [names[i] for i in shown], rotation=60, ha="right", fontsize=7)
        axes.grid(alpha=0.25)
        legend(axes, loc="best")

    heads = "<tr><th>PyTorch<th>class<th>twin<th class=n>output<th class=n>gradient<th>worst element of the output"
    rows = "".join(
        f"<tr class={'ok' if line.passed else 'fail'}><td>{escape(line.name)}<td>{escape(line.kind)}"
        f"<td>{escape(line.twin)}<td class=n>{figure(line.forward.figure)}"
        f"<td class=n>{figure(line.backward.figure) if line.backward else ''}"
        f"<td class=worst>{escape(line.forward.worst)} {escape(line.forward.note)}"
        for line in lines
    )
    caption = "Errors of the first pass by module, in the order of computation; 0 is drawn at 1e-18."
    drawn = page.gallery([(caption, picture(draw, (7.2, 3.6)))])
    opened = "" if all(line.passed for line in lines) else " open"
    return f"{drawn}<details{opened}><summary>{len(lines)} modules</summary><table>{heads}{rows}</table></details>"


def _training(certificate: "Certificate") -> Iterator[tuple[str, str]]:
    """Pictures of the losses and of the distances of the weights."""
    if certificate.pair.optimizers[0] is None:
        return
    expected, found = certificate.runs
    steps = np.arange(1, len(expected.steps) + 1)

    def losses(axes: Axes) -> None:
        axes.plot(steps, expected.losses, color=TORCH, lw=1.4, label="PyTorch")
        axes.plot(steps, found.losses, ".", color=JAXSEG, ms=4, label="twin")
        axes.set(xlabel="step", ylabel="loss")
        axes.grid(alpha=0.25)
        legend(axes)

    yield "Loss of each step, float64.", picture(losses)
    far = [compare.relative_l2(a.params, certificate.pair.named(b.params)) for a, b in zip(found.steps, expected.steps)]

    curves = [("twin, float64", far, "black", 1.4)]
    for i, (name, curve) in enumerate(certificate.float32.get("variations", {}).items()):
        curves.append((f"PyTorch, {name}", curve, f"C{(0, 2, 4, 5)[i % 4]}", 0.9))
    if "twin" in certificate.float32:
        curves.append(("twin, float32", certificate.float32["twin"], JAXSEG, 1.6))

    def distances(axes: Axes) -> None:
        for label, curve, color, width in curves:
            known = [(step, _drawn(x)) for step, x in zip(steps, curve) if math.isfinite(x)]
            axes.plot(*zip(*known), color=color, lw=width, label=label)
        axes.set(yscale="log", xlabel="step", ylabel="distance of weights, relative l2")
        axes.grid(alpha=0.25)
        legend(axes, loc="best")

    caption = "Distance of the twin's weights from PyTorch's; in float32 beside PyTorch's distance from itself."
    if all(any(map(math.isfinite, curve)) for _, curve, _, _ in curves):
        yield f"{caption} 0 is drawn at 1e-18.", picture(distances)


def _drawn(value: float) -> float:
    return max(value, TINY) if math.isfinite(value) else math.nan


def _matrix(found: tuple[Injected, ...]) -> str:
    """Table of mistakes by rows, a mark where the row failed."""
    if not found:
        return ""
    columns = kinds(list(found))
    heads = "".join(f"<th class=turn><span>{escape(name)}</span>" for name in columns)
    lines = []
    for mistake in found:
        cells = "".join("<td class=hit>●" if name in mistake.failed else "<td>·" for name in columns)
        lines.append(f"<tr class={'ok' if mistake.failed else 'fail'}><td>{escape(mistake.name)}{cells}")
    seen = sum(bool(mistake.failed) for mistake in found)
    words = f"<p>{seen} of {len(found)} are seen; a disk marks a row that fails. Training has {_steps(columns)}.</p>"
    return f"{words}<div class=scroll><table class=matrix><tr><th>mistake{heads}{''.join(lines)}</table></div>"


def _steps(columns: list[str]) -> str:
    """Number of steps that a mistake was trained, in words."""
    return next(
        (f"{name.split()[-2]} steps here" for name in columns if name.startswith("weights after") and "steps" in name),
        "no steps here",
    )


def _list(sentences: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(sentence)}' for sentence in sentences)}</ul>"


def _weights(certificate: "Certificate") -> str:
    """Table of the matched weights."""
    heads = "<tr><th>PyTorch<th>shape<th>twin<th>shape<th>layout<th>matched by"
    rows = "".join(
        f"<tr><td>{escape(m.piece.label)}<td>{m.piece.shape}<td>{escape(m.leaf)}<td>{m.shape}"
        f"<td>{escape(m.layout.name)}<td>{escape(m.by)}"
        for m in certificate.pair.matches
    )
    count = len(certificate.pair.matches)
    return f"<details><summary>{count} weights and statistics</summary><table>{heads}{rows}</table></details>"


PAGE = """<!doctype html><html lang=en><meta charset=utf-8>
<meta name=viewport content="width=device-width,initial-scale=1">
<title>{word}: {title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 1.5rem auto; padding: 0 1rem; color: #1c1c1c }}
h1 {{ line-height: 1.2; margin-bottom: .2rem }}
h1 small {{ color: {color} }}
h2 {{ margin: 2rem 0 .4rem; font-size: 1.2rem }}
h3 {{ margin: .5rem 0 0; font-size: 1rem }}
.verdict {{ border-left: 5px solid {color}; padding: .4rem 1rem; font-size: 1.15rem; margin: .8rem 0 }}
.worst, figcaption, small {{ color: #666 }}
table {{ border-collapse: collapse; font-size: .9rem }}
th, td {{ text-align: left; vertical-align: top; padding: .2rem .6rem; border-top: 1px solid #ddd }}
.n {{ text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }}
.fail td {{ background: #fdecea }}
.worst {{ font-size: .85em; overflow-wrap: anywhere }}
.scroll {{ overflow-x: auto }}
.facts {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr)); gap: .5rem 2rem }}
.facts {{ font-size: .85rem }}
dl {{ display: grid; grid-template-columns: fit-content(60%) minmax(0, 1fr); gap: 0 .7rem; margin: 0 }}
dd {{ margin: 0 }}
dt {{ color: #666 }}
dt, dd {{ overflow-wrap: anywhere }}
.gallery {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: .5rem }}
figure {{ margin: 0; max-width: 46rem }}
figure img {{ width: 100% }}
figcaption {{ font-size: .85rem }}
summary {{ cursor: pointer; margin: .5rem 0 }}
.matrix td, .matrix th {{ padding: .1rem .35rem }}
.matrix td + td {{ text-align: center; min-width: 1.6rem; border-left: 1px solid #eee; color: #bbb }}
.matrix td.hit {{ background: #d6eadd; color: #0a7d3c }}
.matrix th {{ vertical-align: bottom }}
.turn span {{ writing-mode: vertical-rl; transform: rotate(180deg); font-weight: normal }}
</style>
<h1>{title} <small>{word}</small></h1>
<p class=verdict>{verdict}</p>
<p>Both sides start from the same weights and get the same batches. Formulas are compared in float64, where correct code
differs by rounding alone; float32 is judged by PyTorch's distance from itself. Made by <code>parity.certify</code>.</p>
<div class=facts>{asked}</div>
{body}
<h2>Environment</h2><div class=facts>{facts}</div></html>
"""
