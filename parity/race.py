"""Trains the PyTorch reference and jaxseg side by side: `python -m parity.race --data FOLDER --out FOLDER`

Both start from the same weights and get the same batches, on the CPU in float32, in any recipe of the trainer that the
reference supports. Steps alternate, and each is timed until its result is ready, so both meet the same load. Prints a
line for each epoch and a table at the end. Writes race.json and race.png after every epoch.

The question: is the final validation mIoU equal within a --margin stated beforehand? Two one-sided paired t-tests over
the seeds answer it (`compare.tost`).

Exit status:

- 0: equivalent; or a single seed, which no test can judge
- 1: different, or not shown to be equivalent; unequal first losses; a loss that is not finite
- 2: a mistake in the command or in the data
"""

import dataclasses
import datetime
import importlib.util
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import tyro

from jaxseg.base import cli, doors
from jaxseg.base import config as settings
from jaxseg.base.config import Augmentation, Config, Data, Model, Optimization
from jaxseg.base.errors import NonFiniteLoss, UserError
from jaxseg.base.terminal import clock, console
from jaxseg.data.feed.pipeline import Batch, Pipeline
from jaxseg.learn import losses, metrics
from jaxseg.learn.augment import flips_and_turns
from jaxseg.learn.step import step_key
from jaxseg.training import dataset
from jaxseg.training.dataset import Dataset

NAMES = ("jaxseg", "PyTorch")


@dataclasses.dataclass(frozen=True)
class Race:
    """Options of the race itself."""

    seeds: int = 3
    """Number of runs, each with its own weights and order of tiles. The test is weak with 2; with 1 there is none."""
    seed: int = 0
    """First seed; it also decides the split of the data."""
    margin: float = 0.01
    """Largest difference of the final mIoU that counts as equivalent. Choose it before the race."""
    limit: int | None = None
    """Most training tiles, evenly spaced, for a shorter race. Validation tiles are reduced in proportion."""
    threads: int = 1
    """Threads of PyTorch; JAX uses all cores. With 2 threads on 2 cores jaxseg's steps took a fifth longer."""
    out: Path | None = None
    """Folder for race.json and race.png; runs/race-<date>-<time> if not given."""
    overwrite: bool = False
    """Replace race.json and race.png in --out; other files there stay."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the command: the trainer's recipe and the race."""

    data: tyro.conf.OmitArgPrefixes[Data] = dataclasses.field(default_factory=Data)
    augmentation: tyro.conf.OmitArgPrefixes[Augmentation] = dataclasses.field(default_factory=Augmentation)
    model: tyro.conf.OmitArgPrefixes[Model] = dataclasses.field(default_factory=Model)
    optimization: tyro.conf.OmitArgPrefixes[Optimization] = dataclasses.field(default_factory=Optimization)
    race: tyro.conf.OmitArgPrefixes[Race] = Race()

    @property
    def config(self) -> Config:
        """Settings of the trainer for this recipe."""
        return Config(self.data, self.augmentation, self.model, self.optimization, settings.Run(seed=self.race.seed))


class Diverged(NonFiniteLoss):
    """A loss that is not finite; the message names the side and the step."""


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    description = "Train jaxseg and its PyTorch reference side by side and test whether they end up equally good."
    options = tyro.cli(Options, args=argv, prog="python -m parity.race", description=description)
    if importlib.util.find_spec("torch") is None:
        print("error: a race needs PyTorch and SciPy: pip install 'jaxseg[parity]'", file=sys.stderr)
        return 2

    def run() -> int:
        check(options)
        return 0 if race(options) else 1

    return doors.enter(run)


