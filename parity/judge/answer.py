"""`Settings` go into a check and an `Answer` comes out; nothing else passes between `parity/checks` and the rest."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from parity.judge.compare import Row


@dataclasses.dataclass(frozen=True)
class Settings:
    """How much a check asks, and with which data."""

    seed: int = 0
    """Seed of weights, batches and draws."""
    seeds: int = 3
    """Number of seeds, from `seed` on, where a figure is a spread (divergence in float32)."""
    quick: bool = False
    """Small form: rows of every kind, from smaller networks, fewer steps and fewer draws."""
    data: Path | None = None
    """Folder in the article's layout (train/ Ltrain/ val/ Lval/) for the data question."""
    device: str = "auto"
    """Where float32 is asked a second time: "cpu", "gpu", or "auto" for a GPU if there is one."""
    recipe: tuple[str, ...] = ()
    """Values of `parity.twins.covering.SETTINGS`; if given, the recipes question asks one recipe that has them. For the
    encoders and devices questions the parts of them to ask."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """Rows of one question, the evidence for its pictures, and the seconds it took."""

    question: str
    rows: tuple[Row, ...]
    evidence: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Written to report.json as it is, so only numbers, strings, and lists and dicts of them."""
    seconds: float = 0.0
    not_run: str = ""
    """Why nothing was run, for instance no GPU; there are no rows then."""

    @property
    def passed(self) -> bool:
        """True if there are rows and all pass, or if there was nothing to run."""
        return all(row.passed for row in self.rows) and bool(self.rows or self.not_run)
