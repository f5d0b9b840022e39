"""The twin in JAX as a function of flat dicts of arrays, whether it is an NNX module, a Linen module or a function."""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from parity.certificate.recorder import Arrays, Call, Change, Recorder, recorder_in_use


class Twin:
    """A twin; `params` and `state` hold its arrays, `modules` the class of each module by name."""

    params: Arrays
    state: Arrays
    modules: dict[str, str]
    kind: str
    order: tuple[str, ...] = ()
    """Modules in the order in which they returned in the last call; jitted functions lose the order of dicts."""

    def call(self, params, state, inputs, train: bool, recorder: Recorder) -> tuple[Any, dict]:
        """Output and new state of a call."""
        raise NotImplementedError

    def attribute(self, name: str, attribute: str) -> Any:
        """Value of a module's attribute; None if it has none."""
        return None

    def __call__(
        self,
        params: Mapping[str, jax.Array],
        state: Mapping[str, jax.Array],
        inputs: tuple,
        *,
        train: bool,
        added: Mapping[str, jax.Array] | None = None,
        change: Change | None = None,
    ) -> Call:
        """Calls the twin without dropout.

        - `params`, `state`: arrays by name; where they are float64, modules that are pinned to float32 are not
        - `inputs`: positional arguments
        - `train`: whether normalization uses the batch and moves its running statistics
        - `added`: zeros to add to outputs of modules
        - `change`: changes to its modules
        """
        recorder = Recorder(added or {}, change or Change())
        token = recorder_in_use.set(recorder)
        attention = _attention if _wide(params) else jax.nn.dot_product_attention
        try:
            with mock.patch.object(jax.nn, "dot_product_attention", attention):
                output, state = self.call(params, state, inputs, train, recorder)
        finally:
            recorder_in_use.reset(token)
        self.order = tuple(recorder.layers)
        return Call(output, state, recorder.layers)


class NNXTwin(Twin):
    """A Flax NNX module."""

    kind = "Flax NNX module"

    def __init__(self, module: nnx.Module):
        self.parts = nnx.split(module)
        self.params, self.state, self.modules, self._attributes = {}, {}, {}, {}
        self.classes: set[type] = set()
        for path, node in nnx.iter_graph(module):
            if isinstance(node, nnx.Param):
                self.params[_dotted(path)] = np.asarray(node[...])
            elif isinstance(node, nnx.BatchStat):
                self.state[_dotted(path)] = np.asarray(node[...])
            elif isinstance(node, nnx.Module):
                self.classes.add(type(node))
                self.modules[_dotted(path)] = type(node).__name__
                self._attributes[_dotted(path)] = dict(vars(node))
        self.train = tuple(_takes(type(module).__call__))

    def attribute(self, name: str, attribute: str) -> Any:
        """Value of a module's attribute; None if it has none."""
        return self._attributes.get(name, {}).get(attribute)

    def call(self, params, state, inputs, train, recorder):
        """Output and new state of a call."""
        module = nnx.merge(*self.parts, copy=True)
        arrays, variables, paths = {**params, **state}, {}, {}
        for path, node in nnx.iter_graph(module):
            if isinstance(node, nnx.Param | nnx.BatchStat):
                node.set_value(jnp.asarray(arrays[_dotted(path)]))
                variables[_dotted(path)] = node
            elif isinstance(node, nnx.Module):
                paths[id(node)] = (node, _dotted(path))
        module.train() if train else module.eval()
        for node, name in paths.values():
            for key, value in {**_settings(node, _wide(params)), **recorder.change.attributes.get(name, {})}.items():
                setattr(node, key, value)
        with _hooked({type(node) for node, _ in paths.values()}, paths, recorder):
            output = module(*inputs, **_flags(self.train, train))
        return output, {name: variables[name].get_value() for name in self.state}


class LinenTwin(Twin):
    """A Flax Linen module with its variables."""

    kind = "Flax Linen module"

    def __init__(self, module: nn.Module, variables: Mapping):
        self.module, self.modules, self._attributes = module, {}, {}
        collections = {name: _flat(tree) for name, tree in variables.items()}
        self.params = collections.pop("params", {})
        self._of = {name: collection for collection, arrays in collections.items() for name in arrays}
        self.state = {name: x for arrays in collections.values() for name, x in arrays.items()}
        self.train = tuple(_takes(type(module).__call__))

    def attribute(self, name: str, attribute: str) -> Any:
        """Value of a module's attribute; None if it has none."""
        return self._attributes.get(name, {}).get(attribute)

    def call(self, params, state, inputs, train, recorder):
        """Output and new state of a call."""

        def intercept(function, args, kwargs, context):
            module, name = context.module, _dotted(context.module.path)
            if context.method_name != "__call__":
                return function(*args, **kwargs)
            if isinstance(module, nn.Dropout):
                return args[0]
            self.modules[name] = type(module).__name__
            self._attributes.setdefault(name, dict(vars(module)))
            changes = recorder.change.attributes.get(name, {})
            for part in (module, *(part for part in vars(module).values() if isinstance(part, nn.Module))):
                for key, value in {**_settings(part, _wide(params)), **(changes if part is module else {})}.items():
                    object.__setattr__(part, key, value)  # Linen's modules are frozen; these live for the call
            return recorder(name, function(*args, **kwargs), _carries(module))

        variables = {"params": _nested(params)}
        for collection in set(self._of.values()):
            variables[collection] = _nested({n: x for n, x in state.items() if self._of[n] == collection})
        mutable = sorted(set(self._of.values())) if train else []
        with nn.intercept_methods(intercept):
            output, updated = self.module.apply(variables, *inputs, mutable=mutable, **_flags(self.train, train))
        updated = {name: x for tree in updated.values() for name, x in _flat(tree).items()}
        return output, {**state, **updated}


