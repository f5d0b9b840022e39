"""Which images the inputs of a command mean, and which files are to be made of each."""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path

from jaxseg.base.errors import DataError
from jaxseg.data.find.listing import EXTENSIONS, list_images

WILDCARDS = frozenset("*?[")


@dataclasses.dataclass(frozen=True)
class Job:
    """An image and the files to be made of it."""

    image: Path
    class_map: Path
    overlay: Path | None = None
    probabilities: Path | None = None

    @property
    def targets(self) -> list[Path]:
        """In the order of writing: where the class map is, all is."""
        return [path for path in (self.probabilities, self.overlay, self.class_map) if path is not None]


def plan(
    inputs: Sequence[Path],
    out: Path,
    *,
    overlay: bool = False,
    probabilities: bool = False,
    overwrite: bool = False,
    skip_existing: bool = False,
    skip_bad: bool = False,
) -> tuple[list[Job], list[str]]:
    """A job for each image, and what is wrong with files that are left out because of `skip_bad`.

    `skip_existing` leaves out images whose files are all there. Raises DataError listing inputs without images, files
    that cannot be opened, and those that would be written over or twice.
    """
    found, problems = find_images(inputs, out)
    jobs = []
    for image, name in found:
        targets = [out / name.with_suffix(".png")]
        targets.append(out / "overlays" / name.with_suffix(".png") if overlay else None)
        targets.append(out / "probabilities" / name.with_suffix(".npy") if probabilities else None)
        jobs.append(Job(image, *targets))
    if skip_existing:
        jobs = [job for job in jobs if not all(target.exists() for target in job.targets)]
    bad = {job.image: problem for job in jobs if (problem := look_at(job.image)) is not None}
    if skip_bad:
        jobs = [job for job in jobs if job.image not in bad]
    else:
        problems += bad.values()
    problems += clashes(jobs, may_exist=overwrite or skip_existing)
    if problems:
        raise DataError("Nothing was predicted.", problems)
    return jobs, list(bad.values())


def find_images(inputs: Sequence[Path], out: Path) -> tuple[list[tuple[Path, Path]], list[str]]:
    """Images, each once, with their paths below their folder or below the pattern's plain part; and what there is to
    say of inputs without any.

    What lies in `out`, when that is a folder inside an input, was made by an earlier run and is left out.
    """
    found, problems, made = {}, [], out.resolve()
    for given in inputs:
        pattern = not given.exists() and bool(WILDCARDS & set(str(given)))
        if not given.exists() and not pattern:
            problems.append(f"{given}: no such file or folder")
            continue
        if given.is_dir():
            base, files = given, list_images(given, recursive=True)
        elif pattern:
            base, files = matches(given)
        else:
            base, files = given.parent, [given]
        if made != base.resolve():
            files = [file for file in files if made not in file.resolve().parents]
        if not files:
            problems.append(f"{given}: no images {'match' if pattern else 'in it'}; they end with {endings()}")
        found |= {(file, file.relative_to(base)): None for file in files}
    return list(found), problems


def matches(pattern: Path) -> tuple[Path, list[Path]]:
    """The folder before the first wildcard, and the images below it, without hidden ones."""
    base = Path(*itertools.takewhile(lambda part: not WILDCARDS & set(part), pattern.parts))
    try:
        files = sorted(base.glob(str(pattern.relative_to(base))))
    except ValueError as error:  # Python before 3.13 takes ** for whole names only
        raise DataError("Nothing was predicted.", [f"{pattern}: {error}"]) from None

    def shown(file: Path) -> bool:
        return not any(part.startswith(".") for part in file.relative_to(base).parts)

    return base, [file for file in files if file.suffix.lower() in EXTENSIONS and shown(file) and file.is_file()]


def endings() -> str:
    """Of the names of images."""
    return " ".join(sorted(EXTENSIONS))


def look_at(image: Path) -> str | None:
    """What is wrong with a file that can be seen without decoding it."""
    try:
        with open(image, "rb") as file:
            return None if file.read(1) else f"{image}: is empty"
    except OSError as error:
        return f"{image}: cannot be opened ({error.strerror or error})"


def clashes(jobs: Sequence[Job], may_exist: bool) -> list[str]:
    """Files that would be written over an image, or twice, or over what is there."""
    problems, taken, images = [], {}, {job.image.resolve() for job in jobs}
    for job in jobs:
        for target in job.targets:
            other = taken.setdefault(target, job.image)
            if other != job.image:
                problems.append(f"{job.image}: has the same name but for its ending as {other}; both would be {target}")
            elif target.resolve() in images:
                problems.append(f"{target}: is an image itself; give another -o")
            elif target.exists() and not may_exist:
                problems.append(f"{target}: exists; give --overwrite to replace it or --skip-existing to keep it")
    return problems
