"""Writes masks of all annotation files in a folder: the body of `jaxseg.convert_labels`."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2

from jaxseg.base.errors import DataError, UserError
from jaxseg.base.files import replace
from jaxseg.base.options import Conversion
from jaxseg.base.terminal import command, console
from jaxseg.data.convert import read
from jaxseg.data.convert.draw import Shape, draw
from jaxseg.data.convert.places import Images, common, mask_path, where
from jaxseg.data.find.annotations import CONVERTED, WAYS, kind_of
from jaxseg.data.read.images import read_pixels
from jaxseg.data.read.masks import MOST_CLASSES

IGNORED = 255
NAMES = "classes.txt"


@dataclasses.dataclass(frozen=True)
class Job:
    """A mask to write: of an image, from shapes."""

    target: Path
    image: Path
    shapes: tuple[Shape, ...]
    size: tuple[int, int]


def convert(options: Conversion) -> list[Path]:
    """Writes a mask for each annotated image and classes.txt, and returns the paths of the masks.

    Value 0 is background; classes follow from 1. Raises DataError listing all faults; then nothing is written.
    """
    root = options.folder if options.folder.is_dir() else options.folder.parent
    files, kind = annotation_files(options)
    images = Images(root)
    annotated, names = READERS[kind](files, root, images)
    numbers = number_classes(names, annotated)
    jobs, problems, notes = plan(annotated, images, root, options.out)
    targets = [job.target for job in jobs]
    names_file = (options.out or root) / NAMES
    listed = sorted((number, name) for name, number in numbers.items() if 0 < number < IGNORED)
    text = "\n".join(["background", *(name for _, name in listed)]) + "\n"
    problems += [f"{job.target}: exists, and is not replaced" for job in jobs if job.target.exists()]
    there = names_file.exists()
    if there and not same_names(names_file, text, kind):
        problems.append(f"{names_file}: exists with other names, and is not replaced")
    if problems:
        advice = "Nothing was written. Fix these, or give another -o."
        raise DataError(f"{len(problems)} problems with {options.folder}:", problems, advice)
    try:
        for job in jobs:
            job.target.parent.mkdir(parents=True, exist_ok=True)
            mask = draw(job.shapes, numbers, *job.size)
            replace(job.target, cv2.imencode(".png", mask)[1].tobytes())
        if not there:
            names_file.parent.mkdir(parents=True, exist_ok=True)
            replace(names_file, text.encode())
    except OSError as error:
        what = f"{error.filename or job.target}: cannot be written ({error.strerror or error})"
        raise UserError(f"{what}. Masks written before are complete; remove them before the next try.") from None
    tell(kind, jobs, annotated, numbers, None if there else names_file)
    for note in notes:
        console.print(note, style="yellow")
    console.print("  " + command("jaxseg.check", *where([(job.image, job.target) for job in jobs], root)))
    return targets


def same_names(file: Path, text: str, kind: str) -> bool:
    """True if a classes.txt holds the lines of `text`, or for YOLO those without the background."""
    held = file.read_text(encoding="utf-8-sig", errors="replace").split()
    return held == text.split() or (kind == "YOLO" and held == text.split()[1:])


def annotation_files(options: Conversion) -> tuple[list[Path], str]:
    """Finds the annotation files and their kind. Raises UserError if there are none, or several kinds."""
    folder = options.folder
    if not folder.exists():
        raise UserError(f"{folder}: no such file or folder")
    below = [folder] if folder.is_file() else sorted(file for file in folder.rglob("*") if file.is_file())
    kinds = {file: kind for file in below if (kind := kind_of(file)) is not None}
    if options.format != "auto":
        kinds = {file: kind for file, kind in kinds.items() if kind.casefold() == options.format}
    found = Counter(kind for kind in kinds.values() if kind in CONVERTED)
    if len(found) == 1:
        (kind,) = found
        return [file for file in kinds if kinds[file] == kind], kind
    if found:
        held = ", ".join(f"{number} of {kind}" for kind, number in found.items())
        raise UserError(f"{folder}: annotations of several kinds: {held}.\nGive --format to choose.")
    others = [f"{kind} ({number} files): {WAYS[kind]}" for kind, number in Counter(kinds.values()).items()]
    raise DataError(
        f"{folder}: no annotations of {', '.join(CONVERTED)} found.", others, "Is it the right folder?" * (not others)
    )


def of_coco(files: Sequence[Path], root: Path, images: Images) -> tuple[list[read.Annotated], list[str]]:
    """Reads COCO files; images without objects are background."""
    read_files = [read.read_coco(file) for file in files]
    names = list(dict.fromkeys(name for _, of in read_files for name in of))
    return [image for of, _ in read_files for image in of], names


def of_labelme(files: Sequence[Path], root: Path, images: Images) -> tuple[list[read.Annotated], list[str]]:
    """Reads labelme files; classes are in the order of their names."""
    found = [read.read_labelme(file) for file in files]
    return found, sorted({shape.name for image in found for shape in image.shapes})


def of_yolo(files: Sequence[Path], root: Path, images: Images) -> tuple[list[read.Annotated], list[str]]:
    """Reads YOLO files, whose polygons are in shares of their images; images without a file are background."""
    names, found, used = read.yolo_names(root), [], set()
    for file in files:
        stem, shapes, boxes = read.read_yolo(file, names)
        image = images.find(stem, file.parent)
        used |= set(image)
        height, width = size = image_size(image[0]) if len(image) == 1 else (0, 0)
        scaled = tuple(Shape(name, (polygon * (width, height),)) for name, polygon in shapes)
        found.append(read.Annotated(file, stem, scaled, size, ("box",) * boxes))
    folders = {image.parent for image in used}
    for image in images.files:
        if image.parent in folders and image not in used:
            found.append(read.Annotated(image, image.name, (), image_size(image)))
    return found, list(dict.fromkeys([*names, *sorted(shape.name for image in found for shape in image.shapes)]))


def image_size(image: Path) -> tuple[int, int]:
    """Height and width of an image in pixels."""
    return read_pixels(image).array.shape[:2]


READERS = {"COCO": of_coco, "labelme": of_labelme, "YOLO": of_yolo}


def number_classes(names: Iterable[str], annotated: Iterable[read.Annotated]) -> dict[str, int]:
    """Numbers classes from 1, in order; background is 0, and labelme's __ignore__ 255. Raises UserError."""
    classes = [name for name in names if name.casefold() not in read.BACKGROUND and name != read.IGNORED]
    if not any(image.shapes for image in annotated):
        raise UserError("The annotations hold no polygons: nothing to draw.")
    if len(classes) >= MOST_CLASSES:
        raise UserError(f"{len(classes)} classes; expected at most {MOST_CLASSES - 1} besides the background.")
    numbers = {name: number for number, name in enumerate(classes, 1)}
    return numbers | {name: 0 for name in names if name.casefold() in read.BACKGROUND} | {read.IGNORED: IGNORED}


