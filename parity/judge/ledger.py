"""The ledger of known divergences between PyTorch and JAX, Flax and Optax; its entries are in ledger.toml.

An entry says what jaxseg does about a divergence, and which row pins that. Verdicts:

- "match": jaxseg does what PyTorch does
- "accepted": jaxseg differs on purpose
- "impossible": the two cannot agree

Sizes were measured with torch 2.13, jax 0.10.2, flax 0.12.8 and optax 0.2.8 on a CPU.
"""

import dataclasses
import tomllib
from collections import Counter
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
    """Default of JAX, Flax or Optax."""
    size: str
    """Cost of overlooking it."""
    verdict: Literal["match", "accepted", "impossible"]
    why: str
    pin: tuple[str, str] | None = None
    """Question, and a part of the names of the rows that would fail; None if no row can."""


def pinning(entry: Entry, answers: Iterable[Answer]) -> list[Row]:
    """Rows of a run that pin an entry."""
    if entry.pin is None:
        return []
    question, part = entry.pin
    return [row for answer in answers if answer.question == question for row in answer.rows if part in row.name]


def rows(answers: list[Answer]) -> Iterator[Row]:
    """Yields a failing row for each entry whose question was asked but has no row of the pinned name.

    Another one for each name that several rows of a question have: a pin would not say which.
    """
    asked = {answer.question for answer in answers if answer.rows}
    for entry in LEDGER:
        if entry.pin is not None and entry.pin[0] in asked and not pinning(entry, answers):
            yield compare.at_most(QUESTION, entry.what, 1, 0, worst=f"{entry.pin[0]} has no row named {entry.pin[1]!r}")
    for answer in answers:
        for name, times in Counter(row.name for row in answer.rows).items():
            if times > 1:
                yield compare.at_most(QUESTION, f"{answer.question}: rows named {name!r}", times, 1)


def read() -> tuple[Entry, ...]:
    """Entries of ledger.toml."""
    entries = tomllib.loads(resources.files(__package__).joinpath("ledger.toml").read_text("utf-8"))["entry"]
    return tuple(Entry(**entry | {"pin": tuple(entry["pin"]) if "pin" in entry else None}) for entry in entries)


LEDGER = read()
