"""Creates or reopens the folder of a run, without overwriting anything that is no run."""

import dataclasses
import datetime
import json
import shutil
from pathlib import Path

from jaxseg.base import config as settings
from jaxseg.base.config import Config, Run
from jaxseg.base.errors import UserError
from jaxseg.base.files import replace, try_writing


def try_target(settings: Run) -> None:
    """Raises UserError if the folder of a run cannot be written, before any work is done."""
    if settings.resume is not None:
        target, name = settings.resume, f"--resume {settings.resume}"
        advice = "Copy the run to a folder that can be written, and resume the copy"
    else:
        target = settings.out or Path("runs")
        name, advice = f"--out {target}", "Make room, or give another --out"
    try:
        try_writing(target)
    except OSError as error:
        raise UserError(f"{name}: cannot be written ({error.strerror or error}). {advice}.") from None


def open_run(config: Config, split: dict[str, list[str]]) -> Path:
    """Makes the folder of a run with config.json and split.json, or reopens that of `--resume`, and returns it.

    - `config`: settings of the run; a resumed run's config.json is updated with them
    - `split`: names of the images, by "training" and "validation"

    Raises UserError when the folder is not empty (without --overwrite), when it is no run, when it cannot be made, or
    when a resumed run would read other images than before.
    """
    if config.run.resume is not None:
        run = config.run.resume
        check_split(run / "split.json", split)
        before = settings.load(run).run
        kept = dataclasses.replace(
            config, run=dataclasses.replace(config.run, resume=None, out=before.out, load=before.load)
        )
        settings.save(kept, run / "config.json")
        return run
    run = config.run.out or Path("runs") / datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        if not config.run.overwrite:
            raise UserError(f"--out {run}: is not empty. Give another folder, or --overwrite to delete its contents.")
        if not (run / "config.json").is_file():
            raise UserError(f"--out {run}: has no config.json, so it is no run, and --overwrite will not delete it.")
        shutil.rmtree(run)
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {run}: cannot be made ({error.strerror or error})") from None
    replace(run / "split.json", (json.dumps(split, indent=1, ensure_ascii=False) + "\n").encode())
    settings.save(config, run / "config.json")
    return run


def check_split(path: Path, split: dict[str, list[str]]) -> None:
    """Raises UserError unless `split` has the same images as split.json at `path`, or when that cannot be read."""
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        before = {part: set(saved[part]) for part in split}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); without it the run cannot be resumed") from None
    problems = []
    for part, names in split.items():
        gone, new = (sorted(a - b) for a, b in ((before[part], set(names)), (set(names), before[part])))
        problems += [f"{part}: {len(gone)} images are missing, such as {gone[0]}"] if gone else []
        problems += [f"{part}: {len(new)} images are new, such as {new[0]}"] if new else []
    if problems:
        found = "\n".join(f"  {problem}" for problem in problems)
        raise UserError(f"the data changed since the run began ({path}):\n{found}\nRestore it, or start a new run.")
