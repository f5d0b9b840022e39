"""The augmentation question: does every random change do what it says, reach all of its range, and draw for itself?

All goes through `augment_from`, as in a run. What a change has drawn is read off its result: a zoom from two ramps, a
blur from a point, and so on. So the rows do not depend on how the draws are made.

- Formulas in float64: the result against an independent one with the draws that were read off, 1e-10 or less. Zoom
  against PyTorch's `grid_sample`, which does not smooth on the way down; blur against SciPy's `gaussian_filter`.
- Ranges: a Kolmogorov-Smirnov test of each law, and both ends of each range. Every corner of a crop and every flip and
  turn occurs, equally often.
- Independence: no two draws of a step agree, nor do those of two steps, positions in a batch, or seeds. No key of JAX
  is used twice in a step with everything turned on (`parity/checks/draws.py`).

Correct code fails in one run in 10^6 by chance, over all rows. Not seen: the quality of JAX's and NumPy's generators.
"""

from collections.abc import Iterable

import jax
import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage, stats

from jaxseg.base.config import IGNORE_INDEX, Augmentation
from parity.checks import crops, draws
from parity.judge import compare, laws
from parity.judge.answer import Answer, Settings
from parity.judge.compare import Row
from parity.twins.seen import Seen, changed, probe, seen

QUESTION = "augmentation"
FALSE_ALARMS = 1e-6
TESTS = 60
"""More than the number of tests by chance, among which FALSE_ALARMS is shared."""
ALPHA = FALSE_ALARMS / TESTS
MOST = {"zoom": 1.0, "brightness": 0.2, "contrast": 0.4, "noise": 0.1, "blur": 1.5}
SIZE = 24


def run(settings: Settings) -> Answer:
    """Answers the augmentation question. No evidence."""
    rng, samples = np.random.default_rng(settings.seed), 512 if settings.quick else 4096
    with jax.enable_x64(True):
        rows = [*formulas(rng, settings.seed), *ranges(settings.seed, samples)]
    with jax.enable_x64(False):
        rows += [*crops.rows(settings.seed, ALPHA), *draws.rows(settings.seed, ALPHA)]
    return Answer(QUESTION, tuple(rows))


# Formulas -------------------------------------------------------------------------------------------------------------


def formulas(rng: np.random.Generator, seed: int) -> Iterable[Row]:
    """Rows for the result of each change, with the draws read off it."""
    for name, again, gate in (
        ("zoom", zoomed, 1e-10),
        ("blur", blurred, 1e-10),
        ("contrast", contrasted, 1e-13),
        ("brightness", brightened, 1e-13),
    ):
        before = probe(rng, 16, SIZE, SIZE + 4)
        after = changed(Augmentation(flips=False, **{name: MOST[name]}), before, seed)
        what = seen(before, after)
        image, mask = again(before, what)
        found, expected = (
            {"image": side["image"][..., 4:], "mask": side["mask"]} for side in (after, {"image": image, "mask": mask})
        )
        yield compare.close(QUESTION, f"{name}: image", found["image"], expected["image"], gate, note=told(name, what))
        wrong = int((found["mask"] != expected["mask"]).sum())
        yield compare.at_most(QUESTION, f"{name}: mask", wrong, 0, "pixels with another label")
    yield dihedral_row(rng, seed)


def told(name: str, what: Seen) -> str:
    """Range of the draws that were read off."""
    drawn = what.scale if name == "zoom" else getattr(what, name)
    return f"{len(drawn)} samples, draws {drawn.min():.3g} to {drawn.max():.3g}"


def zoomed(before: dict, what: Seen) -> tuple[np.ndarray, np.ndarray]:
    """PyTorch's bilinear samples; outside the mean color, and ignored."""
    image, mask = before["image"], before["mask"]
    _, h, w, _ = image.shape
    rows, columns = ((np.arange(n) + 0.5 - what.shift[:, i, None]) / what.scale[:, None] for i, n in enumerate((h, w)))
    grid = np.stack(np.broadcast_arrays(2 * columns[:, None, :] / w - 1, 2 * rows[:, :, None] / h - 1), -1)

    def sampled(x: np.ndarray, mode: str) -> np.ndarray:
        x, at = torch.tensor(x.transpose(0, 3, 1, 2)), torch.tensor(grid)
        return F.grid_sample(x, at, mode, "border", align_corners=False).permute(0, 2, 3, 1).numpy()

    inside = (np.abs(grid) <= 1).all(-1)
    labels = sampled(mask[..., None].astype(float), "nearest")[..., 0].round().astype(np.uint8)
    outside = image.mean((1, 2), keepdims=True)
    return np.where(inside[..., None], sampled(image, "bilinear"), outside), np.where(inside, labels, IGNORE_INDEX)


def blurred(before: dict, what: Seen) -> tuple[np.ndarray, np.ndarray]:
    """SciPy's Gaussian of the same reach."""
    reach = int(np.ceil(3 * MOST["blur"]))
    filtered = [
        ndimage.gaussian_filter(image, (sigma, sigma, 0), mode="nearest", radius=(reach, reach, 0))
        for image, sigma in zip(before["image"], what.blur)
    ]
    return np.stack(filtered), before["mask"]


def contrasted(before: dict, what: Seen) -> tuple[np.ndarray, np.ndarray]:
    """Distances from a sample's mean over all pixels and channels, times the factor."""
    image = before["image"]
    mean = np.array([one.mean() for one in image])[:, None, None, None]
    return mean + (image - mean) * what.contrast[:, None, None, None], before["mask"]


def brightened(before: dict, what: Seen) -> tuple[np.ndarray, np.ndarray]:
    """A number added to every value."""
    return before["image"] + what.brightness[:, None, None, None], before["mask"]