class FunctionTwin(Twin):
    """A function of (params, *inputs), with a pytree of parameters."""

    kind = "function"

    def __init__(self, function: Callable, params: Any):
        self.function, self.modules, self.state = function, {}, {}
        self.params = _flat(params)
        self.tree = jax.tree.structure(params)
        numbered = jax.tree.unflatten(self.tree, range(self.tree.num_leaves))
        self.places = {name: int(i) for name, i in _flat(numbered).items()}
        self.train = tuple(_takes(function))

    def call(self, params, state, inputs, train, recorder):
        """Output and new state of a call."""
        names = sorted(self.places, key=self.places.__getitem__)
        tree = jax.tree.unflatten(self.tree, [params[name] for name in names])
        return self.function(tree, *inputs, **_flags(self.train, train)), {}


def twin_of(given: Any) -> Twin:
    """Twin of an NNX module, a pair (Linen module, variables) or a pair (function, params). Raises TypeError."""
    if isinstance(given, nnx.Module):
        return NNXTwin(given)
    if isinstance(given, tuple) and len(given) == 2:
        if isinstance(given[0], nn.Module):
            return LinenTwin(*given)
        if callable(given[0]):
            return FunctionTwin(*given)
    raise TypeError(
        f"found {type(given).__name__}; expected an nnx.Module, (linen_module, variables) or (function, params)"
    )


# Parts ----------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _hooked(classes: set[type], paths: Mapping[int, tuple], recorder: Recorder) -> Iterator[None]:
    """Records what modules of `paths`, by id, return from `__call__`."""

    def wrapped(call):
        def run(self, *args, **kwargs):
            output = call(self, *args, **kwargs)
            known = paths.get(id(self))
            return output if known is None else recorder(known[1], output, _carries(self))

        return run

    with contextlib.ExitStack() as stack:
        for kind in (kind for kind in classes if "__call__" in vars(kind)):
            stack.enter_context(mock.patch.object(kind, "__call__", wrapped(vars(kind)["__call__"])))
        yield


def _carries(module: Any) -> bool:
    """True if a module returns (carry, output)."""
    return hasattr(module, "initialize_carry") or type(module).__name__ == "RNN"


def _settings(module: Any, wide: bool) -> dict[str, Any]:
    """Attributes that switch dropout off and, if `wide`, let a module pinned to float32 compute in float64."""
    found = {"dropout_rate": 0.0} if getattr(module, "dropout_rate", None) else {}
    if isinstance(module, nnx.Dropout) or (found and hasattr(module, "deterministic")):
        found["deterministic"] = True
    for key in ("dtype", "param_dtype") if wide else ():
        if getattr(module, key, None) is not None and jnp.dtype(getattr(module, key)) == jnp.float32:
            found[key] = jnp.float64
    if wide and getattr(module, "force_float32_reductions", False):
        found["force_float32_reductions"] = False
    return found


def _attention(query, key, value, bias=None, mask=None, *, scale=None, is_causal=False, **_):
    """`jax.nn.dot_product_attention`, which takes its softmax in float32, in the type of its arguments."""
    groups = query.shape[-2] // key.shape[-2]
    key, value = (jnp.repeat(x, groups, axis=-2) for x in (key, value))
    logits = jnp.einsum("...qhd,...khd->...hqk", query, key) * (query.shape[-1] ** -0.5 if scale is None else scale)
    logits = logits if bias is None else logits + bias
    allowed = jnp.tril(jnp.ones(logits.shape[-2:], bool)) if is_causal else jnp.ones(logits.shape[-2:], bool)
    allowed = allowed.reshape((1,) * (logits.ndim - 2) + allowed.shape)
    allowed = allowed if mask is None else allowed & mask
    logits = jnp.where(allowed, logits, jnp.finfo(logits.dtype).min)
    return jnp.einsum("...hqk,...khd->...qhd", jax.nn.softmax(logits), value)


def _wide(arrays: Mapping[str, jax.Array]) -> bool:
    return any(x.dtype == jnp.float64 for x in arrays.values())


def _takes(call: Callable) -> Iterator[str]:
    """Names of the arguments by which a model is told whether it trains."""
    known = ("train", "training", "is_training", "deterministic", "use_running_average")
    return (name for name in inspect.signature(call).parameters if name in known)


def _flags(names: tuple[str, ...], train: bool) -> dict[str, bool]:
    values = {"deterministic": True, "use_running_average": not train}
    return {name: values.get(name, train) for name in names}


def _dotted(path: tuple) -> str:
    return ".".join(map(str, path))


def _flat(tree: Any, path: tuple = ()) -> Arrays:
    """Leaves of nested dicts, lists and tuples by dotted name, in the order in which they were put there."""
    if isinstance(tree, Mapping):
        items = tree.items()
    elif isinstance(tree, list | tuple):
        items = enumerate(tree)
    else:
        return {_dotted(path): tree if isinstance(tree, jax.Array) else np.asarray(tree)}
    return {name: leaf for key, value in items for name, leaf in _flat(value, path=(*path, key)).items()}


def _nested(arrays: Mapping[str, Any]) -> dict:
    tree: dict = {}
    for name, array in arrays.items():
        *path, leaf = name.split(".")
        node = tree
        for key in path:
            node = node.setdefault(key, {})
        node[leaf] = array
    return tree
