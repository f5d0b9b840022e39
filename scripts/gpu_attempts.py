"""Everything that may make the step faster on a GPU, one thing at a time: a log of prediction, figure and verdict.

    python scripts/gpu_attempts.py [--only NAME ...] [--budget SECONDS] [--out gpu_attempts.json]

Every attempt runs in a process of its own, against one without it that stays from attempt to attempt; they take turns,
and the figure is the median over the rounds of the ratio of their times, with its interval of 95 % confidence. Rows are
written as they come; the same command goes on where it was cut off. The first row is a profile by kind of operation. On
a CPU, what needs a GPU is skipped, and small sizes show that all runs: --widths 4 8 --side 32 --batch 2.

--target FILE compiles for the GPU that FILE describes, without one, and runs nothing: the figure is the ratio of the
least times by bytes and operations. XLA's sources have such files (xla/backends/gpu/target_config/specs/h200.txtpb).
"""

import argparse
import contextlib
import dataclasses
import json
import sys
import tempfile
import time
from pathlib import Path

from attempts.catalog import ATTEMPTS
from attempts.child import Child, Failed
from attempts.spec import Attempt, Spec
from attempts.verdicts import judged

from jaxseg.base.files import replace

PROFILE = "profile"
TURN = 0.4
"""Seconds that a side runs before the other does."""


def main(argv: list[str] | None = None) -> None:
    names = [PROFILE, *(attempt.name for attempt in ATTEMPTS)]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog="NAMES: " + "; ".join(names))
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help="these, again if they are there")
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds after which no attempt is begun")
    parser.add_argument("--timeout", type=float, default=240, help="seconds for a compilation (default: 240)")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each side, 6 or more to tell (default: 9)")
    parser.add_argument("--widths", type=int, nargs="+", help="of both networks (default: from 64 on, and from 16 on)")
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--batch", type=int, help="of both networks (default: 16, and 5 of the small one)")
    parser.add_argument("--target", default="", help="describes a GPU to compile for; nothing is run")
    parser.add_argument("--out", type=Path, default=Path("gpu_attempts.json"))
    args = parser.parse_args(argv)

    log = Log(args.out, {"widths": args.widths, "side": args.side, "batch": args.batch, "target": args.target})
    wanted = args.only or [name for name in names if "error" in log.rows.get(name, {"error": ""})]
    with contextlib.ExitStack() as stack:
        caches = stack.enter_context(tempfile.TemporaryDirectory())
        bench = Bench(args, caches, stack)
        for name in wanted:
            if time.monotonic() - bench.began > args.budget:
                print(f"no time left after {args.budget:.0f} s: {len(wanted) - wanted.index(name)} not begun")
                break
            began = time.monotonic()
            try:
                row = bench.profile() if name == PROFILE else bench.attempt(ATTEMPTS[names.index(name) - 1])
            except Failed as failed:
                row = {"error": str(failed)}
            log.add(name, row | {"seconds": time.monotonic() - began})
            print(line(name, row), flush=True)


class Log:
    """Rows by name, in a file that is whole at any moment."""

    def __init__(self, path: Path, setting: dict):
        self.path, self.setting, self.rows = path, setting, {}
        if path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["setting"] != setting:
                sys.exit(f"error: {path} is of {found['setting']}, not of {setting}; name another file with --out")
            self.rows = found["rows"]

    def add(self, name: str, row: dict) -> None:
        self.rows[name] = row
        replace(self.path, json.dumps({"setting": self.setting, "rows": self.rows}, indent=1).encode())


class Bench:
    """The sides without an attempt, which are kept, and what compares them with one that has it."""

    def __init__(self, args: argparse.Namespace, caches: str, stack: contextlib.ExitStack):
        self.args, self.caches, self.stack, self.began = args, caches, stack, time.monotonic()
        self.children: dict[Spec, Child] = {}

    def spec(self, small: bool, **fields) -> Spec:
        args, base = self.args, 16 if small else 64
        widths = tuple(args.widths or (base * 2**level for level in range(5)))
        return Spec(widths, args.side, args.batch or (5 if small else 16), target=args.target, **fields)

    def usual(self, spec: Spec) -> Child:
        """The one for `spec`, which stays until the end, or until it fails."""
        if spec not in self.children or self.children[spec].failed:
            self.children[spec] = self.stack.enter_context(Child(spec, self.args.timeout, self.caches))
        return self.children[spec]

    def profile(self) -> dict:
        if self.args.target:
            return self.usual(self.spec(False)).built
        return self.usual(self.spec(False)).ask(profile=5)

    def attempt(self, attempt: Attempt) -> dict:
        """Its row."""
        row = {"prediction": attempt.prediction, "present": attempt.present}
        if self.args.target and {"drive", "flags"} & {*attempt.change, *attempt.both}:
            return row | {"skipped": "nothing is run"}
        usual = self.usual(self.spec(attempt.small, **attempt.both))
        if attempt.needs_gpu and usual.built["device"] == "cpu":
            return row | {"skipped": "it needs a GPU"}
        with Child(dataclasses.replace(usual.spec, **attempt.change), self.args.timeout, self.caches) as changed:
            without, with_it = (changed, usual) if attempt.present else (usual, changed)
            row |= {"without": without.built, "with": with_it.built}
            if self.args.target:
                times = ([side.built["bound_ms"]] for side in (without, with_it))
            else:
                times = self.turns(without, with_it)
                row |= {"ms": [[1e3 * t for t in side] for side in times]}
        return row | judged(*times, exact=bool(self.args.target))._asdict()

    def turns(self, *sides: Child) -> tuple[list[float], list[float]]:
        """Seconds a step of both, a pair a round; who begins changes."""
        steps = [max(8, min(400, round(TURN / (side.ask(run=8)["seconds"] / 8)))) for side in sides]
        times = ([], [])
        for number in range(self.args.rounds):
            for which in (0, 1) if number % 2 else (1, 0):
                times[which].append(sides[which].ask(run=steps[which])["seconds"] / steps[which])
        return times


def line(name: str, row: dict) -> str:
    """For people."""
    if "error" in row or "skipped" in row:
        return f"{name:<42} {'error' if 'error' in row else 'skipped'}: {row.get('error') or row['skipped']}"
    if "kinds" in row:
        whole = sum(row["kinds"].values())
        return f"{name:<42} " + "; ".join(f"{kind} {ms / whole:.0%}" for kind, ms in row["kinds"].items())
    if "gain" not in row:
        return f"{name:<42} {row['kernels']} kernels, {row['gigabytes']:.1f} GB, at least {row['bound_ms']:.2f} ms"
    low, high = row["interval"]
    kernels, moved = ([row[side][what] for side in ("without", "with")] for what in ("kernels", "gigabytes"))
    return (
        f"{name:<42} x{row['gain']:.3f} ({low:.3f} to {high:.3f})  {row['verdict']:<8}"
        f"{kernels[0]} -> {kernels[1]} kernels, {moved[0]:.2f} -> {moved[1]:.2f} GB  predicted: {row['prediction']}"
    )


if __name__ == "__main__":
    main()
