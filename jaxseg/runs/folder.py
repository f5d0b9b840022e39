"""Makes or reopens the folder of a run, locked against other processes. Deletes only what a run wrote."""

import contextlib
import dataclasses
import datetime
import itertools
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from jaxseg.base import config as settings
from jaxseg.base.config import Config
from jaxseg.base.errors import UserError
from jaxseg.base.files import replace, try_writing
from jaxseg.base.terminal import console
from jaxseg.runs import lock
from jaxseg.runs.record import check_split

WRITTEN = (
    "config.json", "split.json", "log.jsonl", "README.md", "curves.png", "samples/batch.png",
    "samples/predictions.png", "tensorboard/events.out.tfevents.*", "trackers/*.json", "checkpoints/best",
    "checkpoints/last", "evaluation*/metrics.json", "evaluation*/per_image.csv", "evaluation*/confusion.png",
    "evaluation*/worst.png", ".*-*.tmp", "*/.*-*.tmp",
)  # fmt: skip
"""Patterns of the files and folders that jaxseg writes into a run's folder. The first is deleted last."""


def check_target(config: Config) -> None:
    """Raises UserError when the folder of the run cannot be used, or another process is writing it.

    `open_run` looks again; this look comes before data are read.
    """
    run = config.run.resume or config.run.out
    if not config.run.dry_run:
        try_target(config)
    if run is None or not run.exists():
        return
    if not run.is_dir():
        raise UserError(f"--out {run}: is a file; give a folder")
    lock.refuse_if_locked(run)
    if config.run.resume is None and not is_new(run):
        check_overwrite(run, config.run.overwrite)
        check_inputs(run, named(config))


def try_target(config: Config) -> None:
    """Raises UserError if the folder of the run cannot be written."""
    if config.run.resume is not None:
        target, name = config.run.resume, f"--resume {config.run.resume}"
        advice = "Copy the run to a folder that can be written, and resume the copy"
    else:
        target = config.run.out or Path("runs")
        name, advice = f"--out {target}", "Make room, or give another --out"
    try:
        try_writing(target)
    except OSError as error:
        raise UserError(f"{name}: cannot be written ({error.strerror or error}). {advice}.") from None


@contextlib.contextmanager
def open_run(config: Config, split: dict[str, object], files: Iterable[Path] = ()) -> Iterator[Path]:
    """Makes the folder of a run with config.json and split.json, or reopens that of `--resume`, in a `with` statement.

    - `config`: settings of the run; a resumed run's config.json is updated with them
    - `split`: images of the run, see `record.of_split`
    - `files`: images and masks of the run

    Yields the folder, locked. Raises UserError when another process writes it, when it is not empty (without
    --overwrite), when it is no run or holds what this run reads, when it cannot be written, or when a resumed run would
    read other images than before.
    """
    run = config.run.resume or config.run.out or new_folder(Path("runs"))
    check_target(config)
    try:
        if config.run.resume is None:
            run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {run}: cannot be made ({error.strerror or error})") from None
    with lock.locked(run):
        try:
            if config.run.resume is not None:
                reopen(run, config, split)
            else:
                begin(run, config, split, files)
        except OSError as error:
            raise UserError(f"{error.filename or run}: cannot be written ({error.strerror or error})") from None
        yield run


def reopen(run: Path, config: Config, split: dict[str, object]) -> None:
    """Checks a run that goes on, and updates its config.json. Arguments and errors as in `open_run`."""
    paths = [run, *(path for name in WRITTEN for path in run.glob(name)), run / "samples", run / "tensorboard"]
    if closed := [str(path) for path in paths if path.exists() and not os.access(path, os.W_OK)]:
        raise UserError(
            f"--resume {run}: cannot be written: {', '.join(closed)}. Change their permissions, or copy it."
        )
    check_split(run / "split.json", split)
    before = settings.load(run).run
    kept = dataclasses.replace(config.run, resume=None, out=before.out, load=before.load)
    settings.save(dataclasses.replace(config, run=kept), run / "config.json")


def begin(run: Path, config: Config, split: dict[str, object], files: Iterable[Path]) -> None:
    """Empties the folder of a run if it may be, and writes split.json and config.json into it."""
    if not is_new(run):
        check_overwrite(run, config.run.overwrite)
        check_inputs(run, [*named(config), *files])
        empty(run)
    replace(
        run / "split.json", (json.dumps(split, indent=1, ensure_ascii=False) + "\n").encode(errors="surrogateescape")
    )
    settings.save(config, run / "config.json")


def new_folder(root: Path) -> Path:
    """Makes a folder for a run in `root`, named after date and time; -2, -3 tell apart those of one second."""
    name = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    for number in itertools.count(1):
        run = root / (name if number == 1 else f"{name}-{number}")
        try:
            run.mkdir(parents=True)
            return run
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(f"{run}: cannot be made ({error.strerror or error}); give --out") from None
    raise AssertionError


def is_new(run: Path) -> bool:
    """True if `run` is empty, or was killed before its config.json was there."""
    return all(path.name in (lock.NAME, "split.json") or path.suffix == ".tmp" for path in run.iterdir())


def check_overwrite(run: Path, overwrite: bool) -> None:
    """Raises UserError unless `overwrite` is given and `run` is the folder of a run."""
    if not (run / "config.json").is_file():
        advice = ", and --overwrite will not delete it" if overwrite else ""
        raise UserError(
            f"--out {run}: is not empty, and has no config.json, so it is no run{advice}. Give another folder."
        )
    if not overwrite:
        raise UserError(f"--out {run}: is not empty. Give another folder, or --overwrite to delete the run in it.")
    try:
        settings.load(run)
    except UserError as error:
        raise UserError(f"--out {run}: --overwrite deletes runs only, and this is none of jaxseg's: {error}") from None


def named(config: Config) -> list[Path]:
    """Returns the folders, lists and weights that the settings name."""
    d = config.data
    paths = (d.data, d.images, d.masks, d.val_images, d.val_masks, d.train_list, d.val_list, config.run.load)
    return [path for path in paths if path is not None]


def check_inputs(run: Path, inputs: Iterable[Path]) -> None:
    """Raises UserError naming `inputs` that lie in `run`."""
    inside = [path for path in dict.fromkeys(inputs) if run.resolve() in (path.resolve(), *path.resolve().parents)]
    if inside:
        more = f" and {len(inside) - 3} more" * (len(inside) > 3)
        raise UserError(
            f"--overwrite: {run} holds what this run reads: {', '.join(map(str, inside[:3]))}{more}. "
            "Give another --out, or move them out of it."
        )


def empty(run: Path) -> None:
    """Deletes what jaxseg wrote into `run`, config.json last. Prints what else is left there."""
    for name in reversed(WRITTEN):
        for path in run.glob(name):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    for name in ("samples", "tensorboard", "trackers", "checkpoints", "evaluation*"):
        for folder in run.glob(name):
            with contextlib.suppress(OSError):  # not empty, or not a folder
                folder.rmdir()
    if left := sorted(path.name for path in run.iterdir() if path.name != lock.NAME):
        console.print(f"--overwrite left alone what jaxseg did not write: {', '.join(left)} in {run}", style="yellow")
