"""Keeps a whole data set on the device and gathers batches there, without transfers from the host."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Bool

from jaxseg.base.config import IGNORE_INDEX
from jaxseg.data.feed.windows import Size, Window
from jaxseg.devices.mesh import Devices


class Resident:
    """Samples of `windows` on the device, one array per shape.

    `read` decodes windows in order. Loading needs host memory for all samples of one shape. Each of `devices` has all
    samples, and gathers its own rows.
    """

    def __init__(
        self,
        windows: Sequence[Window],
        read: Callable[[Sequence[Window]], Iterable[dict[str, np.ndarray]]],
        devices: Devices,
    ):
        self._devices = devices
        self._rows: dict[Window, int] = {}
        self._arrays: dict[Size | None, tuple[jax.Array, jax.Array]] = {}
        for shape in dict.fromkeys(window.shape for window in windows):
            members = list(dict.fromkeys(window for window in windows if window.shape == shape))
            self._rows |= {window: row for row, window in enumerate(members)}
            self._arrays[shape] = devices.copy(_stacked(len(members), read(members)))

    def batch(
        self,
        held: Bool[np.ndarray, " b"],
        windows: Sequence[Window],
        corners: Sequence[Size] | None = None,
        crop: Size | None = None,
    ) -> dict[str, jax.Array]:
        """Gathers a batch {"image": [b h w c], "mask": [b h w], "valid": bool [b]} on the device.

        - `held`: bool [b], rows of the batch that `windows` fill, in order; the others are padding.
        - `windows`: windows of one shape; if `held` is False everywhere, one that has the shape.
        - `corners`: top and left pixel of each window's crop.
        - `crop`: height and width of the crops; None for whole samples.
        """
        count = int(held.sum())
        rows, places = np.full(len(held), -1, np.int32), np.zeros((len(held), 2), np.int32)
        rows[held] = [self._rows[window] for window in windows[:count]]
        if corners:
            places[held] = corners[:count]
        return _gather(*self._arrays[windows[0].shape], *self._devices.put((rows, places)), crop=crop)


def _stacked(count: int, samples: Iterable[dict[str, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for row, sample in enumerate(samples):
        for name, array in sample.items():
            arrays.setdefault(name, np.empty((count, *array.shape), array.dtype))[row] = array
    return arrays["image"], arrays["mask"]


@partial(jax.jit, static_argnames="crop")
def _gather(image: jax.Array, mask: jax.Array, rows: jax.Array, corners: jax.Array, crop: Size | None):
    """Gathers `rows` of image [n H W c] and mask [n H W]; -1 stands for padding."""
    size = crop or mask.shape[1:]
    zero = jnp.zeros((), corners.dtype)

    def cut(row: jax.Array, corner: jax.Array) -> tuple[jax.Array, jax.Array]:
        at = (row, corner[0], corner[1])
        part = lax.dynamic_slice(image, (*at, zero), (1, *size, image.shape[3]))
        return part[0], lax.dynamic_slice(mask, at, (1, *size))[0]

    images, masks = jax.vmap(cut)(jnp.maximum(rows, 0), corners)
    valid = rows >= 0
    return {
        "image": jnp.where(valid[:, None, None, None], images, 0).astype(image.dtype),
        "mask": jnp.where(valid[:, None, None], masks, IGNORE_INDEX).astype(mask.dtype),
        "valid": valid,
    }