def dihedral_row(rng: np.random.Generator, seed: int) -> Row:
    """Row for flips and quarter turns: `np.fliplr`, then `np.rot90`, of image and mask alike; halves if not square."""
    found, expected = {}, {}
    for h, w in ((6, 6), (5, 8)):
        before = probe(rng, 32, h, w)
        after = changed(Augmentation(), before, seed)
        what = seen(before, after)
        for name in ("image", "mask"):
            turned = [
                np.rot90(np.fliplr(x) if flip else x, turn) for x, flip, turn in zip(before[name], what.flip, what.turn)
            ]
            found[f"{h}x{w} {name}"], expected[f"{h}x{w} {name}"] = after[name], np.stack(turned)
    return compare.equal_bytes(QUESTION, "flips and turns", found, expected, "64 samples, square and not")


# Ranges ---------------------------------------------------------------------------------------------------------------


def ranges(seed: int, samples: int) -> Iterable[Row]:
    """Rows for the law of every draw, for both ends of its range, and for the values of the noise."""
    rng = np.random.default_rng(seed)
    before = {name: np.repeat(x, samples, 0) for name, x in probe(rng, 1, 16, 16).items()}

    def drawn(**settings: float) -> Seen:
        return seen(before, changed(Augmentation(flips=False, **settings), before, seed))

    zoom, noise = drawn(zoom=MOST["zoom"]), drawn(noise=MOST["noise"])
    units = {  # each uniform from -1 to 1
        "zoom: logarithm of the scale": np.log(zoom.scale) / np.log1p(MOST["zoom"]),
        "zoom: place along the rows": 2 * zoom.place[:, 0] - 1,
        "zoom: place along the columns": 2 * zoom.place[:, 1] - 1,
        "brightness": drawn(brightness=MOST["brightness"]).brightness / MOST["brightness"],
        "contrast": (drawn(contrast=MOST["contrast"]).contrast - 1) / MOST["contrast"],
        "blur: deviation": 2 * drawn(blur=MOST["blur"]).blur / MOST["blur"] - 1,
    }
    for name, unit in units.items():
        unit = unit[np.isfinite(unit)]
        yield laws.kolmogorov_smirnov(QUESTION, f"{name}: law", unit, laws.Uniform(1.0), ALPHA)
        yield from both_ends(name, unit)
    yield from noise_rows(before, noise)
    yield from position_rows(seed, samples)


def both_ends(name: str, unit: np.ndarray) -> Iterable[Row]:
    """Rows for the largest and the smallest of draws from -1 to 1: as near to the ends as uniform draws come."""
    for end, reach in (("end", (1 + unit) / 2), ("beginning", (1 - unit) / 2)):
        yield laws.support(QUESTION, f"{name}: {end} of the range", np.maximum(reach, 0), 1 + 1e-6, ALPHA)


def noise_rows(before: dict, noise: Seen) -> Iterable[Row]:
    """Rows for the deviation of each sample's noise, from its values, and for their law."""
    values, most = noise.residual, MOST["noise"]
    n = values[0].size
    estimate = np.sqrt(np.square(values).mean((1, 2, 3)))
    unit = 2 * estimate / most - 1
    reach = float(estimate.max() / most)
    slack = 6 / np.sqrt(2 * n)  # of the estimate
    figure = 0 if 1 - 20 / len(unit) - slack <= reach <= 1 + slack and estimate.min() < most * 20 / len(unit) else 1
    note = f"deviations {estimate.min():.2g} to {estimate.max():.4g} of {most:g} in {len(unit)} samples"
    yield compare.at_most(QUESTION, "noise: both ends of the deviation", figure, 0, note)
    spread = stats.kstest(unit, lambda x: np.clip((x + 1) / 2, 0, 1)).statistic
    allowed = slack + np.sqrt(-np.log(ALPHA / 2) / 2 / len(unit))
    yield compare.at_most(QUESTION, "noise: law of the deviation", spread, allowed, "largest distance from uniform")
    strong = estimate > most / 10
    standard = values[strong] / estimate[strong][:, None, None, None]
    some = standard[:: max(len(standard) // 64, 1)]
    yield laws.kolmogorov_smirnov(QUESTION, "noise: law of the values", some, laws.Normal(1.0), ALPHA)
    channels = {f"channel {c}": some[..., c] for c in range(some.shape[-1])}
    yield laws.independent(QUESTION, "noise: channels and samples", channels, ALPHA)
    shifted = {"a pixel": some[:, :, ::2], "its neighbor": some[:, :, 1::2]}
    yield laws.independent(QUESTION, "noise: neighbors in a row", shifted, ALPHA)
    shifted = {"a pixel": some[:, ::2], "its neighbor": some[:, 1::2]}
    yield laws.independent(QUESTION, "noise: neighbors in a column", shifted, ALPHA)


def position_rows(seed: int, samples: int) -> Iterable[Row]:
    """Rows for the eight positions of a square, and the four of what is not square: all equally likely."""
    rng = np.random.default_rng(seed)
    for name, (h, w), orders in (("square", (4, 4), 8), ("not square", (4, 5), 4)):
        before = {key: np.repeat(x, samples, 0) for key, x in probe(rng, 1, h, w).items()}
        what = seen(before, changed(Augmentation(), before, seed))
        counts = np.bincount(4 * what.flip + what.turn, minlength=8)
        if orders == 4:
            counts = counts.reshape(2, 4)[:, ::2].ravel()
        p = stats.chisquare(counts).pvalue if counts.sum() == samples else 0.0
        worst = f"{counts.tolist()} of {samples}"
        yield laws.chance(QUESTION, f"flips and turns, {name}: all equally likely", p, ALPHA, worst=worst)
