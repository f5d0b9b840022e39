"""The question of `python -m parity --run RUN`: does a finished run train as its settings say?

The run's settings, data and weights at the start (drawn again from its seed, or loaded again) go through jaxseg's own
assembly, in float64 on the CPU, and through the independent reading in PyTorch that the recipes question uses. Rows and
gates are those of `recipes`. The data must be what they were; which files belong to the run, and which mask values to
its classes, is taken from jaxseg.

The gate assumes that roundings do not grow, which holds for tens of steps from fresh weights. Not seen: float32 and
bfloat16, which the run itself had, and everything after the last step.
"""

import dataclasses
import hashlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp

from jaxseg.base import config as settings
from jaxseg.base.config import Config
from jaxseg.base.errors import UserError
from jaxseg.base.rules import check
from jaxseg.base.terminal import command, console
from jaxseg.runs import readme
from jaxseg.runs.record import check_split, of_split
from jaxseg.training.assembly import assemble
from jaxseg.training.dataset import Dataset, open_data
from parity.checks.recipes import played_rows
from parity.judge.answer import Answer
from parity.reference.files import Labels
from parity.reference.recipe import Recipe, not_known
from parity.twins.recipes import Played, side_by_side

QUESTION = "run"
BATCHES = 10
"""Most batches of validation."""


def run(folder: Path, steps: int, moved: Path | None = None) -> tuple[Answer, dict[str, str]]:
    """Answers the question for a run, and returns facts about it for the page.

    folder: of the run.
    steps: to take.
    moved: folder of its data, if they are elsewhere now.

    Raises UserError, a ValueError: `folder` is no run, its data are gone or changed, the reference does not know its
    settings or cannot read its files.

    Evidence: {"curves": [{"name", "losses", "rates": [PyTorch's, by step], "apart": [jaxseg's minus PyTorch's]}]}.
    """
    if steps < 1:
        raise UserError(f"--steps is {steps}; expected 1 or more")
    config = exact(settings.load(folder), moved)
    check(config)
    if unknown := not_known(config):
        raise UserError("\n".join(unknown))
    with console.capture():
        data = open_data(config)
        split = of_split(data.found.split, data.found.facts.all)
    if (folder / "split.json").exists():
        check_split(folder / "split.json", split)
    played = played_of(config, data, steps)
    taken = len(played.found.losses)
    note = f"the first {taken} steps, {min(BATCHES, len(data.pipelines(0, 0)[1]))} batches of validation"
    rows = tuple(played_rows(QUESTION, folder.name, config, played, note))
    return Answer(QUESTION, rows, {"curves": [curve(folder.name, played)]}), facts(folder, config, split, taken)


def exact(config: Config, moved: Path | None) -> Config:
    """Settings for a replay: full precision, data at `moved` if given, and files read when they are needed."""
    place = {} if moved is None else {"data": moved}
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, cache="none", workers=0, **place),
        model=dataclasses.replace(config.model, precision="f32"),
        run=dataclasses.replace(config.run, out=None, resume=None, dry_run=False),
    )


def played_of(config: Config, data: Dataset, steps: int) -> Played:
    """Both sides of the run. Raises UserError where the reference cannot read its files."""
    found = data.found.split
    files = tuple([(pair.image, pair.mask) for pair in part] for part in (found.training, found.validation))
    labels = data.reading.labels
    labels = Labels(labels.values, labels.ignored, labels.binarize, labels.color)
    with jax.enable_x64(True), console.capture():
        try:
            theirs = Recipe(config, *files, labels)
        except (OSError, ValueError, TypeError, IndexError) as error:
            raise UserError(f"the reference cannot read the files of this run: {error}") from error
        ours = assemble(config, data, load=config.run, dtype=jnp.float64)
        return side_by_side(config, ours, theirs, min(steps, ours.plan.steps), BATCHES)


def curve(name: str, played: Played) -> dict:
    """Curves of both sides for the page."""
    found, expected = played.found, played.expected
    apart = found.losses - expected.losses
    return {
        "name": name,
        "losses": expected.losses.tolist(),
        "rates": expected.rates.tolist(),
        "apart": apart.tolist(),
    }


def facts(folder: Path, config: Config, split: dict, steps: int) -> dict[str, str]:
    """What the page says about the run: command line, digest of the data, precision."""
    given = [word for line in readme.settings(settings.load(folder)) for word in line.split()]
    digest = hashlib.sha256(json.dumps(split, sort_keys=True).encode(errors="surrogateescape")).hexdigest()
    counts = ", ".join(f"{len(split[part])} {part}" for part in ("training", "validation"))
    return {
        "run": str(folder),
        "command line": command("jaxseg.train", *given),
        "steps": str(steps),
        "data": f"{counts} images; SHA-256 of names and contents {digest[:16]}",
        "start": f"weights of {config.run.load}" if config.run.load else f"drawn from seed {config.run.seed}",
        "precision": f"float64; the run itself had {settings.load(folder).model.precision}",
    }
