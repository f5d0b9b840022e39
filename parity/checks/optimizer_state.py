"""Averaged parameters and the scale of a plateau, a part of the optimizers question (`parity/checks/optimizers.py`).

The average is compared with `torch.optim.swa_utils.AveragedModel` and `get_ema_multi_avg_fn` over 100 steps of Adam.
The scale cuts the learning rate to a tenth twice. Momentum, decoupled decay and the average must follow as in PyTorch.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from jaxseg.learn import optimizers
from parity.judge import compare
from parity.judge.compare import Row

QUESTION = "optimizers"
Arrays = dict[str, np.ndarray]

DECAYS = (0.9, 0.999)
SCALED = {
    "SGD, momentum and decay": (
        lambda rate: optimizers.sgd(rate, momentum=0.9, weight_decay=0.1),
        lambda params: torch.optim.SGD(params, momentum=0.9, weight_decay=0.1),
        0.1,
    ),
    "AdamW, decay": (
        lambda rate: optimizers.adamw(rate, weight_decay=0.3),
        lambda params: torch.optim.AdamW(params, weight_decay=0.3),
        0.01,
    ),
}
"""Cases: jaxseg's optimizer of a rate, PyTorch's of parameters, and the peak of the rate."""


def rows(start: Arrays, grads: Arrays, rates: np.ndarray, looks: tuple[int, ...], gate: float) -> Iterable[Row]:
    """Rows of both parts in float64, and of the average in float32 too.

    start: initial parameters.
    grads: gradients [steps, ...].
    rates: learning rate of each step, relative to the peak.
    looks: steps after which both sides are compared.
    gate: in float64.
    """
    one, scales = np.ones(len(rates)), 0.1 ** (np.arange(len(rates)) // (len(rates) // 3))
    asked = {f"average, decay {decay:g}": (adam_with_average(decay), torch_adam, 0.01, decay, one) for decay in DECAYS}
    asked |= {
        f"{name}, plateau": (with_scale(make), theirs, peak, DECAYS[0], scales)
        for name, (make, theirs, peak) in SCALED.items()
    }
    for name, (make, make_theirs, peak, decay, scale) in asked.items():
        sides = partial(expected, make_theirs, start, grads, peak * rates * scale, decay, looks)
        with jax.enable_x64(True):
            ours = found(make, start, grads, peak * rates, scale, looks, np.float64)
        exact = sides(torch.float64)
        for look in looks:
            yield compare.close(
                QUESTION, f"{name}: step {look}", *(at_step(look, side) for side in (ours, exact)), gate, each=True
            )
        if scale is one:
            with jax.enable_x64(False):
                ours = found(make, start, grads, peak * rates, scale, looks, np.float32)
            yield rounding_row(name, ours, sides(torch.float32), exact)


def rounding_row(name: str, ours: Arrays, theirs: Arrays, exact: Arrays) -> Row:
    """Row for the average in float32: its distance from float64 over PyTorch's own."""
    ours, theirs, exact = (
        {key: x for key, x in side.items() if key.startswith("average")} for side in (ours, theirs, exact)
    )
    distance, baseline = (compare.relative_l2(side, exact) for side in (ours, theirs))
    note = "distance from float64 over PyTorch's own distance from it"
    return compare.envelope(QUESTION, f"{name}: float32", distance, {"PyTorch": baseline}, note=note)


def adam_with_average(decay: float) -> Callable:
    """jaxseg's Adam with an average, as a function of the learning rate."""
    return lambda rate: optax.chain(optimizers.adam(rate), optimizers.average_parameters(decay))


def with_scale(make: Callable) -> Callable:
    """jaxseg's optimizer with a plateau's scale and an average, in the order of `optimizers.optimizer_from`."""
    return lambda rate: optax.chain(make(rate), optimizers.scale_by_plateau(), optimizers.average_parameters(DECAYS[0]))


def torch_adam(params: Iterable[torch.Tensor]) -> torch.optim.Optimizer:
    """PyTorch's Adam."""
    return torch.optim.Adam(params)


def at_step(step: int, looks: Arrays) -> Arrays:
    """Arrays of one step."""
    return {name: array for name, array in looks.items() if name.endswith(f", step {step}")}


def found(
    make: Callable, start: Arrays, grads: Arrays, rates: np.ndarray, scales: np.ndarray, looks: tuple[int, ...], dtype
) -> Arrays:
    """jaxseg's parameters and their average after `looks` steps; scales other than 1 are set before each step."""
    tx, scaled = make(lambda step: jnp.asarray(rates)[step]), bool((scales != 1).any())

    def step(carry, given):
        (params, state), (grads, scale) = carry, given
        state = optax.tree.set(state, rate_scale=scale) if scaled else state
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), {"parameters": params, "average": optax.tree.get(state, "averaged_parameters")}

    @jax.jit
    def program(start, grads):
        return jax.lax.scan(step, (start, tx.init(start)), (grads, jnp.asarray(scales)))[1]

    history = jax.device_get(program(*jax.tree.map(lambda x: jnp.asarray(x, dtype), (start, grads))))
    return {
        f"{part} {name}, step {look}": array[look - 1]
        for part, arrays in history.items()
        for name, array in arrays.items()
        for look in looks
    }


def expected(
    make: Callable,
    start: Arrays,
    grads: Arrays,
    rates: np.ndarray,
    decay: float,
    looks: tuple[int, ...],
    dtype: torch.dtype,
) -> Arrays:
    """PyTorch's parameters and their average after `looks` steps; the average is updated after each step."""
    net = torch.nn.ParameterDict({name: torch.tensor(x, dtype=dtype) for name, x in start.items()})
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(decay))
    optimizer, out = make(net.parameters()), {}
    for step, rate in enumerate(rates, start=1):
        optimizer.param_groups[0]["lr"] = float(rate)
        for name, param in net.items():
            param.grad = torch.tensor(grads[name][step - 1], dtype=dtype)
        optimizer.step()
        average.update_parameters(net)
        if step in looks:
            parts: Mapping[str, Mapping] = {"parameters": net, "average": average.module}
            out |= {
                f"{part} {name}, step {step}": x.detach().numpy().copy()
                for part, of in parts.items()
                for name, x in of.items()
            }
    return out
