"""Peak memory of predicting one large image: whole, in tiles, and by `python -m jaxseg.predict` from file to file.

    python scripts/prediction_memory.py [--side 6000] [--ways whole bands file] [--widths 4 8] [--overlap 0.5]

Every figure is the peak resident memory of a process of its own, less that of one which predicts a single tile. The
image is made up: RGB, 8 bits, as an uncompressed TIFF. The network is not trained. `whole` hands the network the image
at once; `bands` holds the image, but of the probabilities a band. Linux and macOS (`resource`).
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import tifffile
from flax import nnx

from jaxseg import predict
from jaxseg.base.config import Config, Model
from jaxseg.data.read.samples import Reading, read_image
from jaxseg.inference.predictor import Predictor
from jaxseg.learn import optimizers
from jaxseg.nn import unet
from jaxseg.runs.checkpoint import Checkpoints, Progress, load_model

WAYS = ("whole", "bands", "file")
TILE = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=6000, help="pixels (default: 6000)")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--widths", type=int, nargs="+", default=(4, 8), help="of the network (default: 4 8)")
    parser.add_argument("--overlap", type=float, default=0.5, help="of tiles (default: 0.5)")
    parser.add_argument("--measure", nargs=3, metavar=("FOLDER", "WAY", "SIDE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        folder, way, side = args.measure
        print(json.dumps(measure(Path(folder), way, int(side), args.overlap)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_run(folder / "run", tuple(args.widths))
        for side in (TILE, args.side):
            write_image(folder / f"{side}.tif", side)
        print(f"{args.side} x {args.side}, 3 bands: {args.side**2 * 3 / 2**20:.0f} MiB; ", end="")
        print(f"2 classes: {args.side**2 * 8 / 2**20:.0f} MiB of probabilities")
        for way in args.ways:
            least, _ = in_own_process(folder, way, TILE, args.overlap)
            peak, seconds = in_own_process(folder, way, args.side, args.overlap)
            speed = args.side**2 / 1e6 / seconds
            print(f"{way:<6} {peak - least:>8.0f} MiB above one tile   {seconds:>6.0f} s, {speed:.2f} megapixels/s")


def make_run(folder: Path, widths: tuple[int, ...]) -> None:
    config, reading = Config(model=Model(widths=widths)), Reading()
    net = unet.unet_from(config.model, in_channels=3, classes=2, seed=0)
    description = {"classes": list(reading.labels.names), "in_channels": 3, "reading": reading.to_dict()}
    checkpoints = Checkpoints(folder, config, description)
    checkpoints.save("best", 1, net, nnx.Optimizer(net, optimizers.adam(1e-3), wrt=nnx.Param), Progress(1))


def write_image(path: Path, side: int) -> None:
    """A band of noise, over and over."""
    band = np.random.default_rng(0).integers(0, 256, (100, side, 3), dtype=np.uint8)
    image = tifffile.memmap(path, shape=(side, side, 3), dtype=np.uint8, photometric="rgb")
    for top in range(0, side, 100):
        image[top : top + 100] = band[: side - top]
    image.flush()


def in_own_process(folder: Path, way: str, side: int, overlap: float) -> tuple[float, float]:
    command = [sys.executable, __file__, "--overlap", str(overlap), "--measure", str(folder), way, str(side)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def measure(folder: Path, way: str, side: int, overlap: float) -> tuple[float, float]:
    """Peak resident memory in MiB, and seconds."""
    began, path = time.monotonic(), folder / f"{side}.tif"
    if way == "file":
        how = ["--tile", str(TILE), "--overlap", str(overlap), "--overwrite"]
        assert predict.main([str(folder / "run"), str(path), "-o", str(folder / "out"), *how]) == 0
    else:
        net, _ = load_model(folder / "run")
        predictor = Predictor(net, Reading(), tile=TILE if way == "bands" else side // 8 * 8, overlap=overlap)
        pixels = sum(p.shape[0] * p.shape[1] for _, p in predictor.bands(read_image(path)))
        assert pixels >= side * side
    return peak_mib(), time.monotonic() - began


def peak_mib() -> float:
    """Linux's getrusage would count what the parent held when it started this process."""
    if (status := Path("/proc/self/status")).exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
