"""The model in PyTorch, step by step, with every module's output and gradient."""

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from parity.certificate.recorder import Arrays

MOMENTS = ("exp_avg", "exp_avg_sq", "momentum_buffer", "square_avg")
"""State of PyTorch's optimizers that is compared."""


@dataclasses.dataclass(frozen=True)
class Step:
    """One training step of either side, as NumPy arrays. Without an optimizer the weights stay as they are."""

    outputs: list[np.ndarray]
    loss: float
    layers: Arrays
    """Outputs of modules, in the order in which they return."""
    layer_gradients: Arrays
    gradients: Arrays
    params: Arrays
    """Weights after the step."""
    state: Arrays
    """Running statistics after the step."""
    moments: dict[str, Arrays]
    """State of the optimizer, by kind."""


class Theirs:
    """PyTorch's side. Dropout is switched off. The model that is given stays as it is."""

    def __init__(self, model: torch.nn.Module, loss: Callable, optimizer: Callable | None, dtype: str = "float64"):
        self.kind = getattr(torch, dtype)
        self.given, self.loss, self.factory = copy.deepcopy(model).to(self.kind), loss, optimizer
        self.start()

    def start(self, weights: Arrays | None = None) -> None:
        """Begins again, from other weights if given."""
        self.model = copy.deepcopy(self.given)
        if weights is not None:
            self.model.load_state_dict({name: torch.from_numpy(x) for name, x in weights.items()}, strict=False)
        self.optimizer = self.factory(self.model.parameters()) if self.factory else None

    def step(self, inputs: tuple, target: Any) -> Step:
        """Takes a step on a batch of NumPy arrays; floating ones get the type of the model."""
        self.model.train().zero_grad()
        with without_dropout(self.model), recording(self.model) as layers:
            output = self.model(*(tensor(x, self.kind) for x in inputs))
            value = self.loss(output, tensor(target, self.kind))
        value.backward()
        named = dict(self.model.named_parameters())
        gradients = {name: array(p.grad) for name, p in named.items() if p.grad is not None}
        if self.optimizer is not None:
            self.optimizer.step()
        kept = self.optimizer.state if self.optimizer is not None else {}
        moments = {
            kind: {name: array(kept[p][kind]) for name, p in named.items() if kept.get(p, {}).get(kind) is not None}
            for kind in MOMENTS
        }
        return Step(
            [array(x) for x in leaves(output)],
            float(value.detach()),
            {name: array(x) for name, x in layers.items()},
            {name: array(x.grad) for name, x in layers.items() if x.grad is not None},
            gradients,
            {name: array(p) for name, p in named.items()},
            statistics(self.model),
            {kind: found for kind, found in moments.items() if found},
        )

    def evaluate(self, inputs: tuple) -> list[np.ndarray]:
        """Outputs in evaluation mode."""
        with torch.no_grad():
            return [array(x) for x in leaves(self.model.eval()(*(tensor(x, self.kind) for x in inputs)))]


def weights(model: torch.nn.Module) -> Arrays:
    """Copies of parameters and running statistics by name."""
    return {name: array(p) for name, p in model.named_parameters()} | statistics(model)


def statistics(model: torch.nn.Module) -> Arrays:
    """Running statistics by name."""
    return {name: array(x) for name, x in model.named_buffers() if name.endswith(("running_mean", "running_var"))}


# Modules --------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def recording(model: torch.nn.Module) -> Iterator[dict[str, torch.Tensor]]:
    """Records the first tensor that each module returns, as tensors that retain their gradients."""
    found: dict[str, torch.Tensor] = {}

    def note(name: str):
        def hook(module, args, output):
            first = next(leaves(output), None)
            if first is None or not first.is_floating_point():
                return None
            times = sum(key.split("#")[0] == name for key in found)
            if first.requires_grad:
                first.retain_grad()
            found[f"{name}#{times + 1}" if times else name] = first
            return replaced(output, first, first.clone())  # the next operation may be in place

        return hook

    hooks = [module.register_forward_hook(note(name)) for name, module in model.named_modules() if name]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def calls(model: torch.nn.Module, inputs: tuple) -> tuple[list[str], dict[str, tuple], dict[str, tuple]]:
    """Modules in the order in which they first return, and the shapes of each one's first input and output."""
    order: list[str] = []
    shapes: tuple[dict, dict] = {}, {}

    def note(name: str):
        def after(module, args, output):
            if name not in order:
                order.append(name)
            for found, tensors in zip(shapes, (args, output)):
                if (first := next(leaves(tensors), None)) is not None:
                    found.setdefault(name, tuple(first.shape))

        return after

    model = copy.deepcopy(model).train()
    for name, module in model.named_modules():
        module.register_forward_hook(note(name))
    kind = next((p.dtype for p in model.parameters()), torch.float64)
    with torch.no_grad(), without_dropout(model):
        model(*(tensor(x, kind) for x in inputs))
    return order, *shapes


@contextlib.contextmanager
def without_dropout(model: torch.nn.Module) -> Iterator[None]:
    """Switches dropout off, also inside attention and recurrent layers."""
    changed = [(module, key, getattr(module, key)) for _, module, key in _dropping(model)]
    try:
        for module, key, _ in changed:
            setattr(module, key, 0.0)
        yield
    finally:
        for module, key, value in changed:
            setattr(module, key, value)


def dropouts(model: torch.nn.Module) -> list[str]:
    """Names of the modules that drop something in training."""
    return [name for name, _, _ in _dropping(model)]


def _dropping(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module, str]]:
    for name, module in model.named_modules():
        key = "p" if isinstance(module, torch.nn.modules.dropout._DropoutNd) else "dropout"
        rate = getattr(module, key, 0)
        if isinstance(rate, int | float) and rate:
            yield name, module, key


# Tensors --------------------------------------------------------------------------------------------------------------


def leaves(tree: Any) -> Iterator[torch.Tensor]:
    """Tensors in nested tuples, lists and dicts."""
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, dict):
        for value in tree.values():
            yield from leaves(value)
    elif isinstance(tree, tuple | list):
        for value in tree:
            yield from leaves(value)


def replaced(tree: Any, old: torch.Tensor, new: torch.Tensor) -> Any:
    """A tree with one of its tensors replaced."""
    if tree is old:
        return new
    if isinstance(tree, dict):
        return type(tree)({key: replaced(value, old, new) for key, value in tree.items()})
    if isinstance(tree, tuple | list):
        items = [replaced(value, old, new) for value in tree]
        return type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items)
    return tree


def tensor(x: Any, kind: torch.dtype) -> Any:
    """Tensor of an array; floating ones become `kind`. None stays None."""
    if x is None:
        return None
    x = torch.from_numpy(np.array(x))
    return x.to(kind) if x.is_floating_point() else x


def array(x: torch.Tensor) -> np.ndarray:
    """Copy of a tensor as a NumPy array."""
    return x.detach().cpu().contiguous().numpy().copy()
