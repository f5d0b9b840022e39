"""Sums over all devices and rows of one's own, for code that runs on each device in `jax.shard_map`.

On a single device, outside `jax.shard_map`, every function returns what it is given.
"""

import jax
from jax import lax
from jaxtyping import Array, PyTree

AXIS = "data"
"""Axis of the mesh over which a batch is divided."""


def count() -> int:
    """Number of devices that share the batch.

    >>> count()
    1
    """
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.shape[AXIS] if AXIS in mesh.manual_axes else 1


def total(x: PyTree[Array]) -> PyTree[Array]:
    """Sums every array of `x` over all devices.

    >>> int(total(jax.numpy.array(3)))
    3
    """
    return lax.psum(x, AXIS) if count() > 1 else x


def gathered(x: Array) -> Array:
    """Concatenates the rows of all devices, in their order.

    >>> gathered(jax.numpy.arange(2)).tolist()
    [0, 1]
    """
    return lax.all_gather(x, AXIS, tiled=True) if count() > 1 else x


def own(x: Array) -> Array:
    """Returns this device's rows of `x`, which has those of all devices in their order.

    >>> own(jax.numpy.arange(2)).tolist()
    [0, 1]
    """
    if count() == 1:
        return x
    rows = len(x) // count()
    return lax.dynamic_slice_in_dim(x, lax.axis_index(AXIS) * rows, rows)
