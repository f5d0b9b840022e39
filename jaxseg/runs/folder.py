"""The folder of a run and the signals that end it: nothing of a person's is written over, nothing of a run is lost."""

import dataclasses
import datetime
import json
import shutil
from pathlib import Path

from jaxseg.base import config as settings
from jaxseg.base.config import Config
from jaxseg.base.errors import UserError


def open_run(config: Config, split: dict[str, list[str]]) -> Path:
    """Makes the run folder with config.json and split.json, or opens that of `--resume`, and returns it.

    `split`: names of the training and validation images. A resumed run's config.json is brought up to date with what
    it may be given anew. Raises UserError when the folder is not empty (without
    --overwrite) or is not a run's, and when a resumed run would read other images than before.
    """
    if config.run.resume is not None:
        run = config.run.resume
        check_split(run / "split.json", split)
        kept = dataclasses.replace(
            config, run=dataclasses.replace(config.run, resume=None, out=settings.load(run).run.out)
        )
        settings.save(kept, run / "config.json")
        return run
    run = config.run.out or Path("runs") / datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        if not config.run.overwrite:
            raise UserError(f"--out {run}: is not empty. Give another folder, or --overwrite to delete what is in it.")
        if not (run / "config.json").is_file():
            raise UserError(f"--out {run}: has no config.json, so it is no run, and --overwrite will not delete it.")
        shutil.rmtree(run)
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {run}: cannot be made ({error.strerror or error})") from None
    (run / "split.json").write_text(json.dumps(split, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    settings.save(config, run / "config.json")
    return run


def check_split(path: Path, split: dict[str, list[str]]) -> None:
    """Raises UserError unless the images are those that the run began with."""
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        before = {part: set(saved[part]) for part in split}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); without it the run cannot be resumed") from None
    problems = []
    for part, names in split.items():
        gone, new = (sorted(a - b) for a, b in ((before[part], set(names)), (set(names), before[part])))
        problems += [f"{part}: {len(gone)} images are gone, such as {gone[0]}"] if gone else []
        problems += [f"{part}: {len(new)} images are new, such as {new[0]}"] if new else []
    if problems:
        found = "\n".join(f"  {problem}" for problem in problems)
        raise UserError(f"the data changed since the run began ({path}):\n{found}\nRestore it, or start a new run.")
