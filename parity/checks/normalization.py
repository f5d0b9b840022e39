"""Normalization of images, a part of the layers question (`parity/checks/layers.py`).

Scaling by the dtype's range is equal in every bit. With a mean and a standard deviation the gate is 1 ulp: XLA
multiplies by 1 / std where torchvision's `Normalize` divides, and a product with a rounded inverse is within 1 ulp.
"""

from collections.abc import Iterable

import jax
import numpy as np
import torch

from jaxseg.learn import step
from parity.judge import compare
from parity.judge.compare import Row

QUESTION = "layers"
LARGEST = {"uint8": 255, "uint16": 65535, "int16": 32767}
STATISTICS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "dataset": ((0.31, 0.40, 0.22), (0.11, 0.203, 0.07)),
}


def float32_rows(rng: np.random.Generator) -> Iterable[Row]:
    """Rows for every value of each integer dtype, and for some of float32."""
    values = {name: np.arange(np.iinfo(name).min, np.iinfo(name).max + 1).astype(name) for name in LARGEST}
    values["float32"] = rng.standard_normal(10_000).astype(np.float32)
    scaled = {name: np.asarray(jax.jit(step.normalize)(x)) for name, x in values.items()}
    expected = {
        name: torch.tensor(x.astype(np.float32)).div(LARGEST.get(name, 1)).numpy() for name, x in values.items()
    }
    yield compare.equal_bytes(QUESTION, "images by their type", scaled, expected, note="all values; floats as they are")
    found, wanted = {}, {}
    for name, x in values.items():
        for which, statistics in STATISTICS.items():
            colors = np.stack([x, rng.permutation(x), rng.permutation(x)], -1)[None, None]
            given = torch.tensor(colors.astype(np.float32)).div(LARGEST.get(name, 1))
            mean, std = map(torch.tensor, statistics)
            wanted[f"{name}, {which}"] = given.sub(mean).div(std).numpy()
            found[f"{name}, {which}"] = np.asarray(jax.jit(step.normalize, static_argnums=(1, 2))(colors, *statistics))
    off = np.mean([np.mean(found[name] != wanted[name]) for name in found])
    note = f"in ulps, against torchvision's (x - mean) / std; {off:.0%} of the values differ"
    yield compare.close(QUESTION, "images by mean and deviation", found, wanted, 1, measure=compare.ulps, note=note)
