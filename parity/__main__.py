"""Shows, piece by piece, that jaxseg computes what its PyTorch reference does: `python -m parity`

Prints a table for each question with figures, gates and verdicts, and writes report.html and report.json. Formulas
are compared in float64; rounding is judged in float32 and below. `--quick` asks the same questions in small.

`--run RUN` certifies a finished run instead: its settings and data go through both frameworks once more.

Exit status: 0 if all rows pass, 1 if any fails, 2 for a mistake in the command.
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

Question = Literal[
    "schedule",
    "init",
    "data",
    "layers",
    "losses",
    "optimizers",
    "augmentation",
    "model",
    "training",
    "encoders",
    "recipes",
    "devices",
    "precision",
    "divergence",
    "gpu",
    "mutations",
]
QUESTIONS: tuple[Question, ...] = Question.__args__


@dataclasses.dataclass(frozen=True)
class Options:
    """Shows, piece by piece, that jaxseg computes what its PyTorch reference does."""

    only: tuple[Question, ...] = QUESTIONS
    """Questions to ask."""
    quick: bool = False
    """Ask in small: smaller networks, fewer steps, draws and seeds. Leaves out the mutations."""
    seed: int = 0
    """Seed of weights, batches and draws."""
    seeds: int = 3
    """Number of seeds where a figure is a spread (divergence in float32)."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """Ask the float32 questions on a GPU too: "auto" if there is one, "cpu" never, "gpu" or fail."""
    data: Path | None = None
    """Folder in the article's layout (train/ Ltrain/ val/ Lval/) for the data question; made-up tiles by default. With
    --run, where the run's data are now; where they were by default."""
    run: Path | None = None
    """Folder of a run: ask only whether its first steps are those of PyTorch, in float64, from its own settings, data
    and weights at the start."""
    steps: int = 20
    """Steps to take with --run."""
    out: Path = Path("parity-report")
    """Folder for report.html and report.json."""


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    options = tyro.cli(Options, args=argv, prog="python -m parity")
    if importlib.util.find_spec("torch") is None:
        print("error: parity needs PyTorch and SciPy: pip install 'jaxseg[parity]'", file=sys.stderr)
        return 2
    if options.device == "cpu" or options.run is not None:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs some of a GPU's memory

    import jax
    import torch

    from jaxseg.base import doors
    from parity.report import report

    jax.config.update("jax_num_cpu_devices", 2)  # for the devices question
    torch.set_num_threads(1)  # the reference's rounding depends on the number of threads
    asked = {"questions": ", ".join(options.only), "form": "quick" if options.quick else "full"}
    asked |= {
        "seed": str(options.seed),
        "seeds": str(options.seeds),
        "data": options.data.name if options.data else "made-up fields",
    }

    def run() -> int:
        answers = []
        with data_folder(options.data) as root, jax.default_device(jax.devices("cpu")[0]):
            for question in questions(options):
                answers.append(ask(question, options, root))
                report.show(answers[-1])
        return report.finish(answers, options.out, asked)

    return doors.enter(run if options.run is None else lambda: of_run(options))


def of_run(options: Options) -> int:
    """Answers the question of --run; returns the exit status."""
    from parity.checks import finished_run
    from parity.report import report

    began = time.monotonic()
    answer, asked = finished_run.run(options.run, options.steps, options.data)
    answer = dataclasses.replace(answer, seconds=time.monotonic() - began)
    report.show(answer)
    return report.finish([answer], options.out, asked)


def questions(options: Options) -> list[Question]:
    """Questions to ask; a quick run leaves out the mutations unless they are named."""
    left_out = {"mutations"} if options.quick and options.only == QUESTIONS else set()
    return [question for question in options.only if question not in left_out]


def ask(question: str, options: Options, root: Path):
    """Answer to one question. A check that raises gives a failed row and does not end the run."""
    from jaxseg.base.errors import UserError
    from parity import checks
    from parity.judge import compare
    from parity.judge.answer import Answer, Settings

    settings = Settings(options.seed, options.seeds, options.quick, root, options.device)
    began = time.monotonic()
    try:
        module = "parity.mutations" if question == "mutations" else f"{checks.__name__}.{question}"
        answer = importlib.import_module(module).run(settings)
    except UserError:
        raise
    except Exception as error:  # shown as a failed row
        broken = f"{type(error).__name__}: {error}"
        answer = Answer(question, (compare.at_most(question, "the check itself", float("nan"), 0, worst=broken),))
    return dataclasses.replace(answer, seconds=time.monotonic() - began)


@contextlib.contextmanager
def data_folder(given: Path | None) -> Iterator[Path]:
    """The given folder, or a temporary one of made-up tiles."""
    if given is not None:
        yield given
        return
    from jaxseg.data.made.fields import make_fields

    with tempfile.TemporaryDirectory() as folder:
        yield make_fields(Path(folder) / "made-up-fields", train=23, val=6)


if __name__ == "__main__":
    sys.exit(main())
