"""A model, its twin, and all that both need for a step: matched weights, inputs, losses and optimizers."""

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
import torch

from jaxseg.base.errors import ArgumentError
from parity.certificate import theirs
from parity.certificate.losses import LOSSES, OPTIMIZERS, losses_of, optimizers_of
from parity.certificate.matching import Match, Rules, matched, to_torch, to_twin
from parity.certificate.ours import Ours
from parity.certificate.recorder import Arrays
from parity.certificate.theirs import Theirs
from parity.certificate.twins import Twin, twin_of

Batch = tuple[tuple[np.ndarray, ...], Any]
"""Inputs, and the target or None."""


@dataclasses.dataclass(frozen=True)
class Pair:
    """Both sides; `first` is the twin's weights and statistics at the start, in float64."""

    model: torch.nn.Module
    twin: Twin
    matches: list[Match]
    first: Arrays
    batches: list[tuple[Batch, Batch]]
    """For each batch PyTorch's form and the twin's."""
    losses: tuple[Callable, Callable]
    optimizers: tuple[Callable | None, optax.GradientTransformation | None]
    moved: bool
    """True if the twin has channels last where PyTorch has them first."""
    source: str = "torch"
    """Side whose weights both have: "torch" or "twin"."""

    def theirs(self, dtype: str = "float64") -> Theirs:
        """PyTorch's side at its start."""
        return Theirs(self.model, self.losses[0], self.optimizers[0], dtype)

    def ours(self, dtype: str = "float64", *, compiled: bool = True) -> Ours:
        """The twin's side at its start."""
        side = Ours(self.twin, self.losses[1], self.optimizers[1], dtype, compiled=compiled)
        self.restart(side)
        return side

    def restart(self, side: Ours) -> None:
        """Gives the twin its first weights again."""
        names = self.twin.params, self.twin.state
        side.start(*({name: self.first[name] for name in part} for part in names))

    def rematched(self, matches: list[Match]) -> "Pair":
        """The pair with other matches; the weights of the source stay, those of the other side follow."""
        if self.source == "torch":
            return dataclasses.replace(self, matches=matches, first=to_twin(matches, theirs.weights(self.model)))
        model = copy.deepcopy(self.model)
        arrays = to_torch(matches, self.first, theirs.weights(model))
        model.load_state_dict({name: torch.from_numpy(x) for name, x in arrays.items()}, strict=False)
        return dataclasses.replace(self, matches=matches, model=model)

    def batches_of(self, side: int) -> list[Batch]:
        """Batches of PyTorch's side (0) or the twin's (1)."""
        return [both[side] for both in self.batches]

    def named(self, arrays: Mapping[str, np.ndarray], *, mean: bool = False) -> Arrays:
        """PyTorch's arrays by the twin's names and in its layouts."""
        return to_twin(self.matches, arrays, mean=mean)


def pair_of(
    model: torch.nn.Module,
    twin: Any,
    batch: Any,
    loss: Any = None,
    optimizer: Any = None,
    rules: Rules = "auto",
    layout: str = "auto",
    weights_from: str = "torch",
) -> Pair:
    """Pair of a model and its twin with equal weights; arguments as for `certify`, which says what is raised."""
    _check(model, twin, batch, loss, optimizer, layout, weights_from)
    batches = _batches(batch)
    model = copy.deepcopy(model).cpu().double()
    twin = twin_of(twin)
    order, ins, outs = _run_theirs(model, batches[0][0])
    moved, call = _arranged(model, twin, batches[0][0], layout)
    flattened = _flattened(order, ins, outs)
    matches = matched(model, twin, rules, order=(order, twin.order), flattened=flattened)
    expected = [tuple(x.shape) for x in _outputs(model, batches[0][0])]
    found = [tuple(x.shape) for x in jax.tree.leaves(call.output)]
    turned = moved and bool(expected) and found[0] != expected[0]
    fits = [_last_shape(s) if turned else s for s in expected] == found
    both = [(b, (tuple(channels_last(x) if moved else x for x in b[0]), b[1])) for b in batches]
    if turned:
        both = [(b, (o[0], channels_last(o[1], expected[0]))) for b, o in both]
    losses = losses_of(loss if fits else None, turned)
    both_optimizers = optimizers_of(optimizer) if fits else (None, None)
    first = {name: np.asarray(x, np.float64) for name, x in {**twin.params, **twin.state}.items()}
    pair = Pair(model, twin, matches, first, both, losses, both_optimizers, moved, weights_from)
    _try_losses(pair, call.output)
    return pair.rematched(matches)


# Arguments ------------------------------------------------------------------------------------------------------------


def _check(model, twin, batch, loss, optimizer, layout, weights_from) -> None:
    """Raises ArgumentError for all arguments that are wrong."""
    wrong = []
    if not isinstance(model, torch.nn.Module):
        wrong.append(("torch_model", f"is {type(model).__name__}; expected a torch.nn.Module"))
    try:
        twin_of(twin)
    except TypeError as error:
        wrong.append(("twin", f"is wrong: {error}"))
    for name, value, known in (("loss", loss, LOSSES), ("optimizer", optimizer, OPTIMIZERS)):
        named = value[0] if isinstance(value, tuple) and isinstance(value[0], str) else value
        usable = named in known if isinstance(named, str) else value is None or _is_pair(name, value)
        if not usable:
            wrong.append((name, f"is {value!r}; expected a pair (PyTorch's, JAX's) or one of {', '.join(known)}"))
    if optimizer is not None and loss is None:
        wrong.append(("optimizer", "needs a loss"))
    if layout not in ("auto", "same", "channels last"):
        wrong.append(("layout", f'is {layout!r}; expected "auto", "same" or "channels last"'))
    if weights_from not in ("torch", "twin"):
        wrong.append(("weights_from", f'is {weights_from!r}; expected "torch" or "twin"'))
    try:
        _batches(batch)
    except (TypeError, ValueError) as error:
        wrong.append(("batch", f"is wrong: {error}"))
    if wrong:
        raise ArgumentError(wrong)


