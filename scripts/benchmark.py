"""jaxseg against PyTorch on this machine: `python scripts/benchmark.py [--only step pipeline ...] [--out FOLDER]`

Prints a table per comparison and writes benchmark.json with every turn. Sections:

- `step`: a training step of the U-Net in jaxseg and in PyTorch (eager, channels_last, torch.compile)
- `pipeline`: pairs of tiles from files and caches
- `epoch`: a whole epoch from files against the step alone
- `startup`: imports and first steps in fresh processes

Each contender runs in its own process, and they take turns in rotating order. Compilation and a first turn are not
timed. Figures are medians with quartiles; ratios are taken within a round. Both frameworks get all cores. On a busy
machine compare the best turns: PyTorch's OpenMP threads wait for each other, XLA's do not.

jaxseg's step also computes a confusion matrix and the norm of the gradient, which PyTorch's does not.
"""

import dataclasses
import datetime
import json
import signal
import sys
import tempfile
from pathlib import Path

import tyro
from benchmarks import match, report
from benchmarks.program import Bench, Options, program
from benchmarks.workers import Worker
from rich.console import Console

from jaxseg.base import files
from jaxseg.base.errors import UserError

console = Console(highlight=False, markup=False, soft_wrap=True, width=None if sys.stdout.isatty() else 130)


def main(argv: list[str] | None = None) -> int:
    try:
        run(tyro.cli(Options, args=argv, prog="python scripts/benchmark.py"))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


def run(options: Options) -> None:
    """Runs all comparisons and rewrites benchmark.json after each. Raises UserError for wrong options.

    benchmark.json has "created", "command" (the options), "machine" and "matches". A match has its "section",
    "configuration", "unit", the "outcomes" and the "figures" of each contender.
    """
    options.check()
    try:
        worker = Worker("benchmarks.workers:machine", {}, {})
    except match.Failed as error:
        raise UserError(f"jax and torch are both needed: pip install 'jaxseg[parity]' ({error})") from None
    worker.close()
    machine, now = worker.facts, datetime.datetime.now()
    out = options.out or Path(f"benchmark-{now:%Y%m%d-%H%M%S}")
    out.mkdir(parents=True, exist_ok=True)
    versions = ", ".join(f"{name} {machine['versions'].get(name, '?')}" for name in ("jax", "flax", "torch", "commit"))
    where = machine["machine"]["PyTorch's GPU" if machine["gpu"] else "processor"]
    console.print(f"{versions}\n{where}; {machine['cores used']} threads for each framework")

    record = {"created": now.isoformat(timespec="seconds"), "command": dataclasses.asdict(options)}
    record |= {"machine": machine, "matches": []}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        for entry in program(Bench(options, machine["gpu"], machine["cores used"], Path(temporary))):
            played = match.play(*entry)
            figures = report.figures(played)
            record["matches"].append(dataclasses.asdict(played) | {"figures": figures})
            console.print(report.table(played, figures))
            for line in report.notes(played):
                console.print(f"  {line}", style="yellow")
            text = json.dumps(record, indent=1, default=str, allow_nan=False) + "\n"
            files.replace(out / "benchmark.json", text.encode())
    console.print(str(out / "benchmark.json"))


if __name__ == "__main__":
    sys.exit(main())
