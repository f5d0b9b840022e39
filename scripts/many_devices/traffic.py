"""Sums over devices in the real training step, read from its traced program."""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Sequence

import jax
import numpy as np
from flax import nnx
from jax.extend.core import Literal

from jaxseg.base.config import Model
from jaxseg.devices.mesh import Devices
from jaxseg.learn import losses, optimizers
from jaxseg.learn.compiled import compile_train_step
from jaxseg.nn import unet
from many_devices.network import Traffic

SIDE = 32
"""Pixels a side of the images that are traced; sums do not depend on it."""


def compiled_step(settings: Model, devices: Devices, batch: int, side: int = SIDE):
    """jaxseg's training step over `devices`, and a batch of `batch` images on each."""
    net = unet.unet_from(settings, in_channels=3, classes=2, seed=0)
    optimizer = nnx.Optimizer(net, optimizers.adam(1e-3), wrt=nnx.Param)
    devices.replicate(net, optimizer)
    step = compile_train_step(net, optimizer, schedule=lambda _: 1e-3, loss=losses.cross_entropy, devices=devices)
    places = devices.rows(batch * devices.count)
    image = np.random.default_rng(0).integers(0, 256, (len(places), side, side, 3), np.uint8)
    rows = {"image": image, "mask": image[..., 0] // 128, "valid": np.ones(len(places), bool)}
    return step, devices.put(rows | {"position": places.astype(np.int32)})


def traffic(settings: Model) -> Traffic:
    """Sums of a training step of this network. Needs two CPU devices, which compute nothing."""
    step, batch = compiled_step(settings, Devices.of(jax.devices("cpu")[:2]), 1)
    return sums(step.trace(batch).traced.jaxpr.jaxpr)


@dataclasses.dataclass(eq=False)
class Sum:
    """A sum over devices: its place among those that need each other, its bytes, and whether another one needs it."""

    place: int
    size: int
    needed: bool = False


def sums(jaxpr) -> Traffic:
    """Sums of a traced program.

    Those that another sum needs are rounds; those with the same number of others before them share one, as XLA combines
    them. All that no sum needs, which are the gradient and some numbers to report, are summed at the end.
    """
    found: list[Sum] = []
    follow(jaxpr, [frozenset()] * len(jaxpr.invars), found)
    rounds = Counter()
    for one in found:
        rounds[one.place] += one.size * one.needed
    between = (size for _, size in sorted(rounds.items()) if size)
    return Traffic(tuple(between), sum(one.size for one in found if not one.needed))


def follow(jaxpr, given: Sequence[frozenset[Sum]], found: list[Sum]) -> list[frozenset[Sum]]:
    """Returns the last sums that each result of `jaxpr` needs.

    - `given`: the last sums that each argument needs
    - `found`: gets the sums in `jaxpr`

    Raises ValueError for a loop with sums in it.
    """
    known = dict(zip(jaxpr.invars, given))

    def last(atom) -> frozenset[Sum]:
        return frozenset() if isinstance(atom, Literal) else known.get(atom, frozenset())

    for equation in jaxpr.eqns:
        before, name, count = [last(atom) for atom in equation.invars], equation.primitive.name, len(found)
        needs = frozenset().union(*before)
        if name.startswith("psum"):
            for one in needs:
                one.needed = True
            size = sum(x.aval.size * x.aval.dtype.itemsize for x in equation.invars)
            found.append(Sum(1 + max((one.place for one in needs), default=0), size))
            needs = frozenset(found[-1:])
        results = [follow(inner, before[len(before) - len(inner.invars) :], found) for inner in parts(equation)]
        if name in ("scan", "while") and len(found) > count:
            raise ValueError(f"there are sums over devices in a loop ({name}), which is not followed")
        after = [needs] * len(equation.outvars)
        if fitting := [result for result in results if len(result) == len(after)]:
            condition = {"cond": before[:1], "while": before}.get(name, [])
            after = [frozenset().union(*each, *condition) for each in zip(*fitting)]
        known.update(zip(equation.outvars, after))
    return [last(atom) for atom in jaxpr.outvars]


def parts(equation) -> list:
    """Programs inside an equation, such as the branches of a condition."""
    leaves = jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr"))
    inner = (getattr(leaf, "jaxpr", leaf) for leaf in leaves)
    return [jaxpr for jaxpr in inner if hasattr(jaxpr, "eqns")]


SHAPE = re.compile(r"\b[a-z]+(\d+)\[([\d,]*)\]")


def compiled_sums(text: str) -> list[int]:
    """Bytes of each all-reduce in a compiled program's text, in its order.

    >>> compiled_sums("%a = (f32[2,3]{1,0}, s32[]) all-reduce(%b, %c), channel_id=1")
    [28]
    """
    results = re.findall(r"= (.*?) all-reduce(?:-start)?\(", text)
    return [sum(map(_bytes, SHAPE.findall(result))) for result in results]


def _bytes(found: tuple[str, str]) -> int:
    bits, shape = found
    return int(bits) // 8 * math.prod(int(n) for n in shape.split(",") if n)
