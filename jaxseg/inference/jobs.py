"""Input images of a prediction, and the files to write for each."""

import dataclasses
import itertools
import os
from collections.abc import Sequence
from pathlib import Path

from jaxseg.base import extra
from jaxseg.base.errors import DataError, UserError
from jaxseg.base.files import try_writing
from jaxseg.data.find.listing import EXTENSIONS, list_images
from jaxseg.inference.coordinates import has_coordinates

WILDCARDS = frozenset("*?[")
NAMED = EXTENSIONS | {".vrt", ".img"}
"""Suffixes that a pattern finds; a folder's VRT is left out, as its tiles may lie there too."""


@dataclasses.dataclass(frozen=True)
class Job:
    """An image and the paths of its results."""

    image: Path
    class_map: Path
    overlay: Path | None = None
    probabilities: Path | None = None
    vector: Path | None = None
    instances: Path | None = None
    placed: bool = False
    """True if the image has coordinates, which its maps keep."""

    @property
    def targets(self) -> list[Path]:
        """Paths in the order of writing. The class map is last: if it exists, all do."""
        every = (self.probabilities, self.overlay, self.vector, self.instances, self.class_map)
        return [path for path in every if path is not None]


def plan(
    inputs: Sequence[Path],
    out: Path,
    *,
    overlay: bool = False,
    probabilities: bool = False,
    vector: str | None = None,
    instances: bool = False,
    cog: bool = False,
    shard: tuple[int, int] = (1, 1),
    overwrite: bool = False,
    skip_existing: bool = False,
    skip_bad: bool = False,
) -> tuple[list[Job], list[str]]:
    """Returns a job for each image, and the faults of images left out because of `skip_bad`.

    - `inputs`: images, folders or patterns
    - `out`: folder of the results
    - `overlay`, `probabilities`, `instances`: write these files too
    - `vector`: suffix of a file of polygons to write too
    - `cog`: write maps that need coordinates, as `vector` and `instances` do
    - `shard`: part to return, and number of parts
    - `overwrite`: replace existing files
    - `skip_existing`: leave out images whose files all exist
    - `skip_bad`: leave out images that cannot be opened

    Raises DataError listing inputs without images, images that cannot be opened or lack coordinates that are needed,
    and conflicts between files.
    """
    found, problems = find_images(inputs, out)
    placing = [name for name, given in (("--vector", vector), ("--instances", instances), ("--cog", cog)) if given]
    for flag in placing:
        extra.require("geo", flag)
    kept, jobs = not extra.missing("geo"), []
    for image, name in found:
        placed = kept and has_coordinates(image)
        job = Job(image, out / name.with_suffix(".tif" if placed else ".png"), placed=placed)
        more = {"overlay": out / "overlays" / name.with_suffix(".png") if overlay else None}
        if probabilities:
            more["probabilities"] = out / "probabilities" / name.with_suffix(".tif" if placed else ".npy")
        if vector:
            more["vector"] = out / name.with_suffix(f".{vector}")
        if instances:
            more["instances"] = out / "instances" / name.with_suffix(".tif")
        jobs.append(dataclasses.replace(job, **more))
    part, parts = shard
    problems += clashes(jobs, may_exist=True) if parts > 1 else []
    jobs = jobs[part - 1 :: parts]
    if skip_existing:
        jobs = [job for job in jobs if not all(target.exists() for target in job.targets)]
    bad = {job.image: problem for job in jobs if (problem := look_at(job.image)) is not None}
    needed = f"has no coordinates, which {' and '.join(placing)} need{'s' * (len(placing) == 1)}"
    problems += [f"{job.image}: {needed}" for job in jobs if placing and not job.placed and job.image not in bad]
    if skip_bad:
        jobs = [job for job in jobs if job.image not in bad]
    else:
        problems += bad.values()
    problems += clashes(jobs, may_exist=overwrite or skip_existing)
    if problems:
        raise DataError("Nothing was predicted.", list(dict.fromkeys(problems)))
    return jobs, list(bad.values())


def find_images(inputs: Sequence[Path], out: Path) -> tuple[list[tuple[Path, Path]], list[str]]:
    """Returns pairs of an image and its path relative to its input, without duplicates, and the faults of inputs.

    Files in `out` are results of an earlier run and are left out, if `out` is a folder inside an input.
    """
    found, problems, made = {}, [], out.resolve()
    base_of = common_base([given for given in inputs if given.is_file()])
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
            base, files = base_of or given.parent, [given]
        if made != base.resolve():
            files = [file for file in files if made not in file.resolve().parents]
        if not files:
            problems.append(f"{given}: no images {'match' if pattern else 'in it'}; they end with {endings()}")
        found |= {(file, file.relative_to(base)): None for file in files}
    return list(found), problems


def common_base(files: Sequence[Path]) -> Path | None:
    """Returns the folder above all files if two of them have the same name, as a shell's s/*/image.png; else None."""
    stems = [file.stem for file in dict.fromkeys(files)]
    if len(set(stems)) == len(stems) or len({file.is_absolute() for file in files}) > 1:
        return None
    return Path(os.path.commonpath([file.parent for file in files]))


def matches(pattern: Path) -> tuple[Path, list[Path]]:
    """Returns the folder before the first wildcard, and the images that match, without hidden ones.

    Raises DataError for a pattern that this Python version does not support.
    """
    base = Path(*itertools.takewhile(lambda part: not WILDCARDS & set(part), pattern.parts))
    try:
        files = sorted(base.glob(str(pattern.relative_to(base))))
    except ValueError as error:  # Python before 3.13 takes ** for whole names only
        raise DataError("Nothing was predicted.", [f"{pattern}: {error}"]) from None

    def shown(file: Path) -> bool:
        return not any(part.startswith(".") for part in file.relative_to(base).parts)

    return base, [file for file in files if file.suffix.lower() in NAMED and shown(file) and file.is_file()]


def endings() -> str:
    """Returns the suffixes of image files, for messages."""
    return " ".join(sorted(EXTENSIONS))


def look_at(image: Path) -> str | None:
    """Returns the fault of a file that is empty or cannot be opened; None if there is none."""
    try:
        with open(image, "rb") as file:
            return None if file.read(1) else f"{image}: is empty"
    except OSError as error:
        return f"{image}: cannot be opened ({error.strerror or error})"


def clashes(jobs: Sequence[Job], may_exist: bool) -> list[str]:
    """Lists results that would replace an image, another result or, unless `may_exist`, an existing file."""
    problems, taken, images = [], {}, {job.image.resolve() for job in jobs}
    for job in jobs:
        for target in job.targets:
            other = taken.setdefault(target, job.image)
            if other != job.image:
                problems.append(
                    f"{job.image}: differs from {other} only in its suffix; both would be {target}. Rename one."
                )
            elif target.resolve() in images:
                problems.append(f"{target}: is an image itself; give another -o")
            elif target.exists() and not may_exist:
                problems.append(f"{target}: exists; give --overwrite to replace it or --skip-existing to keep it")
    return problems


def try_out(out: Path) -> None:
    """Raises UserError unless files can be written in the folder `out`, which need not exist."""
    try:
        try_writing(out)
    except OSError as error:
        raise UserError(f"-o {out}: cannot be written to ({error.strerror or error}). Give another -o.") from None
