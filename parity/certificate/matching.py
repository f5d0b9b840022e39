"""Which weight of PyTorch's model is which of the twin's: by shape, role, order of computation and name.

Every weight gets a place, or `MatchError` lists all that have none, with the closest candidates and what to write.
"""

import dataclasses
import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from jaxseg.base.errors import UserError
from parity.certificate.layouts import Layout, fitting
from parity.certificate.pieces import PACKINGS, Piece, pieces
from parity.certificate.recorder import Arrays
from parity.certificate.twins import Twin

Rules = str | Mapping[str, Any] | Sequence[tuple]
GROUPS = {
    "query": {"query", "q", "q_proj", "wq", "to_q"},
    "key": {"key", "k", "k_proj", "wk", "to_k"},
    "value": {"value", "v", "v_proj", "wv", "to_v"},
    "out": {"out", "out_proj", "o_proj", "wo", "to_out"},
    "ih": {"ih", "dense_i", "weight_ih", "bias_ih", "w_ih", "b_ih", "wi", "bi", "i2h"},
    "hh": {"hh", "dense_h", "weight_hh", "bias_hh", "w_hh", "b_hh", "wh", "bh", "h2h"},
} | {source + gate: {source + gate, f"{source}{gate}_"} for source in "ih" for gate in "ifgorzn"}
ROLES = {
    "mean": ("mean", "running_mean"),
    "var": ("var", "running_var"),
    "bias": ("bias", "b", "beta", "bias_ih", "bias_hh", "b_ih", "b_hh"),
    "scale": ("scale", "gamma", "g"),
}
IMPOSSIBLE = 1e6


class MatchError(UserError):
    """Weights without a counterpart; the message names all of them."""


@dataclasses.dataclass(frozen=True)
class Match:
    """A weight of the twin and what it is in PyTorch."""

    piece: Piece
    leaf: str
    """Name in the twin."""
    shape: tuple[int, ...]
    """In the twin."""
    layout: Layout
    others: tuple[Layout, ...] = ()
    """Layouts that fit the shape as well."""
    by: str = "auto"
    """"auto", "rule", or "outputs" if outputs decided between layouts."""

    def of(self, weights: Mapping[str, np.ndarray], *, mean: bool = False) -> np.ndarray:
        """PyTorch's values as the twin has them; `mean` for gradients (see `Piece.of`)."""
        return self.layout.of(self.piece.of(weights, mean=mean))


def to_twin(matches: Iterable[Match], weights: Mapping[str, np.ndarray], *, mean: bool = False) -> Arrays:
    """PyTorch's arrays by the twin's names, where PyTorch has them."""
    found = {}
    for match in matches:
        if all(name in weights for name in match.piece.names):
            found[match.leaf] = np.ascontiguousarray(match.of(weights, mean=mean))
    return found


def to_torch(matches: Iterable[Match], arrays: Mapping[str, np.ndarray], weights: Arrays) -> Arrays:
    """The twin's arrays by PyTorch's names; what the twin does not have is taken from `weights`."""
    found = {name: np.array(x) for name, x in weights.items()}
    for match in matches:
        match.piece.put(match.layout.back(arrays[match.leaf], match.piece.shape), found)
    return found


