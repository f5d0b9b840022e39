"""Samples of many sizes in a few shapes, so that nothing is compiled anew for every image."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxseg.base.config import IGNORE_INDEX

Size = tuple[int, int]
"""Height and width."""
MULTIPLE = 32
MOST = 4


@dataclasses.dataclass(frozen=True)
class Window:
    """A part of the image `index`: `size` pixels from `corner` on, placed in `shape`. Without a shape, all of it."""

    index: int
    corner: Size = (0, 0)
    size: Size | None = None
    shape: Size | None = None


def windows(sizes: Sequence[Size], largest: int | None = None) -> list[Window]:
    """Every pixel of images of these sizes exactly once, in windows of a few shapes; none is larger than `largest`."""
    parts = []
    for index, (height, width) in enumerate(sizes):
        step = largest or max(height, width)
        for y in range(0, height, step):
            for x in range(0, width, step):
                parts.append(Window(index, (y, x), (min(step, height - y), min(step, width - x))))
    shapes = buckets([part.size for part in parts])
    return [dataclasses.replace(part, shape=shape) for part, shape in zip(parts, shapes)]


def place(
    sample: dict[str, np.ndarray], shape: Size, corner: Size = (0, 0), size: Size | None = None
) -> dict[str, np.ndarray]:
    """`size` (or `shape`) pixels of a sample {"image" [h w c], "mask" [h w]} from `corner` on, in `shape`.

    What is missing at the bottom and on the right is the image mirrored, so that BatchNorm and the convolutions at the
    border see nothing strange, and labels that are ignored.
    """
    (y, x), (h, w) = corner, size or shape
    image, mask = (sample[name][y : y + h, x : x + w] for name in ("image", "mask"))
    missing = [(0, side - there) for side, there in zip(shape, mask.shape)]
    if any(after for _, after in missing):
        image = np.pad(image, [*missing, (0, 0)], mode="symmetric")
        mask = np.pad(mask, missing, constant_values=IGNORE_INDEX)
    return {"image": image, "mask": mask}


def buckets(sizes: Sequence[Size], most: int = MOST, multiple: int = MULTIPLE) -> list[Size]:
    """For each size the shape in which it is placed: at most `most` of them, multiples of `multiple`.

    The two shapes whose union adds the fewest pixels are joined until there are few enough.
    """
    shapes = {size: tuple(-(-side // multiple) * multiple for side in size) for size in sizes}
    members: dict[Size, list[Size]] = {}
    for size in sizes:
        members.setdefault(shapes[size], []).append(size)

    def added(a: Size, b: Size) -> int:
        union = _union(a, b)
        return sum(len(members[shape]) * (union[0] * union[1] - shape[0] * shape[1]) for shape in (a, b))

    while len(members) > most:
        shapes_now = sorted(members)
        a, b = min(
            ((a, b) for i, a in enumerate(shapes_now) for b in shapes_now[i + 1 :]), key=lambda pair: added(*pair)
        )
        joined = members.pop(a) + members.pop(b)
        members.setdefault(_union(a, b), []).extend(joined)
    final = {size: shape for shape, of in members.items() for size in of}
    return [final[size] for size in sizes]


def _union(a: Size, b: Size) -> Size:
    return max(a[0], b[0]), max(a[1], b[1])
