"""Compares an ONNX model with the network that it was made from."""

import dataclasses
from collections.abc import Callable

import numpy as np
import onnxruntime
from flax import nnx
from jaxtyping import Num
from onnx import ModelProto, TensorProto, helper

from jaxseg.base.errors import UserError
from jaxseg.export.trained import Trained
from jaxseg.learn.step import normalize

BOUND = 1e-4
"""Largest difference of two logits, relative to the largest logit or to 1. Rounding gives 1e-6 to 1e-5."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """Result of a verification.

    - `logits`: largest difference, relative to the largest logit or to 1
    - `classes`, `pixels`: pixels of another class, and all
    """

    logits: float
    classes: int
    pixels: int

    def __str__(self) -> str:
        shown = f"logits within {self.logits:.1e} of jaxseg's (bound {BOUND:.0e})"
        return f"{shown}, {self.classes} of {self.pixels:,} pixels of another class"


def verify(
    model: ModelProto, trained: Trained, feed: Callable[[np.ndarray, Trained], np.ndarray] | None = None
) -> Difference:
    """Runs `model` with onnxruntime and `trained` with JAX on the same images, of even and odd sizes.

    - `model`: has a value "logits" [b k h w], and one output
    - `feed`: makes an image [b c h w] for the model of one [b h w c]; not given for a model that takes the latter

    Raises UserError if logits differ by more than `BOUND`, or if a class differs where its logits do not tie.
    """
    probe = ModelProto()
    probe.CopyFrom(model)
    probe.graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])
    mean, std = trained.reading.mean or None, trained.reading.std or None
    ours = nnx.jit(lambda net, image: net(normalize(image, mean, std)))
    worst, differing, pixels = 0.0, 0, 0
    for image in images(trained):
        expected = np.asarray(ours(trained.net, image))
        result, logits = session.run(None, {"image": image if feed is None else feed(image, trained)})
        scale = max(1.0, float(np.abs(expected).max()))
        worst = max(worst, float(np.abs(logits.transpose(0, 2, 3, 1) - expected).max()) / scale)
        classes = result if result.ndim == 3 else result.argmax(3 if feed is None else 1)
        wrong = classes != expected.argmax(-1)
        first, second = np.sort(expected, axis=-1)[..., :-3:-1].transpose(3, 0, 1, 2)
        clear = wrong & (first - second > 2 * BOUND * scale)
        differing, pixels = differing + int(wrong.sum()), pixels + wrong.size
        if not worst <= BOUND or clear.any():
            what = f"logits differ by {worst:.1e} of the largest one, and {int(wrong.sum())} of {wrong.size:,} classes"
            raise UserError(
                f"onnxruntime {onnxruntime.__version__} computes another result than jaxseg: {what}; the bound is "
                f"{BOUND:.0e}. Nothing was written. Please report it, with the run's config.json."
            )
    return Difference(worst, differing, pixels)


def images(trained: Trained) -> list[Num[np.ndarray, "b h w c"]]:
    """Noise and a ramp with the run's type and channels, of an even and an odd size."""
    rng, least, channels = np.random.default_rng(0), trained.net.least_side, trained.reading.channels
    side, made = -(-64 // least) * least, []
    for height, width in ((side, side + least), (side + 3, side - 1)):
        noise = rng.random((height, width, channels))
        ramp = np.broadcast_to(np.linspace(0, 1, width)[:, None], noise.shape)
        values = np.stack([noise, ramp])
        if trained.reading.dtype == "float32":  # three deviations around the mean
            values = np.array(trained.mean) + np.array(trained.std) * (6 * values - 3)
        made.append((values * trained.full).astype(trained.reading.dtype))
    return made
