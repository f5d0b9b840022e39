"""Twins in which a known divergence of the two stacks is undone, to try whether it is the cause of a difference."""

import copy
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import torch

from parity.certificate.altered import Altered
from parity.certificate.matching import to_twin
from parity.certificate.pair import Pair
from parity.certificate.recorder import Change
from parity.certificate.theirs import weights

Trial = tuple[str, str, Pair]
"""What is wrong, what was changed, and the pair with that change."""


def changed(pair: Pair, change: Change) -> Pair:
    """The pair with a change in the twin."""
    return dataclasses.replace(pair, twin=Altered(pair.twin, change))


def attributes(pair: Pair) -> Iterator[Trial]:
    """Trials with attributes of PyTorch's modules where the twin's are others: eps and padding."""
    modules = dict(pair.model.named_modules())
    for theirs, ours in dict.fromkeys((m.piece.module, m.leaf.rpartition(".")[0]) for m in pair.matches):
        module, kind = modules[theirs], type(modules[theirs]).__name__
        key = "epsilon" if pair.twin.attribute(ours, "epsilon") is not None else "eps"
        epsilon = pair.twin.attribute(ours, key)
        if epsilon is not None and getattr(module, "eps", epsilon) != epsilon:
            what = f"{theirs}: {kind}: eps, {module.eps:g} against {epsilon:g}"
            yield what, f"{key}={module.eps:g}", changed(pair, Change({ours: {key: module.eps}}))
        padding = pair.twin.attribute(ours, "padding")
        if padding is not None and isinstance(module, torch.nn.modules.conv._ConvNd):
            right = _padding(module)
            if _pads(padding, len(right)) == right:
                continue
            what = f"{theirs}: convolution: padding, {module.padding} against {padding!r}"
            yield what, f"padding={right}", changed(pair, Change({ours: {"padding": right}}))


def _padding(module: torch.nn.modules.conv._ConvNd) -> list[tuple[int, int]]:
    """Padding in Flax's words."""
    if isinstance(module.padding, str):
        return [(k // 2, (k - 1) // 2) for k in module.kernel_size]
    if not module.transposed:
        return [(p, p) for p in module.padding]
    sizes = zip(module.kernel_size, module.padding, module.output_padding, module.dilation)
    return [(d * (k - 1) - p, d * (k - 1) - p + o) for k, p, o, d in sizes]


def _pads(padding: Any, n: int) -> Any:
    """Flax's padding as pairs, or as it is if it is a word."""
    if isinstance(padding, int):
        return [(padding, padding)] * n
    return padding if isinstance(padding, str) else [(p, p) if isinstance(p, int) else tuple(p) for p in padding]


def functions(pair: Pair) -> Iterator[Trial]:
    """Trials with PyTorch's defaults of functions that JAX defines otherwise."""
    gelu, resize = jax.nn.gelu, jax.image.resize
    for approximate, word, other in ((False, "exact", "approximate"), (True, "approximate", "exact")):
        swapped = {"gelu": lambda x, approximate=True, _a=approximate: gelu(x, approximate=_a)}
        yield f"GELU: {word} against {other}", f"approximate={approximate}", _with(pair, swapped)
    plain = {"resize": lambda *a, antialias=True, **k: resize(*a, antialias=False, **k)}
    yield "resize down: antialias, off against on", "antialias=False", _with(pair, plain)


def _with(pair: Pair, functions: dict[str, Callable]) -> Pair:
    return dataclasses.replace(pair, twin=Altered(pair.twin, functions=functions))


def gate_bias(pair: Pair) -> Iterator[Trial]:
    """Trial without the bias that PyTorch's GRU has inside the reset gate, in both models."""
    grus = [m for m in pair.model.modules() if isinstance(m, torch.nn.GRU | torch.nn.GRUCell) and m.bias]
    if not grus or not any(len(match.piece.names) > 1 for match in pair.matches):
        return
    model = copy.deepcopy(pair.model)
    for name, p in model.named_parameters():
        if name.rpartition(".")[2].startswith("bias_hh"):
            p.data[2 * len(p) // 3 :] = 0
    tried = dataclasses.replace(pair, model=model, first=to_twin(pair.matches, weights(model)))
    what = "GRU: the candidate's second bias, inside the reset gate in PyTorch, which nnx.GRUCell does not have"
    yield what, "bias_hn = 0 in both", tried
