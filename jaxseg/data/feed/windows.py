"""Places images of many sizes in a few shapes, so that few shapes are compiled."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxseg.base.config import IGNORE_INDEX

Size = tuple[int, int]
"""Height and width in pixels."""
MULTIPLE = 32
MOST = 4


@dataclasses.dataclass(frozen=True)
class Window:
    """Part of image `index`: `size` pixels from `corner` (top, left), padded to `shape`; without a shape, all of it."""

    index: int
    corner: Size = (0, 0)
    size: Size | None = None
    shape: Size | None = None


def windows(sizes: Sequence[Size], largest: int | None = None) -> list[Window]:
    """Cuts images of these sizes into windows that cover every pixel once, with sides of at most `largest` pixels.

    Returns them image by image; they are placed in at most `MOST` shapes.
    """
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
    """Cuts a window out of a sample and pads it at the bottom and on the right.

    - `sample`: {"image": [h w c], "mask": [h w]}.
    - `shape`: height and width of the result.
    - `corner`: top and left pixel of the window.
    - `size`: height and width of the window before padding; `shape` if None.

    The image is padded by mirroring, which keeps its statistics for BatchNorm and its look for convolutions at the
    border. The mask is padded with IGNORE_INDEX.
    """
    (y, x), (h, w) = corner, size or shape
    image, mask = (sample[name][y : y + h, x : x + w] for name in ("image", "mask"))
    missing = [(0, side - there) for side, there in zip(shape, mask.shape)]
    if any(after for _, after in missing):
        image = np.pad(image, [*missing, (0, 0)], mode="symmetric")
        mask = np.pad(mask, missing, constant_values=IGNORE_INDEX)
    return {"image": image, "mask": mask}


def buckets(sizes: Sequence[Size], most: int = MOST, multiple: int = MULTIPLE) -> list[Size]:
    """Returns the shape for each size: at most `most` different ones, with sides that are multiples of `multiple`.

    Shapes are merged in pairs, the pair that adds the fewest pixels first.
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
