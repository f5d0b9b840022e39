"""Mistakes to inject, one module for each question that has to catch them; see `parity/mutations.py`."""

import dataclasses
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Mistake:
    """One thing that people, or another framework's defaults, get wrong."""

    name: str
    patches: tuple[tuple[object, str, Callable], ...]
    """(owner, attribute, wrong): `owner.attribute` becomes `wrong(owner.attribute)`."""


def mistake(name: str, owner: object, attribute: str, wrong: Callable, *more: tuple) -> Mistake:
    """A `Mistake` of one replacement, or of several."""
    return Mistake(name, ((owner, attribute, wrong), *more))
