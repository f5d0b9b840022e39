"""Efficiency of data-parallel training on many GPUs, by a model, and a check of it on this machine.

    python scripts/scaling.py [--batches 16 32] [--devices 1 8 64 256] [--picture scaling.png]
    python scripts/scaling.py --networks base64 --batches 16 --step-ms 13.2
    python scripts/scaling.py --benchmark gpu-session/benchmark/benchmark.json
    python scripts/scaling.py --check 1 2 4

Each device has a batch of its own (weak scaling). A step takes its time on one device, and waits for sums over devices:

- BatchNorm's statistics and their gradients, and the loss's: few bytes each, one after the other, so latency counts
- the gradient, once, after the backward pass: bandwidth counts. `--hidden` is the share of the step beside which it is
  summed; XLA may do so, but 0 is assumed

Number and bytes of the sums are read from the real step's program, traced for two devices. Latency and bandwidth are
those of `many_devices/network.py`, with their sources; `--network far=25e9 node=4` changes them. Not in the model:
input, devices that are not equally fast, other traffic, kernels that a sum separates and that no longer start together.

Step times without --step-ms or --benchmark are an H100's in bfloat16 (scripts/README.md). Base 64 at batch 16 and base
16 at batch 5 were measured. Others are estimated: as fast a FLOP as base 64, but no faster a BatchNorm layer than base
16, where the start of kernels takes the time. That errs towards short steps, which makes the efficiency a low one.

`--check` measures CPU processes of this machine: single sums, to which latency and bandwidth are fitted, then all sums
of a step, and a step. It prints what the model makes of the fit beside them.
"""

import argparse
import dataclasses
import json
import os
from pathlib import Path

import jax
from many_devices import local, picture
from many_devices.network import BUCKET, HOPPER, PUBLISHED, Network, Parts, Traffic, step
from many_devices.traffic import traffic

from jaxseg.base.config import Model


@dataclasses.dataclass(frozen=True)
class Known:
    """A network: its settings, FLOP of a training step for an image of 256x256, and BatchNorm layers."""

    settings: Model
    flop: float
    norms: int


NETWORKS = {
    "base16": Known(Model(widths=(16, 32, 64, 128, 256), precision="bf16"), 18.1e9, 18),
    "base64": Known(Model(widths=(64, 128, 256, 512, 1024), precision="bf16"), 288.8e9, 18),
    "resnet34": Known(Model(encoder="resnet34", precision="bf16"), 44.5e9, 46),
}
MEASURED = {("base64", 16): 16 / 1208, ("base16", 5): 5 / 1789}
"""Seconds of a step on an H100, by network and batch."""


def estimate(name: str, batch: int) -> tuple[float, str]:
    """Seconds of a step on an H100, and whether they were measured or estimated."""
    if (name, batch) in MEASURED:
        return MEASURED[name, batch], "measured"
    known = NETWORKS[name]
    per_flop = MEASURED["base64", 16] / (16 * NETWORKS["base64"].flop)
    per_layer = MEASURED["base16", 5] / NETWORKS["base16"].norms
    return max(known.norms * per_layer, batch * known.flop * per_flop), "estimated"


