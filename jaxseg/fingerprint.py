"""What a function is, all that it holds included, in words that are the same in every process.

By it a program is found that was compiled from the same function, so what is told alike must be traced alike: nothing
is left out because it seems not to matter, and what is not understood is refused.
"""

import dataclasses
import enum
import functools
import hashlib
import sys
import types
from collections.abc import Iterator, Mapping

import jax
import numpy as np
from flax import nnx

PLAIN = (bool, int, float, complex, str, bytes, type(None), type(...), enum.Enum, np.dtype, np.generic)
PACKAGES = ("flax", "jaxseg", "numpy", "opt_einsum", "optax")
"""Whose functions and types are understood, beside Python's own and packages that begin with jax."""


class NotUnderstood(TypeError):
    """`fingerprint` cannot say what an object is."""


def fingerprint(*things: object) -> str:
    """64 hexadecimal digits for functions, arrays, modules of Flax, numbers, strings, and containers of them.

    Equal, in this process or another, only if they are made of the same: a function inside another one is the same if
    it stands at the same place and holds the same, an array if its values are the same. A variable of Flax, whose value
    a step is given anew each time, is its shape, type and device. What stands at the top of a module is its name, and
    a decorator at a function's place is not looked at; for both see `programs.sources`.
    Raises NotUnderstood.
    """
    digest = hashlib.sha256()
    for word in _words(things, {}):
        digest.update(f"{len(word)} {word}".encode())
    return digest.hexdigest()


def is_known(module: str | None) -> bool:
    """Whether a module belongs to Python or to one of the packages."""
    root = (module or "").partition(".")[0]
    return root in PACKAGES or root.startswith("jax") or root in sys.stdlib_module_names


def _words(x: object, seen: dict[int, tuple[int, object]]) -> Iterator[str]:
    """`seen`: the number of each object so far by its `id`, and the object, so that no other is given that `id`."""
    if isinstance(x, PLAIN):
        yield f"{type(x).__qualname__} {x!r}"
    elif id(x) in seen:
        yield f"again {seen[id(x)][0]}"
    else:
        seen[id(x)] = len(seen), x
        parts = _parts(x)
        yield f"{type(x).__module__} {type(x).__qualname__} {len(parts)}"
        for part in parts:
            yield from _words(part, seen)


def _parts(x) -> list:
    """What an object of its type is made of."""
    if not is_known(type(x).__module__) or "<locals>" in type(x).__qualname__:
        raise NotUnderstood(f"an object of {type(x)}")
    if isinstance(x, (tuple, list)):
        return list(x)
    if isinstance(x, Mapping):
        return [part for item in x.items() for part in item]
    if isinstance(x, frozenset):
        return sorted(map(repr, x))
    if isinstance(x, slice):
        return [x.start, x.stop, x.step]
    if isinstance(x, nnx.Variable):
        return [*aval(x.get_raw_value()), x.get_metadata()]
    if isinstance(x, (np.ndarray, jax.Array)):
        if not isinstance(x.dtype, np.dtype) or x.dtype.hasobject:
            raise NotUnderstood(f"an array of {x.dtype}")
        return [*aval(x), np.asarray(x).tobytes()]
    if isinstance(x, functools.partial):
        return [x.func, x.args, x.keywords]
    if isinstance(x, types.MethodType):
        return [x.__func__, x.__self__]
    if _is_at_the_top(x):
        return [x.__module__, _name(x)]
    if isinstance(x, types.FunctionType) and is_known(_file_of(x)):
        return [_file_of(x), x.__code__, _held(x), x.__defaults__, x.__kwdefaults__]
    if isinstance(x, types.CodeType):
        return [x.co_qualname, x.co_firstlineno, x.co_code, x.co_names, x.co_consts]
    if isinstance(x, jax.stages.Wrapped):  # by `jax.jit`, whose other arguments are where the function is
        return [x.__wrapped__]
    if (isinstance(x, nnx.Pytree) or dataclasses.is_dataclass(x)) and hasattr(x, "__dict__"):
        return [{name: vars(x)[name] for name in sorted(vars(x)) if not name.startswith("_pytree__")}]
    raise NotUnderstood(f"an object of {type(x)}")


def aval(x) -> list:
    """Of an array all that a function that is traced with it can see of it, and where it lies."""
    return [x.shape, x.dtype, bool(getattr(x, "weak_type", False)), str(getattr(x, "sharding", None))]


def _held(function: types.FunctionType) -> list:
    """What the variables hold that a function has from the one around it."""
    held = []
    for cell in function.__closure__ or ():
        try:
            held.append([cell.cell_contents])
        except ValueError:  # not set
            held.append([])
    return held


def _file_of(function: types.FunctionType) -> str | None:
    """The module in which it is written; `functools.wraps` says that of another."""
    return function.__globals__.get("__name__")


def _is_at_the_top(x) -> bool:
    """Whether it is what a known module has under its name."""
    name, module = _name(x), getattr(x, "__module__", None)
    if not isinstance(name, str) or not is_known(module) or module not in sys.modules:
        return False
    if isinstance(x, types.FunctionType) and not is_known(_file_of(x)):
        return False
    found = sys.modules[module]
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is x


def _name(x) -> str | None:
    """With those of the classes that it stands in; NumPy's functions have only a name of their own."""
    return getattr(x, "__qualname__", getattr(x, "__name__", None))