def matched(
    model: torch.nn.Module,
    twin: Twin,
    rules: Rules = "auto",
    *,
    order: tuple[Sequence[str], Sequence[str]] = ((), ()),
    flattened: Mapping[str, tuple[int, ...]] | None = None,
) -> list[Match]:
    """A match for every weight and statistic of the twin. Raises MatchError.

    - `rules`: "auto", or a dict or list of (regular expression of PyTorch's name, name in the twin), or with a third
      item, a function or an order of axes that turns PyTorch's array into the twin's. A name of None leaves the weight
      out. Weights without a rule are matched automatically
    - `order`: modules of both sides in the order of computation
    - `flattened`: channels and sizes of the maps that a linear layer gets flattened, by PyTorch's name
    """
    shapes = {name: np.shape(x) for name, x in {**twin.params, **twin.state}.items()}
    tries = []
    for packing in PACKINGS:
        found, lost = _ruled(pieces(model, packing), shapes, _listed(rules))
        taken = {match.leaf for match in found}
        free = {name: shape for name, shape in shapes.items() if name not in taken}
        costs, fits = _costs(lost, free, twin, order, flattened or {})
        for i, j in zip(*linear_sum_assignment(costs)):
            if costs[i, j] < IMPOSSIBLE:
                leaf = list(free)[j]
                layout, *others = fits[i, j]
                found.append(Match(lost[i], leaf, free[leaf], layout, tuple(others)))
        total = float(np.sum([costs[i, j] for i, j in zip(*linear_sum_assignment(costs)) if costs[i, j] < IMPOSSIBLE]))
        taken = {match.piece for match in found}
        left = [piece for piece in lost if piece not in taken]
        empty = [name for name in shapes if name not in {match.leaf for match in found}]
        tries.append((len(left) + len(empty), total, found, left, empty))
    _, _, found, left, empty = min(tries, key=lambda t: t[:2])
    if left or empty:
        raise MatchError(_complaint(found, left, {name: shapes[name] for name in empty}))
    places = {name: i for i, name in enumerate(shapes)}
    return sorted(found, key=lambda match: places[match.leaf])


# Rules ----------------------------------------------------------------------------------------------------------------


def _listed(rules: Rules) -> list[tuple[str, str | None, Any]]:
    if isinstance(rules, str):
        if rules != "auto":
            raise UserError(f'`rules` is {rules!r}; expected "auto", a dict or a list of (expression, name, transform)')
        return []
    items = rules.items() if isinstance(rules, Mapping) else rules
    listed = []
    for pattern, *rest in items:
        rest = list(rest[0]) if len(rest) == 1 and isinstance(rest[0], tuple) else rest
        listed.append((pattern, rest[0], rest[1] if len(rest) > 1 else None))
    return listed


def _ruled(
    found: list[Piece], shapes: Mapping[str, tuple[int, ...]], rules: list[tuple[str, str | None, Any]]
) -> tuple[list[Match], list[Piece]]:
    """Matches by rules, and pieces without one. Raises MatchError for rules that do not fit."""
    matches, rest, wrong = [], [], []
    for piece in found:
        rule = next((rule for rule in rules if re.search(rule[0], piece.label)), None)
        if rule is None:
            rest.append(piece)
            continue
        pattern, name, transform = rule
        if name is None:
            continue
        leaf = re.match(f".*?(?:{pattern})", piece.label).expand(name)
        if leaf not in shapes:
            close = difflib.get_close_matches(leaf, shapes, 3, 0.3)
            wrong.append(f"rule {pattern!r}: the twin has no {leaf!r}; {', '.join(close)} are close")
            continue
        layouts = (_given(transform),) if transform else fitting(piece.kind, piece.shape, shapes[leaf])
        layouts = [x for x in layouts if x.of(np.zeros(piece.shape)).shape == shapes[leaf]]
        if not layouts:
            wrong.append(f"rule {pattern!r}: {piece.label} {piece.shape} does not become {leaf} {shapes[leaf]}")
            continue
        matches.append(Match(piece, leaf, shapes[leaf], layouts[0], tuple(layouts[1:]), "rule"))
    if wrong:
        raise MatchError("\n".join(["Rules that do not fit:", *(f"  {line}" for line in wrong)]))
    return matches, rest


def _given(transform: Callable | Sequence[int]) -> Layout:
    if callable(transform):
        return Layout("by rule", transform)
    return Layout(f"axes {tuple(transform)}", lambda w: w.transpose(transform))


# Costs ----------------------------------------------------------------------------------------------------------------


