"""The ledger: every known divergence between PyTorch and JAX, Flax and Optax, what jaxseg does about it, and the row
that pins it. The entries are in ledger.toml.

"match": jaxseg does as PyTorch does. "accepted": it differs, on purpose. "impossible": it cannot be made to agree.
Sizes were measured with torch 2.13, jax 0.10.2, flax 0.12.8 and optax 0.2.8 on a CPU.
"""

import dataclasses
import tomllib
from collections.abc import Iterable, Iterator
from importlib import resources
from typing import Literal

from parity.judge import compare
from parity.judge.answer import Answer
from parity.judge.compare import Row

QUESTION = "ledger"


@dataclasses.dataclass(frozen=True)
class Entry:
    """One divergence."""

    what: str
    pytorch: str
    jax: str
    """What JAX, Flax or Optax do by default."""
    size: str
    """What it costs to overlook it."""
    verdict: Literal["match", "accepted", "impossible"]
    why: str
    pin: tuple[str, str] | None = None
    """The question, and a part of the names of the rows that would fail; None where no row can."""


def pinning(entry: Entry, answers: Iterable[Answer]) -> list[Row]:
    """The rows of a run that pin an entry."""
    if entry.pin is None:
        return []
    question, part = entry.pin
    return [row for answer in answers if answer.question == question for row in answer.rows if part in row.name]


def rows(answers: list[Answer]) -> Iterator[Row]:
    """A failing row for each entry whose question was asked, but had no row of that name."""
    asked = {answer.question for answer in answers if answer.rows}
    for entry in LEDGER:
        if entry.pin is not None and entry.pin[0] in asked and not pinning(entry, answers):
            yield compare.at_most(QUESTION, entry.what, 1, 0, worst=f"{entry.pin[0]} has no row named {entry.pin[1]!r}")


def read() -> tuple[Entry, ...]:
    """The entries of ledger.toml."""
    entries = tomllib.loads(resources.files(__package__).joinpath("ledger.toml").read_text("utf-8"))["entry"]
    return tuple(Entry(**entry | {"pin": tuple(entry["pin"]) if "pin" in entry else None}) for entry in entries)


LEDGER = read()
