"""Layers where a branch changes sides, a part of the layers question (`parity/checks/layers.py`).

- BatchNorm and ReLU, together and one after the other, where the result is exactly 0: no gradient, as in PyTorch.
- BatchNorm of a constant, whose variance is 0.
- Pooling where values are equal or infinite.
"""

from collections.abc import Iterable
from functools import partial

import numpy as np
import torch.nn.functional as F

from parity.judge import compare
from parity.judge.compare import Row
from parity.twins import layer_pairs as pairs
from parity.twins.layer_pairs import Case, normal

QUESTION = "layers"
GATE = 1e-14
CONSTANT = 4.0  # a power of two, as the number of pixels: the mean is exact on both sides


def float64_rows(rng: np.random.Generator) -> Iterable[Row]:
    """Rows for zeros between BatchNorm and ReLU, for a variance of 0, and for infinities in a pool."""
    groups = {
        name: {
            f"{'together' if not plain else 'one after the other'}, {'evaluation' if evaluate else 'training'}": Case(
                partial(pairs.norm_relu, plain=plain, evaluate=evaluate),
                partial(pairs.torch_norm_relu, evaluate=evaluate),
                arguments,
            )
            for plain in (False, True)
            for evaluate in (False, True)
        }
        for name, arguments in {
            "BatchNorm with ReLU where the result is 0": zeros(rng),
            "BatchNorm with ReLU of a constant": constant(rng),
        }.items()
    }
    x = normal(rng, 2, 3, 8, 6)
    x[rng.random(x.shape) < 0.3] = -1e100
    pool = partial(F.max_pool2d, kernel_size=2)
    groups["max-pool of lowest values"] = {"": Case(pairs.max_pool, pool, {"x": np.where(x > 0, x, -1e100)})}
    sides = pairs.both(groups)
    for name, side in sides.items():
        found = side[0]
        share = np.mean([np.mean(y == 0) for key, y in found.items() if key.endswith("y")])
        gate = (
            100 * GATE if "constant" in name else GATE
        )  # PyTorch takes mean and x times the slope, then their difference
        yield compare.close(QUESTION, name, *side, gate, each=True, note=f"{share:.0%} of the results are 0")


def zeros(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Integers that are symmetric about 0 in each channel, so that 0 stays exactly 0 through BatchNorm.

    The pixels of which jaxseg takes an estimate of the mean are 0. The last channels have scale 0, so all of them are.
    """
    half = rng.integers(-2, 3, (2, 4, 8, 8)).astype(float)
    half[:, :, ::4, ::4] = 0
    x = np.concatenate([half, -half])
    scale, bias = rng.uniform(0.5, 2, 4), np.zeros(4)
    scale[1], scale[3] = -1.5, 0
    return {"x": x, "scale": scale, "bias": bias}


def constant(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Channels that are constant, with biases that ReLU lets through, stops, and meets exactly."""
    x = np.full((4, 3, 4, 8), CONSTANT)
    return {"x": x, "scale": rng.uniform(0.5, 2, 3), "bias": np.array([0.7, -0.7, 0.0])}
