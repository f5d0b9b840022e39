"""jaxseg against PyTorch on this machine: `python scripts/benchmark.py [--only step pipeline ...] [--out FOLDER]`

Sections: `step`, a training step of the U-Net (transposed, base * [1 2 4 8 16] channels) in jaxseg's compiled step and
in PyTorch as people write it, as its guides recommend, and under torch.compile; `pipeline`, pairs of tiles from files
and caches; `epoch`, a whole epoch from files against the step's own rate; `prediction`; `startup`, imports and first
steps in fresh processes. Prints a table for each comparison and leaves benchmark.json, with every single turn, and
benchmark.png. On a GPU if both frameworks see one, else on the CPU.

Every contender has a process of its own, and they take turns (`match.py`, `workers.py`): in each round all of them, in
changing order, a step or a few each. Compilation and a first turn are not timed with the rest. Figures are medians over
the rounds with their quartiles; ratios are taken within a round. Both frameworks get as many threads as there are
cores. On a machine that has other work to do look at the ratio of the best turns: PyTorch's OpenMP threads wait for
each other, and a core that is taken from them costs twice; XLA's do not. (Taking turns in one process or in two made no
difference to either, 25 rounds of both on a busy machine: CPU seconds of XLA 0.83 and 0.82, of PyTorch 2.2 and 2.1.)

The share of the roofline is that of `flops.py`, with a matrix product and a copy measured in the same call, the better
framework's best round. jaxseg's step does more than PyTorch's: it also counts a confusion matrix and takes the norm of
the gradient, as the trainer's does.

On 2 cores all sections take an hour, a good part of it torch.compile's; `--quick` looks whether everything works.
"""

import dataclasses
import datetime
import signal
import sys
import tempfile
from pathlib import Path

import tyro
from benchmarks import machine, match, picture, report
from benchmarks.options import Options, Plan, check
from benchmarks.program import program
from benchmarks.workers import Worker
from rich.console import Console

from jaxseg.base.errors import UserError

console = Console(highlight=False, markup=False, soft_wrap=True, width=None if sys.stdout.isatty() else report.WIDTH)


def main(argv: list[str] | None = None) -> int:
    options = tyro.cli(Options, args=argv, prog="python scripts/benchmark.py")
    try:
        check(options)
        run(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


def run(options: Options) -> dict:
    """All comparisons; what benchmark.json holds. It is written after each of them. Raises UserError."""
    now = datetime.datetime.now()
    out = options.out or Path(f"benchmark-{now:%Y%m%d-%H%M%S}")
    facts = ask_machine(options)
    plan = Plan(options, facts["gpu"] and options.device != "cpu", facts["cores used"])
    out.mkdir(parents=True, exist_ok=True)
    record = {
        "created": now.isoformat(timespec="seconds"),
        "command": dataclasses.asdict(options),
        "machine": facts,
        "matches": [],
    }
    tell(facts, plan)
    played: list[match.Match] = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        for entry in program(plan, Path(temporary)):
            played.append(match.play(*entry))
            figures = report.figures(played[-1], report.ceilings_of(played))
            record["matches"].append(dataclasses.asdict(played[-1]) | {"figures": figures})
            console.print(report.table(played[-1], figures))
            for line in report.notes(played[-1], figures):
                console.print(f"  {line}", style="yellow")
            report.write(out, record)
    picture.draw(record, out / "benchmark.png")
    console.print(f"{out / 'benchmark.json'}\n{out / 'benchmark.png'}")
    return record


def ask_machine(options: Options) -> dict:
    """What both frameworks see. Raises UserError if that is not what was asked for."""
    try:
        worker = Worker("benchmarks.machine:Facts", machine.without_gpu() if options.device == "cpu" else {}, {})
    except match.Failed as error:
        raise UserError(f"jax and torch are both needed: pip install 'jaxseg[parity]' ({error})") from None
    worker.close()
    if options.device == "gpu" and not worker.facts["gpu"]:
        seen = {key: worker.facts["machine"][key] for key in ("JAX's devices", "PyTorch's GPU")}
        raise UserError(f"--device gpu: both frameworks must see one; found {seen}")
    return worker.facts


def tell(facts: dict, plan: Plan) -> None:
    """What it runs on."""
    versions = ", ".join(f"{name} {facts['versions'].get(name, '?')}" for name in ("jax", "flax", "torch", "commit"))
    where = facts["nvidia-smi"] if plan.gpu else facts["machine"]["processor"]
    console.print(f"{versions}\n{where}; {plan.workers} cores, as many threads for each framework")


if __name__ == "__main__":
    sys.exit(main())
