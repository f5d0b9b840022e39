"""Pixels of an image file, and which of them have no data."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Shaped


@dataclass(frozen=True)
class Pixels:
    """Pixels of an image file."""

    array: Shaped[np.ndarray, "h w c"]
    """[h w c] in the file's own dtype."""
    nodata: float | None
    """GDAL's nodata value, in the file's units; None if the file names none, or has a mask instead."""
    color: bool
    """True for blue, green, red and perhaps alpha; False for bands in the file's order."""
    orientation: int = 1
    """Orientation of EXIF or TIFF, 1 to 8, by which the array was turned upright."""
    mask: Bool[np.ndarray, "h w"] | None = None
    """GDAL's mask, in the file or in a .msk file beside it: True for pixels with data."""

    @property
    def alpha(self) -> int | None:
        """Index of the alpha channel in the array; None if there is none. Signed integers are bands, not alpha."""
        return 3 if self.color and self.array.shape[2] == 4 and self.array.dtype.kind != "i" else None


def find_missing(
    array: Shaped[np.ndarray, "h w c"],
    nodata: float | None,
    alpha: int | None = None,
    mask: Bool[np.ndarray, "h w"] | None = None,
) -> tuple[Bool[np.ndarray, "h w"] | None, Bool[np.ndarray, "h w c"] | None]:
    """Finds what has no data, and returns two things:

    - data mask, bool [h w], or None if all pixels have data. As in GDAL, a pixel has no data where all channels are
      NaN, infinite or `nodata`, or where `mask` is False. `alpha`, a channel's index, is never compared.
    - single values to replace, bool [h w c], or None: they are NaN, infinite, or a `nodata` that is not 0, of a signed
      type. 0 and the values of unsigned types may be measurements.
    """
    values, replaced = None, None
    if array.dtype.kind == "f":
        values = replaced = ~np.isfinite(array)
    if nodata is not None:
        with np.errstate(over="ignore"):
            none = array == (np.float32(nodata) if array.dtype.kind == "f" else nodata)
        if alpha is not None:
            none[..., alpha] = False
        values = none if values is None else values | none
        replaced = values if array.dtype.kind in "fi" and nodata != 0 else replaced
    has_data = mask
    if values is not None and (tested := [c for c in range(array.shape[2]) if c != alpha]):
        some = ~np.logical_and.reduce([values[..., c] for c in tested])
        has_data = some if mask is None else some & mask
    if has_data is not None and has_data.all():
        has_data = None
    return has_data, replaced if replaced is not None and replaced.any() else None