def _is_pair(name: str, value: Any) -> bool:
    """True for two losses, or for a function that makes PyTorch's optimizer and Optax's."""
    if not isinstance(value, tuple) or len(value) != 2 or not callable(value[0]):
        return False
    return callable(value[1]) if name == "loss" else hasattr(value[1], "update")


def _try_losses(pair: Pair, output: Any) -> None:
    """Raises ArgumentError unless both losses take what the models return; `output` has the twin's shapes."""
    (inputs, target), (_, ours) = pair.batches[0][0], pair.batches[0][1]
    model, kind = copy.deepcopy(pair.model), torch.float64
    wrong = []
    with torch.no_grad(), theirs.without_dropout(model):
        found = model(*(theirs.tensor(x, kind) for x in inputs))
        try:
            pair.losses[0](found, theirs.tensor(target, kind))
        except Exception as error:  # whatever the user's function raises
            wrong.append(("loss", f"of PyTorch fails: {error}"))
    try:
        jax.eval_shape(lambda x: pair.losses[1](x, ours), output)
    except Exception as error:
        wrong.append(("loss", f"of the twin fails: {error}"))
    if wrong:
        raise ArgumentError(wrong)


def _batches(batch: Any) -> list[Batch]:
    """Batches as NumPy arrays. Raises TypeError or ValueError."""
    given = batch if isinstance(batch, list) else [batch]
    if not given:
        raise ValueError("no batch")
    found = []
    for each in given:
        inputs, target = each if isinstance(each, tuple) and len(each) == 2 else (each, None)
        inputs = inputs if isinstance(inputs, tuple) else (inputs,)
        found.append((tuple(map(_numpy, inputs)), None if target is None else _numpy(target)))
    return found


def _numpy(x: Any) -> np.ndarray:
    x = theirs.array(x) if isinstance(x, torch.Tensor) else np.asarray(x)
    if x.dtype.kind not in "fiub":
        raise TypeError(f"found values of {x.dtype}; expected (inputs, target) of arrays, or a list of such pairs")
    return x.astype(np.float64) if x.dtype.kind == "f" else x


# Layouts of inputs and outputs ----------------------------------------------------------------------------------------


def channels_last(x: Any, like: Sequence[int] | None = None) -> Any:
    """An array with axis 1 moved to the end, if it has channels: floating, of 3 axes or more (or shaped `like`)."""
    if x is None or x.ndim < 3 or (like is None and x.dtype.kind != "f") or (like and x.shape != tuple(like)):
        return x
    return np.ascontiguousarray(np.moveaxis(x, 1, -1))


def _last_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[0], *shape[2:], shape[1]) if len(shape) > 2 else shape


def _run_theirs(model: torch.nn.Module, inputs: tuple) -> tuple:
    try:
        return theirs.calls(model, inputs)
    except Exception as error:  # whatever the user's model raises
        shapes = ", ".join(str(x.shape) for x in inputs)
        raise ArgumentError([("batch", f"does not run through the PyTorch model, inputs {shapes}: {error}")]) from error


def _arranged(model: torch.nn.Module, twin: Twin, inputs: tuple, layout: str) -> tuple[bool, Any]:
    """Whether the twin gets channels last, and a trace of its call. Raises ArgumentError if neither runs."""
    spatial = torch.nn.modules.conv._ConvNd | torch.nn.modules.batchnorm._BatchNorm | torch.nn.GroupNorm
    convolves = any(isinstance(module, spatial) for module in model.modules())
    likely = [True, False] if convolves else [False, True]
    ways = {"auto": likely, "same": [False], "channels last": [True]}[layout]
    errors = []
    for moved in ways:
        given = tuple(channels_last(x) if moved else x for x in inputs)
        try:
            traced = jax.eval_shape(
                lambda params, state, x: vars(twin(params, state, x, train=True)), *_wide(twin, given)
            )
        except Exception as error:  # whatever the user's model raises
            errors.append((", ".join(str(x.shape) for x in given), error))
            continue
        return moved, type("Traced", (), traced)
    shapes, error = errors[0]
    raise ArgumentError([("twin", f"does not run on inputs {shapes}: {error}")]) from error


def _wide(twin: Twin, inputs: tuple) -> tuple:
    def arrays(found):
        return {name: np.asarray(x, np.float64) for name, x in found.items()}

    return arrays(twin.params), arrays(twin.state), inputs


def _outputs(model: torch.nn.Module, inputs: tuple) -> list[torch.Tensor]:
    with torch.no_grad(), theirs.without_dropout(model):
        kind = next((p.dtype for p in model.parameters()), torch.float64)
        return list(theirs.leaves(copy.deepcopy(model)(*(theirs.tensor(x, kind) for x in inputs))))


def _flattened(order: list[str], ins: Mapping[str, tuple], outs: Mapping[str, tuple]) -> dict[str, tuple[int, ...]]:
    """Channels and sizes of the maps that a module gets flattened, by the module's name."""
    found, before = {}, ()
    for name in order:
        shape = ins.get(name, ())
        if len(shape) == 2 and len(before) > 2 and int(np.prod(before[1:])) == shape[1]:
            found[name] = before[1:]
        before = outs[name] if len(outs.get(name, ())) > 2 else before
    return found
