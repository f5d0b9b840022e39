"""Records the output of every module of a twin while it is called, and changes it where asked.

Modules inside `scan`, `jit` or `remat` are not recorded, but the module that calls them is. A function has no modules;
`named` marks its intermediate values.
"""

import contextvars
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.extend.core import get_opaque_trace_state

Arrays = dict[str, np.ndarray]
"""Arrays by name, such as `blocks.0.fc.kernel`."""


@dataclasses.dataclass(frozen=True)
class Change:
    """Changes to a twin, by the name of the module."""

    attributes: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    """Values of attributes, such as {"norm": {"epsilon": 1e-5}}."""
    outputs: Mapping[str, Callable] = dataclasses.field(default_factory=dict)
    """Functions of the module's output."""


@dataclasses.dataclass(frozen=True)
class Call:
    """Results of one call of a twin."""

    output: Any
    state: dict[str, jax.Array]
    """Running statistics after the call."""
    layers: dict[str, jax.Array]
    """Output of each module in the order of computation; a second call of a module is named `name#2`."""


class Recorder:
    """Notes outputs of modules, adds zeros to them (for their gradients), and applies changes."""

    def __init__(self, added: Mapping[str, jax.Array], change: Change):
        self.added, self.change = added, change
        self.layers: dict[str, jax.Array] = {}
        self.level = get_opaque_trace_state(convention="nnx")

    def __call__(self, name: str, output: Any, last: bool = False) -> Any:
        """Returns the module's output; `last`: the array to note is its last one, as in (carry, y)."""
        if get_opaque_trace_state(convention="nnx") != self.level:
            return output  # inside a scan, whose values cannot leave it
        leaves, tree = jax.tree.flatten(output)
        if not leaves or not isinstance(leaves[-1 if last else 0], jax.Array):
            return output
        place = len(leaves) - 1 if last else 0
        times = sum(key.split("#")[0] == name for key in self.layers)
        key = f"{name}#{times + 1}" if times else name
        array = self.change.outputs.get(name, lambda x: x)(leaves[place])
        self.layers[key] = leaves[place] = array + self.added[key] if key in self.added else array
        return jax.tree.unflatten(tree, leaves)


recorder_in_use: contextvars.ContextVar[Recorder | None] = contextvars.ContextVar("recorder", default=None)


def named(name: str, x: jax.Array) -> jax.Array:
    """Returns `x`; inside `certify` its value and gradient are compared as the output of PyTorch's module `name`.

    For twins that are functions:

    >>> y = named("encoder.fc1", jax.numpy.ones(3))
    """
    recorder = recorder_in_use.get()
    return x if recorder is None else recorder(name, x)