def check(options: Options) -> None:
    """Raises UserError that names every setting that is invalid or has no counterpart in the reference."""
    from parity.reference import training

    r, o, problems = options.race, options.optimization, []
    try:
        cli.check(options.config)
    except UserError as error:
        problems.append(str(error))
    rules = [
        (r.seeds >= 1, f"--seeds is {r.seeds}; expected 1 or more"),
        (r.threads >= 1, f"--threads is {r.threads}; expected 1 or more"),
        (0 < r.margin < 1, f"--margin is {r.margin:g}; expected a difference of mIoU, above 0 and below 1"),
        (r.limit is None or r.limit >= 1, f"--limit is {r.limit}; expected 1 or more"),
        (r.seed + r.seeds <= 2**32, f"--seed {r.seed} and --seeds {r.seeds} go past 2**32"),
        (options.model.precision == "f32", f"--precision is {options.model.precision}; expected f32"),
    ]
    default = Config()
    groups = {"data": ("normalize",), "augmentation": ("zoom", "brightness", "contrast", "noise", "blur")}
    groups |= {"model": ("dropout", "remat")}
    groups |= {"optimization": ("steps", "accumulate", "class_weights", "ohem", "ema", "early_stopping")}
    for group, names in groups.items():
        for name in names:
            asked, only = (getattr(getattr(config, group), name) for config in (options.config, default))
            rules.append((asked == only, f"{settings.flag(name)} {asked} has no counterpart in the reference"))
    tables = {"optimizer": training.OPTIMIZERS, "schedule": training.SCHEDULES, "loss": training.LOSSES}
    for name, known in tables.items():
        asked = getattr(o, name)
        rules.append((asked in known, f"--{name} {asked} has no counterpart in the reference; {', '.join(known)} have"))
    if r.out is not None and r.out.exists():
        empty = r.out.is_dir() and not any(r.out.iterdir())
        usable = empty or (r.overwrite and r.out.is_dir())
        rules.append((usable, f"--out {r.out}: is not an empty folder. Give another, or --overwrite."))
    if problems := problems + [message for holds, message in rules if not holds]:
        raise UserError("\n".join(problems))


