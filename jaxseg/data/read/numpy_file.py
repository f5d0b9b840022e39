"""Reads arrays that NumPy saved, .npy files."""

import io
import math

import numpy as np

from jaxseg.data.read.decode import Unreadable
from jaxseg.data.read.pixels import Pixels

MAGIC = b"\x93NUMPY"


def read(data: bytes, indices: bool = False) -> Pixels:
    """Reads an array [h w] or [h w c] as bands in the file's order; `indices` changes nothing. Raises Unreadable."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = header(file)
    if dtype.kind not in "buif":
        raise Unreadable(f"holds {dtype}; expected integers or floats")
    if len(shape) not in (2, 3) or 0 in shape:
        raise Unreadable(f"has shape {shape}; expected height x width, or height x width x channels")
    if len(shape) == 3 and shape[0] < min(shape[1:]):
        raise Unreadable(f"has shape {shape}; expected the channels last: save np.moveaxis(array, 0, -1)")
    if math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        raise Unreadable(f"is cut off or damaged: {len(data) - file.tell()} bytes cannot hold {shape} of {dtype}")
    array = np.load(io.BytesIO(data), allow_pickle=False)
    array = np.atleast_3d(array.view(np.uint8) if dtype.kind == "b" else array)
    return Pixels(np.ascontiguousarray(array, array.dtype.newbyteorder("=")), None, color=False)


def palette(data: bytes) -> None:
    """Returns None: an array has no palette."""
