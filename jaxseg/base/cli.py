"""Command lines: `parse` reads a checked `Config`, `status` runs a command that uses a trained run."""

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import tyro

from jaxseg.base import doors
from jaxseg.base.config import Config, flag, load, two_columns
from jaxseg.base.errors import UserError, is_about_memory
from jaxseg.base.options import Evaluation, Prediction
from jaxseg.base.rules import check

DEFAULT = Config()
PRESETS = {
    "default": DEFAULT,
    "article": replace(
        DEFAULT,
        data=replace(DEFAULT.data, binarize=255, class_names=("background", "field")),
        augmentation=replace(DEFAULT.augmentation, augment=False),
        optimization=replace(
            DEFAULT.optimization, optimizer="sgd", learning_rate=1e-2, batch_size=5, schedule="article"
        ),
    ),
}
MAY_CHANGE = {
    "data", "images", "masks", "val_images", "val_masks", "train_list", "val_list", "workers", "cache",
    "cache_mb", "epochs", "steps", "early_stopping", "log_every", "log", "dry_run", "debug",
    "devices", "coordinator", "processes", "process",
}  # fmt: skip
"""Settings that a resumed run may change: where its data is, how long it goes on, what it prints and logs."""


def parse(argv: list[str] | None = None) -> Config:
    """Reads a command line, `sys.argv` by default. With `--resume RUN` the run's saved settings are the defaults.

    Raises `UserError` listing every invalid setting with its flag, its value and what was expected, or every setting
    that differs from a resumed run's and is not in `MAY_CHANGE`. Exits with 2 on unknown flags (tyro prints them), and
    with 0 after `-h`.
    """
    argv = sys.argv[1:] if argv is None else argv
    config = _cli(argv, DEFAULT)
    if (run := config.run.resume) is not None:
        config = _resumed(argv, run)
    elif config.run.preset != "default":
        preset = PRESETS[config.run.preset]
        config = _cli(argv, replace(preset, run=replace(preset.run, preset=config.run.preset)))
    check(config)
    return config


def _cli(argv: list[str], default: Config) -> Config:
    return tyro.cli(
        Config,
        args=argv,
        default=default,
        prog="python -m jaxseg.train",
        description="Train a U-Net on a folder of images and masks; without one, on made-up crop fields.",
        compact_help=True,
        config=(tyro.conf.DisallowNone,),
    )


def _resumed(argv: list[str], run: Path) -> Config:
    saved = load(run)
    saved = replace(saved, run=replace(saved.run, resume=run, out=None, load=None, dry_run=False, debug=False))
    saved = replace(saved, machine=DEFAULT.machine)  # that of today
    asked = _cli(argv, saved)
    if changed := [row for row in differences(saved, asked) if row[0] not in MAY_CHANGE]:
        raise UserError(
            f"--resume {run}: a resumed run keeps its settings, but these flags ask for others:\n"
            + two_columns([(flag(name), was, now) for name, was, now in changed], "the run", "command line")
            + "\nLeave them out, or start a new run without --resume (--load takes the weights along)."
        )
    return asked


def differences(a: Config, b: Config) -> list[tuple[str, object, object]]:
    """Lists (setting, value in `a`, value in `b`) for every setting in which two configs differ."""
    rows = []
    for group in dataclasses.fields(Config):
        x, y = getattr(a, group.name), getattr(b, group.name)
        for field in dataclasses.fields(x):
            was, now = getattr(x, field.name), getattr(y, field.name)
            if was != now:
                rows.append((field.name, was, now))
    return rows


def status(do: Callable[[], object], options: Prediction | Evaluation, stopped: str) -> int:
    """Runs a command that uses a trained run, and returns its exit status, as `doors.enter` does.

    - `do`: what the command does
    - `options`: parsed command line
    - `stopped`: what to say after Ctrl-C
    """

    def run() -> None:
        try:
            do()
        except Exception as error:
            if isinstance(error, UserError) or not is_about_memory(error):
                raise
            what = f"out of memory with {options.batch_size} tiles of {options.tile}x{options.tile} at a time"
            raise UserError(f"{what}; try --batch-size 1, then a smaller --tile") from error

    return doors.enter(run, debug=options.debug, interrupted=f"stopped; {stopped}")
