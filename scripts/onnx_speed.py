"""Speed of prediction beside onnxruntime, which runs the exported ONNX file, on a CPU.

    python scripts/onnx_speed.py [--bases 16 64] [--sides 256 512 1024] [--batch 1] [--rounds 9] [--cpu-time]

The predict step takes turns in one process with onnxruntime, with as many threads as JAX has. Both get uint8 images and
return probabilities, as prediction does. A line shows seconds of both, and median and quartiles of jaxseg's time over
onnxruntime's, as it is and with BatchNorm left as it was trained. Needs the extra `export`.
"""

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import onnxruntime
from flax import nnx

from jaxseg.base.config import Config, Model
from jaxseg.base.memory import keep_freed
from jaxseg.data.read.samples import Reading
from jaxseg.export.onnx_file import plain_model
from jaxseg.export.trained import Trained
from jaxseg.learn.compiled import compile_probability_step
from jaxseg.nn import unet
from jaxseg.nn.folded import folded
from jaxseg.nn.layers import BatchNorm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bases", type=int, nargs="+", default=(16, 64), help="channels of the first of five levels")
    parser.add_argument("--sides", type=int, nargs="+", default=(256, 512, 1024), help="of the images in pixels")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--upsample", default="transpose", choices=("transpose", "bilinear"))
    parser.add_argument("--cpu-time", action="store_true", help="of the process, all threads: for a busy machine")
    args = parser.parse_args()
    clock = time.process_time if args.cpu_time else time.perf_counter
    kept, threads = keep_freed(), len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = f"jax {jax.__version__}, onnxruntime {onnxruntime.__version__}, {threads} threads"
    print(f"{versions}, freed memory {'kept' if kept else 'returned'}")
    for base in args.bases:
        trained = network(base, args.upsample)
        for side in args.sides:
            print(
                f"base {base}, {args.batch} x {side}x{side}:",
                compare(trained, side, args.batch, args.rounds, clock),
                flush=True,
            )


def network(base: int, upsample: str) -> Trained:
    """A network that was not trained, with statistics other than those at the start."""
    config = Config(model=Model(widths=tuple(base << i for i in range(5)), upsample=upsample))
    net, rng = unet.unet_from(config.model, in_channels=3, classes=2, seed=0), np.random.default_rng(0)
    for _, layer in nnx.iter_graph(net):
        if isinstance(layer, BatchNorm):
            layer.mean[...] = jax.numpy.asarray(rng.normal(0, 0.1, layer.mean.shape), np.float32)
            layer.var[...] = jax.numpy.asarray(rng.uniform(0.5, 2, layer.var.shape), np.float32)
    return Trained(Path("run"), unet.evaluation(net), Reading(), "best", {})


def compare(trained: Trained, side: int, batch: int, rounds: int, clock: Callable[[], float]) -> str:
    image = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), np.uint8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    model = plain_model(trained, probabilities=True, fold=True).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    steps = {
        "jaxseg": compile_probability_step(folded(trained.net)),
        "as trained": compile_probability_step(trained.net),
    }
    runs = {"onnxruntime": lambda: session.run(None, {"image": image})[0]}
    runs |= {name: lambda step=step: np.asarray(step(image)) for name, step in steps.items()}
    classes = [run().argmax(-1) for run in runs.values()]
    seconds = np.array([[timed(run, clock) for run in runs.values()] for _ in range(rounds)])
    shown = [f"onnxruntime {np.median(seconds[:, 0]):.3f} s"]
    for i, name in enumerate(steps, 1):
        low, middle, high = np.quantile(seconds[:, i] / seconds[:, 0], (0.25, 0.5, 0.75))
        shown.append(f"{name} {np.median(seconds[:, i]):.3f} s, {middle:.2f} ({low:.2f} to {high:.2f}) of it")
    differing = sum(int((other != classes[0]).sum()) for other in classes[1:])
    return "; ".join([*shown, f"{differing} of {2 * classes[0].size:,} classes differ"])


def timed(run: Callable, clock: Callable[[], float]) -> float:
    began = clock()
    run()
    return clock() - began


if __name__ == "__main__":
    main()