def race(options: Options) -> bool:
    """Runs the race and returns True if every row passes. Raises UserError or Diverged."""
    import torch

    from parity.reference.training import Reference
    from parity.report import memory, race_report
    from parity.twins.ours import Ours

    jax.config.update("jax_platforms", "cpu")
    torch.set_num_threads(options.race.threads)
    r, o = options.race, options.optimization
    out = r.out or Path("runs") / f"race-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    data, facts = open_data(options)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be made ({error.strerror or error})") from None
    console.print(f"race  {r.seeds} seeds, {o.epochs} epochs; equivalent means: within {r.margin:g} mIoU")
    record = race_report.new(options, facts)
    record["memory"] = {name: memory.measure(name, options.config, facts["size"], r.threads) for name in NAMES}

    steps = -(-facts["training"] // o.batch_size)
    racers = dict(zip(NAMES, (Ours(options.config, steps), Reference(options.config, steps))))
    began = time.monotonic()
    console.print(race_report.HEADING)
    for number in range(r.seeds):
        seed = r.seed + number
        record["seeds"].append({"seed": seed, "epochs": []})
        racers["jaxseg"].start(seed)
        racers["PyTorch"].start(racers["jaxseg"].weights())
        sides = data.pipelines(seed, workers=0)  # threads would slow the side that is being timed
        for epoch in range(o.epochs):
            found = run_epoch(racers, *sides, epoch, seed, options.augmentation.augment)
            record["seeds"][-1]["epochs"].append(found)
            done = number * o.epochs + epoch + 1
            left = (time.monotonic() - began) / done * (r.seeds * o.epochs - done)
            console.print(race_report.epoch_line(seed, found, o.epochs) + f"  {clock(left)} left")
            race_report.write(out, record)
    passed = race_report.finish(out, record)
    console.print(f"{out / 'race.json'}\n{out / 'race.png'}")
    return passed


def open_data(options: Options) -> tuple[Dataset, dict]:
    """Data as the trainer finds them, limited to --limit, and the facts about them for race.json.

    The facts:

    - "training", "validation": numbers of tiles
    - "size": height and width of a tile
    - "cache": where the tiles are kept
    - "constant_miou": validation mIoU of predicting the more frequent class everywhere, the score to beat

    Raises UserError for data that the reference cannot read.
    """
    data = dataset.open_data(options.config, options.race.limit)
    found, kind = data.found, (data.reading.channels, data.reading.dtype, len(data.classes))
    if kind != (3, "uint8", 2):
        what = "{} channels of {} and {} classes".format(*kind)
        raise UserError(f"the data have {what}; the reference takes 3 channels of uint8 and 2 classes")
    pixels = found.validation.class_pixels
    facts = {
        "training": found.training.pairs,
        "validation": found.validation.pairs,
        "size": data.tile,
        "cache": data.cache,
        "constant_miou": max(pixels) / sum(pixels) / sum(n > 0 for n in pixels),
    }
    return data, facts


def batches(training: Pipeline, epoch: int, seed: int, augment: bool) -> Iterator[Batch]:
    """Yields the trainer's batches, augmented as in its step, as NumPy arrays.

    - `training`: pipeline of the training tiles
    - `epoch`: number of the epoch, from 0
    - `seed`: seed of the augmentation
    - `augment`: augment at all
    """
    move = jax.jit(flips_and_turns)
    for step, batch in enumerate(training.epoch(epoch), start=epoch * len(training)):
        yield jax.device_get(move(step_key(seed, step), batch) if augment else batch)


def run_epoch(racers: dict, training: Pipeline, validation: Pipeline, epoch: int, seed: int, augment: bool) -> dict:
    """Trains both sides for an epoch, alternating by batch, then validates both.

    - `racers`: the two sides by name
    - `training`, `validation`: pipelines of the tiles
    - `epoch`: number of the epoch, from 0
    - `seed`, `augment`: as for `batches`

    Returns the entry for race.json. Raises Diverged for a loss that is not finite.
    """
    images, steps = [], {name: [] for name in racers}
    for batch in batches(training, epoch, seed, augment):
        images.append(int(batch["valid"].sum()))
        for name, racer in racers.items():
            wall, cpu = time.perf_counter(), time.process_time()
            loss = racer.step(batch)
            # on Windows the process clock ticks 64 times a second, so a small step may take 0
            steps[name].append((loss, time.perf_counter() - wall, max(time.process_time() - cpu, 1e-6)))
            if not math.isfinite(loss):
                raise Diverged(f"{name}: loss {loss} in epoch {epoch + 1}, step {len(images)}, seed {seed}")
    scores, agreement = validate(racers, validation)
    for name, score in scores.items():
        if not math.isfinite(score["loss"]):
            raise Diverged(f"{name}: validation loss {score['loss']} after epoch {epoch + 1}, seed {seed}")
    found = {"epoch": epoch + 1, "agreement": agreement, "images": images}
    for name in racers:
        loss, wall, cpu = (list(column) for column in zip(*steps[name]))
        found[name] = scores[name] | {
            "train_loss": float(np.average(loss, weights=images)),
            "learning_rates": racers[name].rates[-len(images) :],
            "first_loss": loss[0],
            "seconds": wall,
            "cpu_seconds": cpu,
        }
    return found


def validate(racers: dict, validation: Pipeline) -> tuple[dict, float]:
    """Returns loss and mIoU of each side on the validation set, and the share of pixels with equal predictions."""
    totals = {name: metrics.Totals() for name in racers}
    same = counted = 0
    for batch in validation.epoch():
        keep = batch["mask"][batch["valid"]] != losses.IGNORE_INDEX
        found = {name: racer.evaluate(batch) for name, racer in racers.items()}
        for name, result in found.items():
            totals[name].add(result)
        first, second = (result["predictions"] for result in found.values())
        same, counted = same + int((first == second)[keep].sum()), counted + int(keep.sum())
    scores = {name: total.summary() for name, total in totals.items()}
    return {name: {key: s[key] for key in ("loss", "miou", "iou")} for name, s in scores.items()}, same / counted


if __name__ == "__main__":
    sys.exit(main())
