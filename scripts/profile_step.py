"""Where the time of a training step goes: by kind of operation, and the operations that take longest.

    python scripts/profile_step.py [--base 16] [--batch 5] [--precision f32] [--top 20] [--json FILE]

Traces a few steps of the trainer's own compiled step on random images. Operations that run at the same time share it,
so that parts add up to the time of a step. Convolutions and matrix products have their rate beside them, reckoned on
the whole time from their first to their last moment; sizes are those of one run. On a CPU figures move by a tenth from
run to run, and tracing itself takes a few percent.
"""

import argparse
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from traces.operations import CONTAINER, Operation, kernel_kind, operations
from traces.recording import Span, record, shared_time

from jaxseg.base.config import Model, Optimization
from jaxseg.learn import optimizers, schedules
from jaxseg.learn.compiled import compile_train_step, compiler_options
from jaxseg.nn import unet

IDLE = "nothing runs"


class Entry(NamedTuple):
    """An operation, or a kernel of which no operation is known; times are those of a step."""

    name: str
    kind: str
    ms: float
    """Its share of the time."""
    span_ms: float
    """From start to end, whatever else ran."""
    runs: float
    operation: Operation | None


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=int, default=16, help="channels of the first level (default: 16)")
    parser.add_argument("--levels", type=int, default=5)
    parser.add_argument("--batch", type=int, default=5)
    parser.add_argument("--side", type=int, default=256, help="height and width of the images (default: 256)")
    parser.add_argument("--precision", choices=("f32", "bf16"), default="f32")
    parser.add_argument("--optimizer", choices=("sgd", "adam"), default="sgd")
    parser.add_argument("--upsample", choices=("transpose", "bilinear"), default="transpose")
    parser.add_argument("--steps", type=int, default=5, help="that are traced, after as many that are not (default: 5)")
    parser.add_argument("--top", type=int, default=20, help="how many single operations to print (default: 20)")
    parser.add_argument("--json", type=Path, help="writes all of it there")
    args = parser.parse_args(argv)

    widths = tuple(args.base * 2**level for level in range(args.levels))
    settings = Model(widths=widths, precision=args.precision, upsample=args.upsample)
    step, hlo = compiled_step(settings, batch(args.batch, args.side), args.optimizer)
    untraced = [seconds(step) for _ in range(args.steps + 1)][1:]
    traced = record(lambda: [step() for _ in range(args.steps)])
    entries, kinds = profile(traced, operations(hlo), args.steps)

    ms = 1e3 * statistics.median(untraced)
    print(f"widths {widths}, batch {args.batch}, {args.side}x{args.side}, {args.precision}, {args.optimizer}")
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}")
    print(f"{ms:.1f} ms a step, the median of {args.steps}; {sum(kinds.values()):.1f} traced, their mean\n")
    show(entries, kinds, args.top)
    if args.json:
        told = [entry._asdict() | {"operation": entry.operation and entry.operation._asdict()} for entry in entries]
        written = {"step_ms": ms, "kinds": kinds, "operations": told}
        args.json.write_text(json.dumps(written, indent=1))


def batch(size: int, side: int) -> dict[str, np.ndarray]:
    """Random images and masks of two classes."""
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (size, side, side, 3), np.uint8),
        "mask": rng.integers(0, 2, (size, side, side), np.uint8),
        "valid": np.ones(size, bool),
    }


def compiled_step(settings: Model, given: dict, optimizer: str = "sgd") -> tuple[Callable[[], object], str]:
    """One training step that waits for its end, compiled, and its HLO text."""
    net = unet.unet_from(settings, in_channels=given["image"].shape[-1], classes=2, seed=0)
    tx = optimizers.optimizer_from(Optimization(optimizer=optimizer), schedules.constant(1e-3))
    given = jax.device_put(given)
    step = compile_train_step(net, nnx.Optimizer(net, tx, wrt=nnx.Param), schedule=schedules.constant(1e-3))
    compiled = step.lower(given).compile(compiler_options())
    return lambda: jax.block_until_ready(compiled(given)), compiled.as_text()


def seconds(step: Callable[[], object]) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def profile(traced: list[Span], known: dict[str, Operation], steps: int) -> tuple[list[Entry], dict[str, float]]:
    """Operations, longest first, and ms a step of each kind, that in which nothing ran included."""
    found: dict[tuple[str, str], list[Span]] = {}
    kernels = {name.replace(".", "_"): name for name in known}  # in a CUDA graph the trace tells the graph's operation
    for span in traced:
        name = kernels.get(span.kernel, span.operation or span.kernel)
        operation = known.get(name)
        by_name = kernel_kind(span.kernel)
        kind = operation.kind if operation and not span.kernel.startswith(("nchwTo", "nhwcTo")) else by_name
        if kind != CONTAINER:
            found.setdefault((name, kind), []).append(span)
    parts = shared_time((span.start, span.end, key) for key, group in found.items() for span in group)
    scale = 1e-6 / steps
    entries = [
        Entry(
            name,
            kind,
            parts[name, kind] * scale,
            sum(s.end - s.start for s in group) * scale,
            len(group) / steps,
            known.get(name),
        )
        for (name, kind), group in found.items()
    ]
    kinds = Counter()
    for entry in entries:
        kinds[entry.kind] += entry.ms
    everything = [span for group in found.values() for span in group]
    whole = (max(span.end for span in everything) - min(span.start for span in everything)) * scale
    return sorted(entries, key=lambda entry: -entry.ms), dict(kinds.most_common()) | {IDLE: whole - kinds.total()}


def show(entries: list[Entry], kinds: dict[str, float], top: int) -> None:
    whole = sum(kinds.values())
    print(f"{'kind':<30}{'ms':>9}{'share':>8}{'operations':>12}")
    for kind, ms in kinds.items():
        count = sum(entry.kind == kind for entry in entries)
        print(f"{kind:<30}{ms:>9.2f}{ms / whole:>8.1%}{count:>12}")
    print(f"\n{'operation':<30}{'ms':>9}{'share':>8}{'GFLOP/s':>9}  kind; shapes; source")
    for entry in entries[:top]:
        operation = entry.operation
        rate = f"{entry.runs * operation.flops / entry.span_ms / 1e6:.0f}" if operation and operation.flops else ""
        told = "; ".join(filter(None, (entry.kind, *((operation.shapes, operation.source) if operation else ()))))
        print(f"{entry.name[:29]:<30}{entry.ms:>9.2f}{entry.ms / whole:>8.1%}{rate:>9}  {told}")


if __name__ == "__main__":
    main()