def from_benchmark(path: Path) -> dict[tuple[str, int], float]:
    """Seconds of jaxseg's step, by network and batch, from a benchmark.json in bfloat16."""
    found = {}
    for match in json.loads(path.read_text(encoding="utf-8"))["matches"]:
        task, rate = match["configuration"], match["figures"].get("jaxseg", {}).get("rate")
        if match["section"] == "step" and task["precision"] == "bf16" and rate:
            found[task["encoder"] or f"base{task['base']}", task["batch"]] = task["batch"] / rate[1]
    return found


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--batches", type=int, nargs="+", default=(16, 32), help="images on each device")
    parser.add_argument("--devices", type=int, nargs="+", default=(1, 8, 64, 256))
    parser.add_argument("--step-ms", type=float, help="of a step on one device, instead of an H100's")
    parser.add_argument("--benchmark", type=Path, help="benchmark.json to take the times of steps from")
    parser.add_argument("--network", nargs="+", default=[], metavar="NAME=VALUE", help="other figures of the network")
    parser.add_argument("--hidden", type=float, default=0.0, help="share of a step beside which the gradient is summed")
    parser.add_argument("--picture", type=Path, help="PNG to draw")
    parser.add_argument("--check", type=int, nargs="+", metavar="PROCESSES", help="measure on this machine instead")
    parser.add_argument("--widths", type=int, nargs="+", default=(4, 8, 16, 32), help="of the network of --check")
    parser.add_argument("--side", type=int, default=64, help="of the images of --check (default: 64)")
    args = parser.parse_args(argv)
    if args.check:
        check(args)
        return
    changed = {name: float(value) for name, value in (pair.split("=") for pair in args.network)}
    network = dataclasses.replace(HOPPER, **changed)
    if network == HOPPER:
        published(network)
    sums = {name: traffic(NETWORKS[name].settings) for name in args.networks}
    print("\nsums over devices in a step")
    for name, found in sums.items():
        buckets = -(-found.gradient // BUCKET)
        between = f"{len(found.rounds)} one after the other, {sum(found.rounds) / 1e6:.3f} MB together"
        print(f"  {name:<9} {between}; gradient {found.gradient / 1e6:.1f} MB in {buckets}")
    curves = table(args, network, sums)
    if args.picture:
        what = "Weak scaling by the model: H100 nodes with 400 Gb/s InfiniBand for each GPU, bfloat16, 256x256"
        picture.draw(curves, args.picture, what)
        print(args.picture)


def published(network: Network) -> None:
    """Prints what the formula gives beside what others measured."""
    print("all-reduces: what the formula gives, and what was published")
    for devices, size, seconds, source in PUBLISHED:
        print(f"  {devices:>3} GPUs {size:>11,} bytes {1e6 * network.seconds(size, devices):7.0f} us", end="")
        print(f"{1e6 * seconds:7.0f} us   {source}")


def table(args: argparse.Namespace, network: Network, sums: dict[str, Traffic]) -> dict[str, dict[int, Parts]]:
    """Prints the efficiency of each network and batch, and what would help; returns curves for the picture."""
    known, curves, last = from_benchmark(args.benchmark) if args.benchmark else {}, {}, max(args.devices)
    print(f"\nefficiency on          step ms            {''.join(f'{n:>7}' for n in args.devices)}", end="")
    print(f"   at {last}: ms in between, for the gradient")
    for name in args.networks:
        for batch in args.batches:
            compute, how = estimate(name, batch)
            if args.step_ms or (name, batch) in known:
                compute, how = args.step_ms / 1e3 if args.step_ms else known[name, batch], "given"
            points = sorted({*args.devices, *(2**i for i in range(last.bit_length()))})
            on = {n: step(compute, sums[name], network, n, args.hidden) for n in points}
            print(f"  {name:<9} batch {batch:<4} {1e3 * compute:6.2f} {how:<10}", end="")
            print("".join(f"{on[n].efficiency:>7.3f}" for n in args.devices), end="")
            print(f"   {1e3 * on[last].between:.2f}, {1e3 * on[last].gradient:.2f}")
            curves[f"{name}, batch {batch}"] = on
            for what, (seconds, less, hidden) in changes(sums[name], compute).items():
                on = {n: step(seconds, less, network, n, hidden) for n in points}
                print(f"    {what:<42}{''.join(f'{on[n].efficiency:>7.3f}' for n in args.devices)}")
                if batch == max(args.batches) and not what.startswith("and"):
                    curves[f"{name}, batch {batch}, gradient beside the step"] = on
    return curves


def changes(found: Traffic, compute: float) -> dict[str, tuple[float, Traffic, float]]:
    """Ways to wait less: arguments of `step` by what is changed."""
    return {
        "gradient beside two thirds of the step": (compute, found, 2 / 3),
        "and twice the images": (2 * compute, found, 2 / 3),
    }


def check(args: argparse.Namespace) -> None:
    """Measures processes on this machine and prints what the model makes of single sums beside them."""
    cores = len(os.sched_getaffinity(0))
    task = {"widths": args.widths, "batch": 2, "side": args.side, "repeats": 11}
    alone = local.together(1, task)["step"]
    print(f"{cores} cores; widths {' '.join(map(str, args.widths))}, 2 images of {args.side}x{args.side} a process")
    print("processes   latency us    MB/s   sums    all sums, ms: model, measured    step, ms: model, measured")
    for count in args.check:
        if count == 1:
            print(f"{1:>9} {'':<63} {1e3 * alone:.1f}")
            continue
        found = local.together(count, task)
        latency, speed = local.fit(found["probes"])
        sums = sum(latency + size / speed for size in found["sums"])
        whole = alone * max(1, count / cores) + sums
        print(f"{count:>9} {1e6 * latency:>12.0f} {speed / 1e6:>7.0f} {len(found['sums']):>6}", end="")
        print(f" {1e3 * sums:>21.1f} {1e3 * found['set']:>9.1f}", end="")
        print(f" {1e3 * whole:>17.1f} {1e3 * found['step']:>9.1f}   ({whole / found['step']:.2f} of it)", flush=True)


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 2)  # to trace a step on
    main()
