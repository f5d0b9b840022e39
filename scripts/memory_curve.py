"""Host memory of two epochs against the number of tiles: a list of arrays, an iterator, an iterator with a cache.

    python scripts/memory_curve.py [--data FOLDER] [--tiles 256] [--out memory.png]

The article's point about lists and iterators, on real batches. Every figure is the peak resident memory of a process
of its own, less that of one which reads a single batch. Tiles are made up unless --data names a folder in the
article's layout; to reach a number of tiles its pairs are read over and over. Pages of a file that are mapped count,
as do those of memory. Linux and macOS (`resource`).
"""

import argparse
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from jaxseg.base.config import Data
from jaxseg.data.feed.pipeline import Pipeline
from jaxseg.data.find.folders import find_split
from jaxseg.data.made.fields import make_fields
from jaxseg.data.read import samples as tiles

BATCH_SIZE = 8
MODES = ("list", "iterator", "iterator, memory cache", "iterator, disk cache")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--tiles", type=int, default=256, help="number at 1x (default: 256)")
    parser.add_argument("--out", type=Path, default=Path("memory.png"))
    parser.add_argument("--measure", nargs=2, metavar=("MODE", "TILES"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(peak_mib(args.data, args.measure[0], int(args.measure[1]))))
        return
    with tempfile.TemporaryDirectory() as folder:
        data = args.data or make_fields(Path(folder) / "fields", train=32, val=1, size=256)
        counts = [args.tiles, 4 * args.tiles, 16 * args.tiles]
        nothing = in_own_process(data, "iterator", BATCH_SIZE)
        os.environ["JAXSEG_CACHE_DIR"] = folder
        curves = {mode: [in_own_process(data, mode, n) - nothing for n in counts] for mode in MODES}
    print(f"MiB above one batch  {'':>6}" + "".join(f"{n:>8} tiles" for n in counts))
    for mode, curve in curves.items():
        print(f"{mode:<27}" + "".join(f"{mib:>14.0f}" for mib in curve))
    draw(counts, curves, args.out)


def in_own_process(data: Path, mode: str, count: int) -> float:
    command = [sys.executable, __file__, "--data", str(data), "--measure", mode, str(count)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def peak_mib(data: Path, mode: str, count: int) -> float:
    """Reads `count` tiles twice and returns the peak resident memory of this process in MiB."""
    known = find_split(Data(data=data), 0).training
    pairs = list(itertools.islice(itertools.cycle(known), count))
    if mode == "list":
        samples = [tiles.read_sample(pair) for pair in pairs]
        seen = len(samples)
    else:
        cache = next((name for name in ("memory", "disk") if name in mode), "none")
        data = Pipeline(pairs, batch_size=BATCH_SIZE, shuffle=True, workers=2, cache=cache)
        seen = sum(int(batch["valid"].sum()) for epoch in range(2) for batch in data.epoch(epoch)) // 2
    assert seen == count
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def draw(counts: list[int], curves: dict[str, list[float]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for mode, curve in curves.items():
        axes.plot(counts, curve, "o-", label=mode)
    axes.set(xlabel="tiles of 256x256", ylabel="peak memory above one batch, MiB", xscale="log", xticks=counts)
    axes.set_xticklabels(counts)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110)
    print(path)


if __name__ == "__main__":
    main()
