"""The twin, step by step, with every module's output and gradient."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from parity.certificate.recorder import Arrays
from parity.certificate.theirs import Step
from parity.certificate.twins import Twin
from parity.twins.quickly import UNOPTIMIZED

MOMENTS = {"mu": "exp_avg", "nu": "exp_avg_sq", "trace": "momentum_buffer"}
"""Optax's names of state -> PyTorch's; RMSprop's "nu" is PyTorch's "square_avg"."""


class Ours:
    """JAX's side. The optimizer gets the parameters as a flat dict by name."""

    def __init__(
        self,
        twin: Twin,
        loss: Callable,
        tx: optax.GradientTransformation | None,
        dtype: str = "float64",
        *,
        compiled: bool = True,
    ):
        self.twin, self.loss, self.tx, self.dtype = twin, loss, tx or optax.set_to_zero(), dtype
        self.shapes: dict[str, jax.ShapeDtypeStruct] | None = None
        self.compute = jax.jit(self._compute, compiler_options=UNOPTIMIZED) if compiled else self._compute
        self.forward = partial(jax.jit, compiler_options=UNOPTIMIZED)(self._forward) if compiled else self._forward

    def start(self, params: Arrays, state: Arrays) -> None:
        """Begins from weights and running statistics by name."""
        self.params, self.state = self._typed(params), self._typed(state)
        self.optimizer = self.tx.init(self.params)

    def step(self, inputs: tuple, target: Any) -> Step:
        """Takes a step on a batch of NumPy arrays; floating ones get the type of the weights."""
        batch = tuple(self._array(x) for x in inputs), self._array(target)
        found = self.compute(self.params, self.state, self.optimizer, *batch)
        self.params, self.state, self.optimizer, *seen = found
        outputs, loss, layers, layer_gradients, gradients = jax.device_get(seen)
        return Step(
            outputs,
            float(loss),
            {name: layers[name] for name in self.twin.order},
            layer_gradients,
            gradients,
            jax.device_get(self.params),
            jax.device_get(self.state),
            moments(self.optimizer),
        )

    def evaluate(self, inputs: tuple) -> list[np.ndarray]:
        """Outputs in evaluation mode."""
        return jax.device_get(self.forward(self.params, self.state, tuple(self._array(x) for x in inputs)))

    def _forward(self, params, state, inputs):
        return jax.tree.leaves(self.twin(params, state, inputs, train=False).output)

    def _compute(self, params, state, optimizer, inputs, target):
        def forward(params, added):
            call = self.twin(params, state, inputs, train=True, added=added)
            return self.loss(call.output, target), call

        if self.shapes is None:
            self.shapes = jax.eval_shape(lambda params: vars(forward(params, {})[1]), params)["layers"]
        kinds = {name: x for name, x in self.shapes.items() if jnp.issubdtype(x.dtype, jnp.floating)}
        added = {name: jnp.zeros(x.shape, x.dtype) for name, x in kinds.items()}

        def differentiable(params, added):
            value, call = forward(params, added)
            return value, (jax.tree.leaves(call.output), call.state, call.layers)

        gradient = jax.value_and_grad(differentiable, (0, 1), has_aux=True)
        (value, (outputs, state, layers)), (gradients, layer_gradients) = gradient(params, added)
        updates, optimizer = self.tx.update(gradients, optimizer, params)
        params = optax.apply_updates(params, updates)
        return params, state, optimizer, outputs, value, layers, layer_gradients, gradients

    def _typed(self, arrays: Arrays) -> dict[str, jax.Array]:
        return {name: self._array(x) for name, x in arrays.items()}

    def _array(self, x: Any) -> Any:
        if x is None:
            return None
        x = np.asarray(x)
        return jnp.asarray(x.astype(self.dtype) if np.issubdtype(x.dtype, np.floating) else x)


def moments(state: Any) -> dict[str, Arrays]:
    """Moments in an optimizer's state, by PyTorch's name of the kind and the twin's names of weights."""
    found: dict[str, Arrays] = {}
    for path, x in jax.tree_util.tree_flatten_with_path(state)[0]:
        keys = [getattr(key, "name", None) for key in path]
        kind = next((MOMENTS[key] for key in keys if key in MOMENTS), None)
        if kind is not None and isinstance(path[-1], jax.tree_util.DictKey):
            found.setdefault(kind, {})[path[-1].key] = np.asarray(x)
    return found
