"""Mistakes to inject, one module for each question that should catch them; see `parity/mutations.py`.

A function here takes the right function and returns a wrong one. A patch must name the attribute that is looked up
when jaxseg runs. Otherwise it changes nothing, and the mistake escapes.
"""

import dataclasses
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Mistake:
    """A mistake that people make, or that another framework's defaults would cause."""

    name: str
    patches: tuple[tuple[object, str, Callable], ...]
    """(owner, attribute, wrong): `owner.attribute` becomes `wrong(owner.attribute)`."""
    recipe: tuple[str, ...] = ()
    """For the recipes question: values of `parity.twins.covering.SETTINGS` of a recipe that shows it. For the encoders
    and devices questions: their parts that show it."""


def mistake(name: str, owner: object, attribute: str, wrong: Callable, *more: tuple) -> Mistake:
    """A `Mistake` with one patch (owner, attribute, wrong), or with `more` of them."""
    return Mistake(name, ((owner, attribute, wrong), *more))


def shown(part: str, *what) -> Mistake:
    """A `Mistake`, and the part of its question that shows it."""
    return dataclasses.replace(mistake(*what), recipe=(part,))
