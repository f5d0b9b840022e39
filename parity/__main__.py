"""Shows, piece by piece, that jaxseg computes what its PyTorch reference does: `python -m parity`

Prints a table for each question with the figure, the gate and the verdict, writes report.html, report.json and
schedules.png, and exits with 0 when all rows pass, 1 when any fails, 2 on a mistake in the command. Everything runs
on the CPU; float64 where meaning is asked, float32 where rounding is.
"""

import contextlib
import dataclasses
import importlib.util
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import tyro

QUESTIONS = ("schedule", "init", "data", "model", "training")


@dataclasses.dataclass(frozen=True)
class Options:
    """Shows, piece by piece, that jaxseg computes what its PyTorch reference does."""

    only: tuple[Literal["schedule", "init", "data", "model", "training"], ...] = QUESTIONS
    """Questions to ask."""
    seed: int = 0
    """Of weights, batches and draws."""
    data: Path | None = None
    """Folder in the article's layout (train/ Ltrain/ val/ Lval/) for the data question; made-up tiles if not given."""
    out: Path = Path("parity-report")
    """Folder for report.html, report.json and schedules.png."""


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    options = tyro.cli(Options, args=argv, prog="python -m parity")
    if importlib.util.find_spec("torch") is None:
        print("error: parity needs PyTorch and SciPy: pip install 'jaxseg[parity]'", file=sys.stderr)
        return 2
    os.environ.setdefault("JAX_PLATFORMS", "cpu")

    import torch

    from jaxseg.config import UserError
    from parity import report

    torch.set_num_threads(1)  # the reference's rounding depends on the number of threads
    answers = []
    try:
        with data_folder(options.data) as root:
            for question in options.only:
                began = time.monotonic()
                rows = ask(question, options.seed, root)
                answers.append(report.Answer(question, tuple(rows), time.monotonic() - began))
                report.show(answers[-1])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return report.finish(answers, options.out, options.seed)


def ask(question: str, seed: int, root: Path) -> list:
    """The rows of one question. A check that breaks is a failed row, not the end of the run."""
    from jaxseg.config import UserError
    from parity import checks, compare

    check = importlib.import_module(f"{checks.__name__}.{question}")
    try:
        return check.run(seed=seed, root=root) if question == "data" else check.run(seed=seed)
    except UserError:
        raise
    except Exception as error:  # reported, and the run fails
        return [
            compare.at_most(question, "the check itself", float("nan"), 0, worst=f"{type(error).__name__}: {error}")
        ]


@contextlib.contextmanager
def data_folder(given: Path | None) -> Iterator[Path]:
    """The folder to read, or one of made-up tiles for as long as it is needed."""
    if given is not None:
        yield given
        return
    from jaxseg.data.fields import make_fields

    with tempfile.TemporaryDirectory() as folder:
        yield make_fields(Path(folder) / "made-up-fields", train=23, val=6)


if __name__ == "__main__":
    sys.exit(main())
