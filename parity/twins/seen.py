"""What random changes have drawn, read off their results: `changing` makes them, `seen` reads.

A `probe` image has channels that tell. Channel 0 and 1 are ramps along the rows and the columns, 2 is 0, 3 is a point
in the middle, and the others are random.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg.base.config import IGNORE_INDEX, Augmentation
from jaxseg.learn import augment, step
from parity.twins.quickly import QUICKLY

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Seen:
    """Draws of each sample [b]. A value means something only if the change is turned on, alone or as `seen` says."""

    flip: np.ndarray
    turn: np.ndarray
    scale: np.ndarray
    shift: np.ndarray
    """[b 2], pixels."""
    place: np.ndarray
    """[b 2], 0 to 1."""
    contrast: np.ndarray
    brightness: np.ndarray
    blur: np.ndarray
    residual: np.ndarray
    """What was added to each value, [b h w c]."""


def probe(rng: np.random.Generator, b: int, h: int, w: int) -> Arrays:
    """A batch of float64 images [b h w 6] and labels."""
    y, x = np.mgrid[:h, :w].astype(float)
    point = np.zeros((h, w))
    point[h // 2, w // 2] = 1.0
    fixed = np.broadcast_to(np.stack([y, x, 0 * y, point], -1), (b, h, w, 4))
    image = np.concatenate([fixed, rng.random((b, h, w, 2))], -1)
    mask = rng.integers(0, 5, (b, h, w)).astype(np.uint8)
    return {"image": image, "mask": mask}


def changing(settings: Augmentation) -> Callable[[Arrays, int, int], Arrays]:
    """(batch, seed, step) -> the batch after the changes of that step, through `augment_from`."""
    compiled = jax.jit(augment.augment_from(settings, lambda image: image), compiler_options=QUICKLY)
    return lambda batch, seed, number=0: jax.device_get(
        compiled(step.step_key(seed, number), jax.tree.map(jnp.asarray, batch))
    )


def changed(settings: Augmentation, batch: Arrays, seed: int) -> Arrays:
    """The batch after the changes of the first step."""
    return changing(settings)(batch, seed)


def seen(before: Arrays, after: Arrays) -> Seen:
    """Reads draws off: flips and turns, and one of the others, or zoom, contrast and brightness together."""
    old, new = before["image"], after["image"]
    flip, turn = _orientation(new, after["mask"] != IGNORE_INDEX)
    level = new[..., 2].mean((1, 2))
    return Seen(
        flip, turn, *_zoom(new, after["mask"]), _contrast(old, new), level, _blur(new),
        new - old if new.shape == old.shape else new,
    )  # fmt: skip


def _orientation(new: np.ndarray, inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The flip and the turns that give the ramps their directions; of those alike, the first."""
    slopes = _slopes(new[..., :2], inside)
    flip, turn, best = np.zeros(len(new), int), np.zeros(len(new), int), np.full(len(new), -np.inf)
    ramps = np.mgrid[:3, :3].astype(float)
    for f, t in ((f, t) for f in (0, 1) for t in range(4)):
        turned = np.stack([np.rot90(np.fliplr(ramp) if f else ramp, t) for ramp in ramps], -1)
        agreement = (slopes * _slopes(turned[None], np.ones((1, 3, 3), bool))).sum((1, 2))
        better = agreement > best + 1e-6
        flip[better], turn[better], best[better] = f, t, agreement[better]
    return flip, turn


def _slopes(ramps: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Directions [b ramp axis] of two ramps [b h w 2], from the pixels that are `inside`."""
    found = []
    for axis in (1, 2):
        at = np.arange(ramps.shape[axis]).reshape(-1, 1) if axis == 1 else np.arange(ramps.shape[axis])
        at = (
            np.where(inside, at, 0) - inside * (np.where(inside, at, 0).sum((1, 2)) / inside.sum((1, 2)))[:, None, None]
        )
        found.append((at[..., None] * ramps).sum((1, 2)))
    slopes = np.stack(found, -1)
    return slopes / np.abs(slopes).max((1, 2), keepdims=True)


def _zoom(new: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scale, shift and place from the ramps, in the interior of what is inside."""
    b, h, w, _ = new.shape
    scale, shift, place = np.ones(b), np.zeros((b, 2)), np.full((b, 2), np.nan)
    for i in range(b):
        inside = mask[i] != IGNORE_INDEX
        rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
        for axis, (at, n) in enumerate(((rows, h), (columns, w))):
            if len(at) < 4:
                scale[i] = np.nan
                continue
            ramps = new[i, :, columns[len(columns) // 2], :2] if axis == 0 else new[i, rows[len(rows) // 2], :, :2]
            ramp = max(ramps.T, key=lambda values: np.ptp(values[at]))  # the one along this axis
            ramp = n - 1 - ramp if ramp[at[-1]] < ramp[at[0]] else ramp
            here = at[(ramp[at] > 1e-9) & (ramp[at] < n - 1 - 1e-9)]  # not where the border repeats
            if len(here) < 2:
                scale[i] = np.nan
                continue
            first, last = here[0], here[-1]
            scale[i] = (last - first) / (ramp[last] - ramp[first])
            shift[i, axis] = first + 0.5 - (ramp[first] + 0.5) * scale[i]
            if abs(1 - scale[i]) > 0.02:
                place[i, axis] = shift[i, axis] / ((1 - scale[i]) * n)
    return scale, shift, place


def _contrast(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Slope of the ramps' difference, which brightness does not change."""
    a, b = (x[:, -1, -1, 0] - x[:, 0, 0, 0] for x in (old, new))
    return b / a


def _blur(new: np.ndarray) -> np.ndarray:
    """Deviation from the point and its neighbor."""
    h, w = new.shape[1:3]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = new[:, h // 2, w // 2, 3] / new[:, h // 2, w // 2 - 1, 3]
        return np.where(np.isfinite(ratio), np.sqrt(0.5 / np.log(ratio)), 0.0)
