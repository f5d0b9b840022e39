"""The devices of a run, in one or several processes: which rows of a batch each has, and how arrays get there."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Int, PyTree

from jaxseg.devices.rows import AXIS

EVERYWHERE, BY_ROWS = P(), P(AXIS)
"""PartitionSpecs of arrays that all devices have, and of those whose rows are divided."""


@dataclasses.dataclass(frozen=True)
class Devices:
    """Devices that share every batch. Each has the whole network and some of the rows.

    - `all`: devices of all processes, those of a process next to each other

    >>> Devices.of(jax.devices()[:1]).count
    1
    """

    all: tuple[jax.Device, ...]

    @classmethod
    def of(cls, devices: Sequence[jax.Device]) -> "Devices":
        """Orders `devices` by process."""
        return cls(tuple(sorted(devices, key=lambda device: (device.process_index, device.id))))

    @property
    def count(self) -> int:
        """Number of devices in all processes."""
        return len(self.all)

    @property
    def processes(self) -> int:
        """Number of processes that have some of the devices."""
        return len({device.process_index for device in self.all})

    @property
    def here(self) -> "Devices":
        """The devices of this process alone."""
        return Devices(tuple(device for device in self.all if device.process_index == jax.process_index()))

    def __str__(self) -> str:
        """Number of devices, and of processes if there are several."""
        what = f"{self.count} device{'s' * (self.count > 1)}"
        return f"{what} in {self.processes} processes" if self.processes > 1 else what

    @property
    def mesh(self) -> Mesh:
        """Mesh with the single axis `AXIS`."""
        return Mesh(np.array(self.all), (AXIS,), axis_types=(AxisType.Auto,))

    def rows(self, batch_size: int, parts: int = 1) -> Int[np.ndarray, " n"]:
        """Returns the positions in the batch of the rows that this process holds; -1 for padding.

        - `batch_size`: samples in the whole batch
        - `parts`: micro-batches, a divisor of `batch_size`; each is divided over all devices

        >>> Devices.of(jax.devices()[:1]).rows(4, parts=2).tolist()
        [0, 1, 2, 3]
        """
        micro = batch_size // parts
        share = -(-micro // self.count)
        at = np.full((parts, self.count * share), -1)
        at[:, :micro] = np.arange(batch_size).reshape(parts, micro)
        mine = [i for i, device in enumerate(self.all) if device.process_index == jax.process_index()]
        return at.reshape(parts, self.count, share)[:, mine].swapaxes(0, 1).reshape(-1)

    def put(self, rows: PyTree) -> PyTree[jax.Array]:
        """Puts rows of this process, in the order of `rows`, on its devices: arrays of the whole batch."""
        return self._placed(rows, BY_ROWS)

    def copy(self, arrays: PyTree) -> PyTree[jax.Array]:
        """Puts arrays, which are equal in all processes, on every device."""
        return self._placed(arrays, EVERYWHERE)

    def fetch(self, rows: jax.Array | np.ndarray) -> np.ndarray:
        """Returns the rows of all devices in their order, in every process; a NumPy array as it is."""
        if self.processes == 1 or isinstance(rows, np.ndarray):
            return np.asarray(rows)
        return multihost_utils.process_allgather(rows, tiled=True)

    def _placed(self, arrays: PyTree, spec: P) -> PyTree[jax.Array]:
        if self.count == 1:
            return jax.device_put(arrays)
        sharding = NamedSharding(self.mesh, spec)

        def one(x: np.ndarray | jax.Array) -> jax.Array:
            there = isinstance(x, jax.Array) and x.sharding == sharding
            return x if there else jax.make_array_from_process_local_data(sharding, np.asarray(x))

        return jax.tree.map(one, arrays)

    def replicate(self, *modules: nnx.Pytree) -> None:
        """Puts the state of models and optimizers on every device."""
        if self.count > 1:
            for module in modules:
                nnx.update(module, self.copy(nnx.state(module)))

    def shared(self, function: Callable, rows: Sequence[bool], out: PyTree) -> Callable:
        """Returns `function`, run on each device by `jax.shard_map`; on a single device `function` itself.

        - `function`: takes trees of arrays; may call `jaxseg.devices.rows`
        - `rows`: for each argument, True if its arrays are divided by rows
        - `out`: PartitionSpec of the results, or a tree of them
        """
        if self.count == 1:
            return function
        inputs = tuple(BY_ROWS if divided else EVERYWHERE for divided in rows)
        return jax.shard_map(function, mesh=self.mesh, in_specs=inputs, out_specs=out, check_vma=False)
