"""The weights of a model in PyTorch, packed ones also in parts: attention's projections, the gates of recurrent layers.

PyTorch keeps query, key and value in one matrix, and the four gates of an LSTM likewise; twins have one or several.
PyTorch's recurrent layers have two biases; a twin may have their sum.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping

import numpy as np
import torch

from parity.certificate.recorder import Arrays

ATTENTION = ("query", "key", "value")
GATES = {"LSTM": "ifgo", "LSTMCell": "ifgo", "GRU": "rzn", "GRUCell": "rzn", "RNN": "", "RNNCell": ""}
PACKED = re.compile(r"(qkv|query_key_value|c_attn|in_proj)$", re.IGNORECASE)
"""Names of linear layers that hold query, key and value."""
KINDS = (
    (torch.nn.modules.conv._ConvTransposeNd, "transposed convolution"),
    (torch.nn.modules.conv._ConvNd, "convolution"),
    (torch.nn.Linear, "linear"),
    (torch.nn.Embedding, "embedding"),
)


@dataclasses.dataclass(frozen=True)
class Packing:
    """How packed weights are read."""

    split: bool = False
    """One piece a projection or gate."""
    summed: bool = False
    """The two biases of a recurrent layer as their sum, where the twin's formula has one."""


PACKINGS = tuple(Packing(split, summed) for split in (False, True) for summed in (False, True))


@dataclasses.dataclass(frozen=True)
class Piece:
    """A weight of PyTorch's model, a part of one, or the sum of two."""

    names: tuple[str, ...]
    kind: str
    shape: tuple[int, ...]
    role: str
    """"matrix", "scale", "bias", "mean" or "var"."""
    hint: str = ""
    """Projection or gate, such as "query" or "hi"."""
    part: tuple[int, int] = (0, 1)
    """Number of the part, and of how many, along the first axis."""

    @property
    def module(self) -> str:
        """Name of the module that has the weight."""
        return self.names[0].rpartition(".")[0]

    @property
    def label(self) -> str:
        """Name for people, such as `attn.in_proj_weight[query]`."""
        return " + ".join(self.names) + (f"[{self.hint}]" if self.part[1] > 1 else "")

    def of(self, arrays: Mapping[str, np.ndarray], *, mean: bool = False) -> np.ndarray:
        """The piece's values; `mean` for gradients: each of two summed weights has the gradient of the sum."""
        total = sum(self._cut(arrays[name]) for name in self.names)
        return total / len(self.names) if mean else total

    def _cut(self, array: np.ndarray) -> np.ndarray:
        return np.split(array, self.part[1])[self.part[0]] if self.part[1] > 1 else array

    def put(self, value: np.ndarray, into: Arrays) -> None:
        """Writes values into PyTorch's weights; of two summed ones the second becomes 0."""
        for i, name in enumerate(self.names):
            self._cut(into[name])[...] = value if i == 0 else 0


def pieces(model: torch.nn.Module, packing: Packing) -> list[Piece]:
    """Pieces of all weights and running statistics, in the order of definition; tied weights come once."""
    tied = {id(p) for p in model.parameters()}
    found = []
    for name, module in model.named_modules():
        own = {}
        for key, x in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            if id(x) in tied or key in ("running_mean", "running_var"):
                own[key] = x
                tied.discard(id(x))
        for piece in _of(name, module, own, packing):
            names = tuple(f"{name}.{key}" if name else key for key in piece.names)
            found.append(dataclasses.replace(piece, names=names))
    return found


def _of(name: str, module: torch.nn.Module, own: Mapping[str, torch.Tensor], packing: Packing) -> Iterator[Piece]:
    kind = next((word for cls, word in KINDS if isinstance(module, cls)), "other")
    gates = GATES.get(type(module).__name__)
    for key, x in own.items():
        shape, role = tuple(x.shape), _role(key, x.ndim)
        if isinstance(module, torch.nn.MultiheadAttention) and key.startswith("in_proj"):
            yield from _attention(key, shape, role, packing)
        elif gates is not None and key.split("_")[1] in ("ih", "hh"):
            yield from _recurrent(key, shape, role, gates, packing)
        elif isinstance(module, torch.nn.MultiheadAttention) and key[1:] == "_proj_weight":
            hint = next(word for word in ATTENTION if word[0] == key[0])
            yield Piece((key,), "linear", shape, role, hint)
        elif packing.split and kind == "linear" and PACKED.search(name):
            yield from _attention(key, shape, role, packing)
        else:
            yield Piece((key,), kind if x.ndim > 1 else "other", shape, role)


def _attention(key: str, shape: tuple[int, ...], role: str, packing: Packing) -> Iterator[Piece]:
    kind = "linear" if role == "matrix" else "other"
    if not packing.split:
        yield Piece((key,), kind, shape, role)
        return
    for i, hint in enumerate(ATTENTION):
        yield Piece((key,), kind, (shape[0] // 3, *shape[1:]), role, hint, (i, 3))


def _recurrent(key: str, shape: tuple[int, ...], role: str, gates: str, packing: Packing) -> Iterator[Piece]:
    """Pieces of weight_ih, weight_hh, bias_ih or bias_hh of a layer."""
    source, kind = ("i" if "_ih" in key else "h"), ("linear" if role == "matrix" else "other")
    parts = gates if packing.split and gates else [""]
    both = packing.summed and role == "bias"
    for i, gate in enumerate(parts):
        part = (i, len(parts)) if gate else (0, 1)
        size = (shape[0] // len(parts), *shape[1:])
        separate = gate == "n"  # the reset gate of a GRU lies between the two biases
        if both and not separate:
            if source == "h":
                continue  # is in the sum
            hint = ("h" if gates == "ifgo" else "i") + (gate or "h")
            yield Piece((key, key.replace("_ih", "_hh")), kind, size, role, hint, part)
        else:
            yield Piece((key,), kind, size, role, source + (gate or "h"), part)


def _role(key: str, ndim: int) -> str:
    if key.startswith("running_"):
        return key.removeprefix("running_")
    if "bias" in key:
        return "bias"
    return "matrix" if ndim > 1 else "scale"
