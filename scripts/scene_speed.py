"""Speed and memory of prediction on a scene: of `python -m jaxseg.predict`, beside the bare predict step.

    python scripts/scene_speed.py [--side 2048] [--rounds 5] [--widths 16 32 64] [--overlap 0.5] [--vector]
    python scripts/scene_speed.py --array [...]      from array to array, which needs no extra
    python scripts/scene_speed.py --memory 2048x2048 2048x8192 8192x2048 [--classes 2] [--folder FOLDER]

The scene is made up: four bands of uint16 in blocks of 256x256, compressed, with smooth noise. The network is not
trained. Speed: the two ways take turns in one process; the line shows pixels per second of both, and quartiles of the
ratio. `--memory WIDTHxHEIGHT ...`: peak resident memory of a process for each size, less that of one which predicts a
single tile. `--folder` keeps scenes and maps. Needs the extra `geo`, unless --array is given. Linux and macOS.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from prediction_memory import peak_mib

from jaxseg import predict
from jaxseg.base.config import Config, Model
from jaxseg.data.read.masks import ClassMap
from jaxseg.data.read.samples import Reading
from jaxseg.inference.predictor import load
from jaxseg.learn import optimizers
from jaxseg.nn import unet
from jaxseg.runs.checkpoint import Checkpoints, Progress

TILE, BANDS = 512, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=2048, help="of the scene in pixels (default: 2048)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--widths", type=int, nargs="+", default=(16, 32, 64), help="of the network")
    parser.add_argument("--precision", default="f32", choices=("f32", "bf16"))
    parser.add_argument("--overlap", type=float, default=0.5, help="of tiles (default: 0.5)")
    parser.add_argument("--classes", type=int, default=2)
    parser.add_argument("--vector", action="store_true", help="polygons too")
    parser.add_argument("--array", action="store_true", help="from array to array instead of from file to file")
    parser.add_argument("--memory", nargs="+", metavar="WIDTHxHEIGHT", help="measure memory instead")
    parser.add_argument("--folder", type=Path, help="to work in; a temporary one if not given")
    parser.add_argument("--measure", nargs=2, metavar=("FOLDER", "SCENE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    more = ["--vector", "gpkg", "--min-area", "10"] if args.vector else []
    if args.measure:
        folder, scene = map(Path, args.measure)
        seconds = file_to_file(folder, scene, args.overlap, more)
        print(json.dumps([peak_mib(), seconds]))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = args.folder or Path(name)
        make_run(folder / "run", Model(widths=tuple(args.widths), precision=args.precision), args.classes)
        if args.memory:
            memory(folder, args)
        else:
            speed(folder, args, more)


def speed(folder: Path, args: argparse.Namespace, more: list[str]) -> None:
    predictor, pixels = load(folder / "run", tile=TILE, overlap=args.overlap), args.side**2
    if args.array:
        image = np.resize(noise(args.side), (args.side, args.side, BANDS))
        run = partial(timed, partial(predictor.classes, image))
    else:
        scene = write_scene(folder / "scene.tif", args.side, args.side)
        run = partial(file_to_file, folder, scene, args.overlap, more)
    axis = predictor._axis(args.side)
    tiles = len(axis.starts) ** 2
    batch = np.random.default_rng(0).integers(0, 65535, (predictor.batch_size, axis.side, axis.side, BANDS), np.uint16)
    jax.block_until_ready(predictor._step(batch))
    run()

    def steps() -> None:
        for _ in range(0, tiles, predictor.batch_size):
            jax.block_until_ready(predictor._step(batch))

    bare, whole = np.array([(timed(steps), run()) for _ in range(args.rounds)]).T
    low, middle, high = np.quantile(bare / whole, (0.25, 0.5, 0.75))
    print(
        f"{args.side}x{args.side}, {tiles} tiles of {axis.side}: bare step {pixels / np.median(bare) / 1e6:.3f}, "
        f"{'array to array' if args.array else 'file to file'} {pixels / np.median(whole) / 1e6:.3f} megapixels/s; "
        f"ratio {middle:.2f} ({low:.2f} to {high:.2f})"
    )


def timed(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def memory(folder: Path, args: argparse.Namespace) -> None:
    flags = ["--overlap", str(args.overlap), *(["--vector"] if args.vector else [])]
    sizes = [(TILE, TILE)] + [tuple(map(int, size.split("x"))) for size in args.memory]
    least = None
    for width, height in sizes:
        scene = write_scene(folder / f"{width}x{height}.tif", width, height)
        command = [sys.executable, __file__, *flags, "--measure", str(folder), str(scene)]
        said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        peak, seconds = json.loads(said.splitlines()[-1])
        least = peak if least is None else least
        megapixels = width * height / 1e6
        print(f"{width:>6} x {height:<6} {peak:6.0f} MiB, {peak - least:+.0f} over one tile; ", end="")
        print(
            f"{megapixels * BANDS * 2 / 1.048576:.0f} MiB of pixels; {megapixels / seconds:.2f} megapixels/s",
            flush=True,
        )


def file_to_file(folder: Path, scene: Path, overlap: float, more: list[str]) -> float:
    """Seconds of the command without its imports. Loading the run is included, compilation is not if it is cached."""
    flags = ["--tile", str(TILE), "--overlap", str(overlap), "--overwrite", *more]
    words = [str(folder / "run"), str(scene), "-o", str(folder / "out"), *flags]

    def run() -> None:
        assert predict.main(words) == 0

    return timed(run)


def make_run(folder: Path, model: Model, classes: int) -> None:
    names = ("background", *(f"class {i}" for i in range(1, classes)))
    reading = Reading(ClassMap(tuple(range(classes)), names), BANDS, dtype="uint16", order="bands")
    config = Config(model=model)
    net = unet.unet_from(config.model, in_channels=BANDS, classes=classes, seed=0)
    description = {"classes": list(reading.labels.names), "in_channels": BANDS, "reading": reading.to_dict()}
    checkpoints = Checkpoints(folder, config, description)
    checkpoints.save("best", 1, net, nnx.Optimizer(net, optimizers.adam(1e-3), wrt=nnx.Param), Progress(1))


def noise(width: int) -> np.ndarray:
    """Returns 256 rows of smooth noise, uint16 [256 width bands]."""
    rng = np.random.default_rng(0)
    rows = rng.integers(200, 3000, (8, -(-width // 32), BANDS), np.uint16).repeat(32, 0).repeat(32, 1)[:, :width]
    return rows + rng.integers(0, 64, rows.shape, np.uint16)


def write_scene(path: Path, width: int, height: int) -> Path:
    """Writes 256 rows of noise over and over."""
    import rasterio

    rows = np.moveaxis(noise(width), -1, 0)
    profile = {"width": width, "height": height, "count": BANDS, "dtype": "uint16", "compress": "deflate"}
    profile |= {"tiled": True, "blockxsize": 256, "blockysize": 256, "bigtiff": "if_safer", "crs": "EPSG:32633"}
    place = rasterio.transform.from_origin(4e5, 5e6, 0.5, 0.5)
    with rasterio.open(path, "w", driver="GTiff", transform=place, num_threads="all_cpus", **profile) as file:
        for top in range(0, height, 256):
            count = min(256, height - top)
            file.write(rows[:, :count], window=rasterio.windows.Window(0, top, width, count))
    return path


if __name__ == "__main__":
    main()