def plan(
    annotated: Sequence[read.Annotated], images: Images, root: Path, out: Path | None
) -> tuple[list[Job], list[str], list[str]]:
    """Returns a job for each annotated image, the faults, and notes on images that are left out."""
    jobs, problems, missing, taken = [], [], [], {}
    for entry in annotated:
        found = images.find(entry.image, entry.file.parent)
        if not found:
            missing.append(entry.image)
            continue
        if len(found) > 1:
            problems.append(f"{entry.file}: its image {entry.image} may be any of {', '.join(map(str, found[:3]))}")
            continue
        target = mask_path(found[0], root, out)
        if target in taken:
            problems.append(
                f"{found[0]}: is annotated twice, in {taken[target]} and {entry.file}; name one file of them"
            )
            continue
        taken[target] = entry.file
        jobs.append(Job(target, found[0], entry.shapes, entry.size or image_size(found[0])))
    if missing and not jobs:
        problems += [f"{name}: no such image below {root}" for name in missing]
    notes = [f"{len(missing)} annotated images are not below {root}, such as {missing[0]}: no masks"] if missing else []
    drawn = {job.image for job in jobs}
    if bare := [image for image in images.files if image.parent in {i.parent for i in drawn} and image not in drawn]:
        notes.append(f"{len(bare)} images without annotations, such as {bare[0]}: no masks")
    return jobs, problems, notes


def tell(
    kind: str,
    jobs: Sequence[Job],
    annotated: Sequence[read.Annotated],
    numbers: dict[str, int],
    names_file: Path | None,
) -> None:
    """Prints what was written, in which order objects are drawn, and what was left out."""
    beside = f", and {names_file}" if names_file else ""
    console.print(f"{len(jobs)} masks of {kind} annotations in {common(job.target for job in jobs)}{beside}")
    used = {shape.name for job in jobs for shape in job.shapes}
    classes = [f"{n} {name}" for name, n in numbers.items() if 0 < n < IGNORED or name in used]
    console.print(f"values {', '.join(['0 background', *classes])}")
    order = "larger objects first" if kind == "COCO" else "in the order of the file"
    console.print(f"Order of drawing: {order}; where objects overlap, the later one covers the earlier one.")
    if left := Counter(what for entry in annotated for what in entry.left_out):
        listed = ", ".join(f"{number} {what}" for what, number in left.items())
        console.print(f"left out, as they outline no object: {listed}", style="yellow")
