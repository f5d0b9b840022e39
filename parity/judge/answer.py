"""What a check is asked and what it answers: the only two things that pass between `parity/checks` and the rest."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from parity.judge.compare import Row


@dataclasses.dataclass(frozen=True)
class Settings:
    """How much to ask, and of what."""

    seed: int = 0
    """Of weights, batches and draws."""
    seeds: int = 3
    """How many seeds, from `seed` on, where a figure is a spread (divergence in float32)."""
    quick: bool = False
    """The small form: the same kinds of rows from smaller networks, fewer steps and fewer draws."""
    data: Path | None = None
    """Folder in the article's layout (train/ Ltrain/ val/ Lval/) for the data question."""
    device: str = "auto"
    """"cpu", "gpu", or "auto" for a GPU if there is one: where float32 is asked a second time."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """The rows of one question, what its pictures are drawn from, and the seconds that it took."""

    question: str
    rows: tuple[Row, ...]
    evidence: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Numbers, strings, lists and dicts of them only: it goes into report.json as it is."""
    seconds: float = 0.0
    not_run: str = ""
    """Why there was nothing to run (no GPU, say); then there are no rows."""

    @property
    def passed(self) -> bool:
        """Every row passes, and there is one; or there was nothing to run."""
        return all(row.passed for row in self.rows) and bool(self.rows or self.not_run)
