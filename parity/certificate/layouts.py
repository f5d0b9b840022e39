"""How a weight of PyTorch's lies in the twin: every rearrangement that fits its shape, the likeliest first."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator

import numpy as np

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Layout:
    """A rearrangement of a weight's elements."""

    name: str
    of: Callable[[np.ndarray], np.ndarray]

    def back(self, value: np.ndarray, shape: Shape) -> np.ndarray:
        """PyTorch's weight of `shape` that this layout turns into `value`."""
        places = self.of(np.arange(math.prod(shape)).reshape(shape))
        weight = np.zeros(math.prod(shape), value.dtype)
        weight[places.ravel()] = np.asarray(value).ravel()
        return weight.reshape(shape)


@functools.cache  # a deep model asks for the same shapes again and again
def fitting(kind: str, shape: Shape, target: Shape, flattened: Shape = ()) -> tuple[Layout, ...]:
    """Layouts that turn `shape` into `target`, the likeliest first.

    - `kind`: "convolution", "transposed convolution", "linear", "embedding" or "other"
    - `shape`: of PyTorch's weight
    - `target`: of the twin's weight
    - `flattened`: channels and sizes of the maps that a linear layer gets flattened
    """
    if math.prod(shape) != math.prod(target):
        return ()
    found: list[Layout] = []
    seen: list[np.ndarray] = []
    places = np.arange(math.prod(shape)).reshape(shape)
    for layout in _candidates(kind, shape, target, flattened):
        moved = layout.of(places)
        if moved.shape == target and not any(np.array_equal(moved, other) for other in seen):
            found.append(layout)
            seen.append(moved)
    return tuple(found)


def _candidates(kind: str, shape: Shape, target: Shape, flattened: Shape) -> Iterator[Layout]:
    n = len(shape)
    inner = tuple(range(2, n))
    if kind == "convolution":
        yield Layout(f"{_axes('OI', n)} to {_axes('IO', n, last=True)}", lambda w: w.transpose(*inner, 1, 0))
        if math.prod(shape[2:]) == 1:
            yield Layout("1x1, transposed", lambda w: w.reshape(shape[:2]).T.reshape(target))
    if kind == "transposed convolution":
        before, after = _axes("IO", n), _axes("IO", n, last=True)
        yield Layout(f"{before} to {after}, flipped", lambda w: np.flip(w, inner).transpose(*inner, 0, 1))
        yield Layout(f"{before} to {_axes('OI', n, last=True)}", lambda w: w.transpose(*inner, 1, 0))
        yield Layout(f"{before} to {after}", lambda w: w.transpose(*inner, 0, 1))
    if kind == "linear":
        out = shape[0]
        if flattened:
            axes = (*range(1, len(flattened)), 0, len(flattened))
            yield Layout("transposed", lambda w: w.T.reshape(target))
            yield Layout(
                f"transposed, {'x'.join(map(str, flattened))} inputs with channels last",
                lambda w: w.T.reshape(*flattened, out).transpose(axes).reshape(target),
            )
        elif shape[1] in (target[0], math.prod(target[:-1])) or out in (target[-1], math.prod(target[1:])):
            split = " and reshaped" if len(target) > 2 else ""
            yield Layout(f"transposed{split}", lambda w: w.T.reshape(target))
    yield Layout("as it is", lambda w: w)
    if kind == "embedding" or (kind == "other" and n == 2):
        yield Layout("transposed", lambda w: w.T)
    if kind == "other" and n > 2:
        yield Layout("channels last", lambda w: np.moveaxis(w, 1, -1))
    if [size for size in shape if size > 1] == [size for size in target if size > 1] or n == 1:
        yield Layout("reshaped", lambda w: w.reshape(target))


def _axes(channels: str, n: int, last: bool = False) -> str:
    """Names of the axes of a kernel, such as OIHW."""
    sizes = "DHW"[-(n - 2) :]
    return f"{sizes}{channels}" if last else f"{channels}{sizes}"
