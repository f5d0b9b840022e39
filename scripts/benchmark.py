"""jaxseg against PyTorch on this machine: `python scripts/benchmark.py [--only step pipeline ...] [--out FOLDER]`

Sections: `step`, a training step of the U-Net in jaxseg and in PyTorch (eager, channels_last, torch.compile);
`pipeline`, pairs of tiles from files and caches; `epoch`, a whole epoch from files against the step's own rate;
`startup`, imports and first steps in fresh processes. Prints a table per comparison and leaves benchmark.json with
every turn.

Every contender has its own process, and they take turns in changing order (`match.py`, `workers.py`). Compilation and a
first turn are not timed. Figures are medians over the rounds with quartiles; ratios are taken within a round. Both
frameworks get as many threads as there are cores. On a busy machine look at the ratio of the best turns: PyTorch's
OpenMP threads wait for each other, XLA's do not.

jaxseg's step does more than PyTorch's: it also counts a confusion matrix and takes the norm of the gradient.
"""

import dataclasses
import datetime
import signal
import sys
import tempfile
from pathlib import Path

import tyro
from benchmarks import machine, match, report
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
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        for entry in program(plan, Path(temporary)):
            played = match.play(*entry)
            figures = report.figures(played)
            record["matches"].append(dataclasses.asdict(played) | {"figures": figures})
            console.print(report.table(played, figures))
            for line in report.notes(played):
                console.print(f"  {line}", style="yellow")
            report.write(out, record)
    console.print(str(out / "benchmark.json"))
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
