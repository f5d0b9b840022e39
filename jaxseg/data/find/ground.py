"""Reads where image tiles lie on the ground: the coordinates of GeoTIFF files, and world files beside other images."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int
from tifffile import TiffFile

SCALE, TIEPOINT, MATRIX = 33550, 33922, 34264  # tags of GeoTIFF
USER_DEFINED = 32767
TOUCH = 1e-3
"""Share of a tile's side below which a gap between two tiles counts as none."""

Boxes = Float[np.ndarray, "_ 4"]
"""Left, lower, right and upper side of each tile, in units of the ground."""


@dataclasses.dataclass(frozen=True)
class Ground:
    """Footprint of an image.

    - `crs`: coordinate reference system, such as "EPSG:32633", or all keys of one without a code; "" if unknown
    - `corners`: x and y of the image's first pixel's corner, then of the ends of the first column and the first row
    """

    crs: str
    corners: tuple[float, float, float, float, float, float]


def read_ground(path: Path, height: int | None = None, width: int | None = None) -> Ground | None:
    """Reads the footprint of an image; None if it has no coordinates, or is unreadable.

    - `height`, `width`: size in pixels; needed for a world file
    """
    transform, crs = None, ""
    if path.suffix.lower() in (".tif", ".tiff"):
        try:
            with TiffFile(path) as file:
                page = file.pages[0]
                height, width, matrix = page.imagelength, page.imagewidth, page.tags.valueof(MATRIX)
                scale, tie, keys = page.tags.valueof(SCALE), page.tags.valueof(TIEPOINT), page.geotiff_tags or {}
        except Exception:  # damage is found and named where pixels are read
            return None
        transform, crs = _transform(matrix, scale, tie), _crs(keys)
    transform = _world_file(path) if transform is None else transform
    if height is None or width is None or transform is None:
        return None
    a, b, c, d, e, f = map(float, transform)
    return Ground(crs, (c, f, c + b * height, f + e * height, c + a * width, f + d * width))


def world_files(image: Path) -> list[Path]:
    """Returns the world files beside an image, such as a.pgw, a.pngw and a.wld beside a.png, in lower or upper case."""
    end = image.suffix.lower()[1:]
    names = (f"{end[0]}{end[-1]}w", f"{end}w", "wld") if end else ()
    files = (image.with_suffix(f".{spelled}") for name in names for spelled in (name, name.upper()))
    return [file for file in files if file.exists()]


def boxes_of(grounds: Sequence[Ground]) -> Boxes:
    """Returns the tiles as boxes along the rows and columns of the first, which may be rotated.

    Raises ValueError unless all have one CRS.
    """
    if len({ground.crs for ground in grounds}) != 1:
        raise ValueError("tiles have several coordinate reference systems")
    first, down, right = np.array(grounds[0].corners).reshape(3, 2)
    axes = np.stack([right - first, down - first], 1)
    turn = np.linalg.inv(axes / np.linalg.norm(axes, axis=0))
    points = np.array([ground.corners for ground in grounds]).reshape(-1, 3, 2)
    points = np.concatenate([points, (points[:, 1] + points[:, 2] - points[:, 0])[:, None]], 1) - first
    points = points @ turn.T
    return np.concatenate([points.min(1), points.max(1)], 1)


def touching(boxes: Boxes, others: Boxes) -> Bool[np.ndarray, " _"]:
    """True for each of `boxes` that touches or overlaps one of `others`."""
    found = np.zeros(len(boxes), bool)
    for near, _ in neighbors(others, boxes):
        found[near] = True
    return found


def neighbors(boxes: Boxes, others: Boxes) -> Iterator[tuple[Int[np.ndarray, " some"], Float[np.ndarray, " some"]]]:
    """Yields, for each of `boxes`, the indices of `others` that touch or overlap it, and the area that each shares."""
    if not len(boxes) or not len(others):
        return
    gap = TOUCH * np.median(boxes[:, 2:] - boxes[:, :2])
    order = np.argsort(others[:, 0], kind="stable")
    left, widest = others[order, 0], (others[:, 2] - others[:, 0]).max()
    for box in boxes:
        first, last = np.searchsorted(left, (box[0] - widest - gap, box[2] + gap))
        near = order[first:last]
        size = np.minimum(others[near, 2:], box[2:]) - np.maximum(others[near, :2], box[:2])
        touch = (size >= -gap).all(1)
        yield near[touch], np.maximum(size[touch], 0).prod(1)


def in_one_crs(grounds: Sequence[Ground]) -> list[Ground]:
    """Returns the footprints in the CRS of the first. Raises ImportError without pyproj, if there are several CRS."""
    wanted = grounds[0].crs
    if all(ground.crs == wanted for ground in grounds):
        return list(grounds)
    from pyproj import Transformer

    turned = {crs: Transformer.from_crs(crs, wanted, always_xy=True) for crs in {g.crs for g in grounds} - {wanted}}
    result = []
    for ground in grounds:
        corners = np.array(ground.corners)
        if ground.crs in turned:
            corners[0::2], corners[1::2] = turned[ground.crs].transform(corners[0::2], corners[1::2])
        result.append(Ground(wanted, tuple(corners.tolist())))
    return result


def _transform(
    matrix: Sequence[float] | None, scale: Sequence[float] | None, tie: Sequence[float] | None
) -> Sequence[float] | None:
    """Coefficients a, b, c, d, e, f of x = a column + b row + c and y = d column + e row + f, by GeoTIFF's tags."""
    if matrix is not None:
        return [*matrix[:2], matrix[3], *matrix[4:6], matrix[7]]
    if scale is None or tie is None or len(tie) != 6:
        return None
    column, row, _, x, y, _ = tie
    return [scale[0], 0.0, x - column * scale[0], 0.0, -scale[1], y + row * scale[1]]


def _crs(keys: Mapping[str, object]) -> str:
    """`Ground.crs` by GeoTIFF's keys."""
    code = keys.get("ProjectedCSTypeGeoKey", keys.get("GeographicTypeGeoKey"))
    if code is None:
        return ""
    if int(code) != USER_DEFINED:
        return f"EPSG:{int(code)}"
    return repr(sorted((k, v) for k, v in keys.items() if not k.startswith(("Model", "Key", "GTRaster"))))


def _world_file(path: Path) -> Sequence[float] | None:
    """Coefficients as of `_transform`, by a file such as a.pgw beside a.png."""
    for file in world_files(path):
        try:
            a, d, b, e, x, y = map(float, file.read_text(encoding="ascii").split())
        except (OSError, ValueError):
            continue
        return [a, b, x - (a + b) / 2, d, e, y - (d + e) / 2]  # it names the middle of the first pixel
    return None
