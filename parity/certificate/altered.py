"""A twin with something changed: to try what a difference comes from, and to inject mistakes."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

import flax.linen as nn
import jax
from flax import nnx

from parity.certificate.recorder import Call, Change
from parity.certificate.twins import FunctionTwin, LinenTwin, NNXTwin, Twin


class Altered(Twin):
    """A twin that computes something else.

    - `change`: of modules
    - `weights`: function of the weights by name, applied inside the model, so that gradients change too
    - `statistics`: function of the running statistics before and after a call, both by name
    - `functions`: replacements by name, such as {"gelu": f}, for functions of `jax.nn` and Flax
    """

    def __init__(
        self,
        twin: Twin,
        change: Change | None = None,
        weights: Callable[[dict], dict] | None = None,
        statistics: Callable[[dict, dict], dict] | None = None,
        functions: Mapping[str, Callable] | None = None,
    ):
        self.twin, self.change, self.weights, self.statistics = twin, change, weights, statistics
        self.functions = functions or {}
        self.params, self.state, self.modules, self.kind = twin.params, twin.state, twin.modules, twin.kind

    def attribute(self, name: str, attribute: str) -> Any:
        """Value of a module's attribute; None if it has none."""
        return self.twin.attribute(name, attribute)

    def __call__(self, params, state, inputs, *, train, added=None, change=None) -> Call:
        """Calls the changed twin; arguments as for `Twin.__call__`."""
        given = self.weights(dict(params)) if self.weights else params
        with replaced(self.twin, self.functions):
            found = self.twin(given, state, inputs, train=train, added=added, change=change or self.change)
        self.order = self.twin.order
        if not self.statistics or not train:
            return found
        return Call(found.output, self.statistics(dict(state), dict(found.state)), found.layers)


@contextlib.contextmanager
def replaced(twin: Twin, functions: Mapping[str, Callable]) -> Iterator[None]:
    """Replaces functions where the twin's own modules find them: in `jax.nn`, Flax, and by their imported names."""
    with contextlib.ExitStack() as stack:
        for name, function in functions.items():
            originals = {id(getattr(place, name)) for place in PLACES if hasattr(place, name)}
            for place in (*PLACES, *_sources(twin)):
                for key, value in list(vars(place).items()):
                    if id(value) in originals:
                        stack.enter_context(mock.patch.object(place, key, function))
        yield


PLACES = (jax.nn, jax.image, nnx, nn)


def _sources(twin: Twin) -> list:
    """Python modules in which the twin is written."""
    while isinstance(twin, Altered):
        twin = twin.twin
    if isinstance(twin, NNXTwin):
        names = {cls.__module__ for cls in twin.classes}
    elif isinstance(twin, LinenTwin):
        names = {type(twin.module).__module__}
    elif isinstance(twin, FunctionTwin):
        names = {getattr(twin.function, "__module__", "")}
    return [
        sys.modules[name] for name in sorted(names) if name in sys.modules and not name.startswith(("flax", "jax."))
    ]