def _costs(
    found: list[Piece],
    free: Mapping[str, tuple[int, ...]],
    twin: Twin,
    order: tuple[Sequence[str], Sequence[str]],
    flattened: Mapping[str, tuple[int, ...]],
) -> tuple[np.ndarray, dict[tuple[int, int], tuple[Layout, ...]]]:
    """How unlikely each pair is, [pieces, leaves], and the layouts of the pairs that are possible."""
    costs, fits = np.full((len(found), len(free)), IMPOSSIBLE), {}
    roles = [role_of(name, len(shape)) for name, shape in free.items()]
    sizes = [math.prod(shape) for shape in free.values()]
    ours = _ranks([(p.role, math.prod(p.shape)) for p in found], [p.module for p in found], order[0])
    theirs = _ranks(list(zip(roles, sizes)), [name.rpartition(".")[0] for name in free], order[1])
    for i, piece in enumerate(found):
        for j, (leaf, shape) in enumerate(free.items()):
            if sizes[j] != math.prod(piece.shape) or (piece.role in ("mean", "var")) != (leaf in twin.state):
                continue
            if piece.role != roles[j] and roles[j] != "vector":
                continue
            if layouts := fitting(piece.kind, piece.shape, shape, flattened.get(piece.module, ())):
                fits[i, j] = layouts
                usual = layouts[0].name != "as it is" or piece.kind in ("other", "embedding")
                costs[i, j] = 0.5 * min(abs(ours[i] - theirs[j]), 6) + _strangeness(piece, leaf) + 2 * (not usual)
    return costs, fits


def role_of(leaf: str, ndim: int) -> str:
    """Role of a weight of the twin: "matrix", "bias", "scale", "mean", "var", or "vector" if its name says nothing."""
    last = leaf.rpartition(".")[2]
    known = next((role for role, names in ROLES.items() if last in names), None)
    return known or ("matrix" if ndim > 1 else "vector")


def _ranks(kinds: list, modules: list[str], order: Sequence[str]) -> list[int]:
    """Place of each weight among those of its kind, in the order of computation."""
    places = {name: i for i, name in enumerate(order)}

    def place(module: str) -> int:
        while module and module not in places:
            module = module.rpartition(".")[0]
        return places.get(module, -1) if module else -1

    ranked = sorted(range(len(kinds)), key=lambda i: (place(modules[i]), i))
    counts: dict = {}
    ranks = [0] * len(kinds)
    for i in ranked:
        ranks[i] = counts[kinds[i]] = counts.get(kinds[i], -1) + 1
    return ranks


def _strangeness(piece: Piece, leaf: str) -> float:
    """How unlike two names are: -3 to 4."""
    module, _, last = leaf.rpartition(".")
    hints = piece.hint or _group(piece.module.rpartition(".")[2]), _group(module.rpartition(".")[2]) or _group(last)
    known = 0.0 if not all(hints) else -1.0 if hints[0] == hints[1] else 3.0
    names = [re.sub(r"[^a-z0-9]", "", name.lower()) for name in (piece.module, module)]
    alike = difflib.SequenceMatcher(None, *names).ratio()
    return known + 1 - alike - 2 * (names[0] == names[1] and bool(names[0]))


def _group(token: str) -> str:
    return next((group for group, names in GROUPS.items() if token in names), "")


# Errors ---------------------------------------------------------------------------------------------------------------


def _complaint(found: list[Match], left: list[Piece], empty: Mapping[str, tuple[int, ...]]) -> str:
    """Everything that has no counterpart, the closest candidates, and the rules to write."""
    lines = [
        f"{len(found)} weights match; {len(left)} of PyTorch's and {len(empty)} of the twin's have no counterpart."
    ]
    for piece in left:
        close = _closest(piece.label, piece.shape, empty)
        lines.append(f"  PyTorch: {piece.label} {piece.shape}; closest in the twin: {close}")
    labels = {piece.label: piece.shape for piece in left}
    lines += [f"  twin: {n} {shape}; closest in PyTorch: {_closest(n, shape, labels)}" for n, shape in empty.items()]
    if left:
        name = next(iter(empty), "NAME")
        expression = re.escape(left[0].label)
        lines.append(f'To match by hand: rules={{r"^{expression}$": ("{name}", transform)}}, where transform turns')
        lines.append("PyTorch's array into the twin's; a name of None leaves a weight of PyTorch's out.")
    return "\n".join(lines)


def _closest(name: str, shape: tuple[int, ...], candidates: Mapping[str, tuple[int, ...]]) -> str:
    def far(other: str) -> tuple[bool, float]:
        size = math.prod(candidates[other]) != math.prod(shape)
        return size, -difflib.SequenceMatcher(None, name, other).ratio()

    near = sorted(candidates, key=far)[:3]
    return ", ".join(f"{other} {candidates[other]}" for other in near) or "none is left"
