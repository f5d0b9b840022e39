"""Pairs of image and mask on disk, and one sample of them as NumPy arrays, read with OpenCV.

Two namings are known: the article's, where the mask of `<name>.png` is `<name up to its first dot>_mask.png`, and
equal stems. An image comes as OpenCV reads it, uint8 BGR; a mask as the article makes it: BGR to gray, then 255 is
class 1 and all else class 0.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from jaxseg.config import Data, UserError

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".jp2", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm"})
LAYOUTS = """\
  train/ Ltrain/ val/ Lval/                       image <name>.png, mask <name>_mask.png
  train/images train/masks val/images val/masks   masks with their image's stem, or <name>_mask.png
  images/ masks/                                  the same, --validation percent set aside"""


@dataclasses.dataclass(frozen=True, order=True)
class Pair:
    """Where one sample lies."""

    image: Path
    mask: Path


class DataError(UserError):
    """Something is wrong with the files; the message lists everything that is."""

    def __init__(self, headline: str, problems: Sequence[str], advice: str = "", most: int = 20):
        shown = [f"  {problem}" for problem in problems[:most]]
        if len(problems) > most:
            shown.append(f"  ... and {len(problems) - most} more")
        super().__init__("\n".join([headline, *shown, *([advice] if advice else [])]))
        self.headline, self.problems, self.advice = headline, tuple(problems), advice


def find_splits(settings: Data, seed: int) -> tuple[list[Pair], list[Pair]]:
    """Training and validation pairs of the folders that `settings` name, each sorted by name.

    With no validation folder, `settings.validation` percent of the pairs, drawn from `seed`, are set aside.
    Raises DataError listing every folder, image or mask that is missing.
    """
    (images, masks), validation = _folders(settings)
    if validation is not None:
        training, validation = collect([(images, masks), validation], lambda folders: find_pairs(*folders))
        return training, validation
    pairs = find_pairs(images, masks)
    aside = max(1, round(len(pairs) * settings.validation / 100))
    if aside >= len(pairs):
        raise DataError(
            f"{images}: {len(pairs)} image is too few to set {settings.validation:g} percent aside for validation.",
            [],
            "Add images, or give --val-images and --val-masks.",
        )
    chosen = set(np.random.default_rng(seed).permutation(len(pairs))[:aside].tolist())
    return [p for i, p in enumerate(pairs) if i not in chosen], [p for i, p in enumerate(pairs) if i in chosen]


def _folders(settings: Data) -> tuple[tuple[Path, Path], tuple[Path, Path] | None]:
    """((images, masks), (validation images, validation masks) or None)."""
    if settings.images is not None:
        explicit = (settings.images, settings.masks)
        return explicit, (settings.val_images, settings.val_masks) if settings.val_images else None
    root = settings.data
    layouts = [
        ((root / "train", root / "Ltrain"), (root / "val", root / "Lval")),
        ((root / "train/images", root / "train/masks"), (root / "val/images", root / "val/masks")),
        ((root / "images", root / "masks"), None),
    ]
    for training, validation in layouts:
        if all(folder.is_dir() for folder in training + (validation or ())):
            return training, validation
    raise DataError(
        f"--data {root}: {'no such folder' if not root.is_dir() else 'none of the known layouts'}. Expected one of",
        [line.strip() for line in LAYOUTS.splitlines()],
        "or give the folders with --images, --masks, --val-images and --val-masks.",
    )


def find_pairs(images: Path, masks: Path) -> list[Pair]:
    """All pairs of the two folders, sorted by image name. Dot files, folders and files that are no images are skipped.

    Raises DataError listing every image without a mask, every mask without an image, and names that are not unique.
    """
    if missing := [f"{folder}: no such folder" for folder in (images, masks) if not folder.is_dir()]:
        raise DataError("Cannot read the tiles.", missing)
    image_files, mask_files = (list_images(folder) for folder in (images, masks))
    if not image_files:
        raise DataError(f"{images}: no images in it.", [], f"Known extensions: {' '.join(sorted(EXTENSIONS))}")
    articles = any(file.name.endswith("_mask.png") for file in mask_files)
    rule = "<image name up to its first dot>_mask.png" if articles else "the image's own stem"

    def key_of_image(file: Path) -> str:
        return f"{file.name.split('.')[0]}_mask.png" if articles else file.stem

    def key_of_mask(file: Path) -> str:
        return file.name if articles else file.stem

    problems = []
    by_key = {}
    for file in mask_files:
        if (other := by_key.setdefault(key_of_mask(file), file)) is not file:
            problems.append(f"{file}: has the same stem as {other.name}, so which is the mask is not clear")
    claimed = {}
    for file in image_files:
        key = key_of_image(file)
        if key not in by_key:
            problems.append(f"{file}: has no mask, expected {masks / (key if articles else key + '.*')}")
        elif by_key[key] == file:
            claimed[key] = file
            problems.append(f"{file}: would be its own mask; images and masks must be different files")
        elif (other := claimed.setdefault(key, file)) is not file:
            problems.append(f"{file}: has the same mask as {other.name} ({by_key[key].name})")
    problems += [f"{file}: is a mask with no image" for key, file in by_key.items() if key not in claimed]
    if problems:
        raise DataError(
            f"{len(image_files)} images in {images} and {len(mask_files)} masks in {masks} do not pair up:",
            problems,
            f"A mask's name is {rule}. Mend the names, or remove the files that do not belong.",
        )
    return [Pair(file, by_key[key_of_image(file)]) for file in image_files]


def list_images(folder: Path) -> list[Path]:
    """The images in a folder, sorted by name, without dot files."""
    return sorted(
        file
        for file in folder.iterdir()
        if file.suffix.lower() in EXTENSIONS and not file.name.startswith(".") and file.is_file()
    )


def read_image(path: Path) -> np.ndarray:
    """uint8 [h w 3], BGR, as `cv2.imread` gives it. Raises DataError when the file does not decode."""
    try:
        data = np.fromfile(path, np.uint8)  # imread itself cannot open every name on Windows
    except OSError as error:
        raise DataError("Cannot read the tiles.", [f"{path}: cannot be opened ({error.strerror or error})"]) from None
    image = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    if image is None:
        raise DataError("Cannot read the tiles.", [f"{path}: OpenCV cannot decode it ({data.size} bytes)"])
    return image


def read_gray(path: Path) -> np.ndarray:
    """uint8 [h w]: BGR to gray by OpenCV's fixed-point formula; gray (v, v, v) stays v."""
    return cv2.cvtColor(read_image(path), cv2.COLOR_BGR2GRAY)


def read_mask(path: Path) -> np.ndarray:
    """uint8 [h w]: 1 where the gray value is 255, else 0."""
    return read_gray(path) // 255


def read_sample(pair: Pair) -> dict[str, np.ndarray]:
    """{"image": uint8 [h w 3], "mask": uint8 [h w]}."""
    return {"image": read_image(pair.image), "mask": read_mask(pair.mask)}


@dataclasses.dataclass(frozen=True)
class Survey:
    """What a folder holds: number of pairs, their size, and the pixels of each class."""

    pairs: int
    height: int
    width: int
    class_pixels: tuple[int, ...]
    lost_pixels: int
    """Mask pixels neither 0 nor 255: antialiased borders, say, which become class 0."""

    @property
    def decoded_bytes(self) -> int:
        """Memory that the decoded tiles and masks take."""
        return self.pairs * self.height * self.width * 4


def survey(pairs: Sequence[Pair], workers: int = 0) -> Survey:
    """Decodes every file once.

    Raises DataError listing every file that does not decode, every mask of another size than its image, every pair of
    another size than most, and, when no mask has a pixel of 255, what values they have instead.
    """
    results = list(_map(_inspect, pairs, workers))
    problems = [problem for result in results for problem in result["problems"]]
    sizes = Counter(result["size"] for result in results if result["size"] is not None)
    usual = sizes.most_common(1)[0][0] if sizes else None
    for pair, result in zip(pairs, results):
        if result["size"] not in (None, usual):
            (h, w), (eh, ew) = result["size"], usual
            problems.append(
                f"{pair.image}: is {w}x{h}, but {sizes[usual]} of {len(pairs)} are {ew}x{eh}; tiles must be of one size"
            )
    histogram = sum((result["histogram"] for result in results), np.zeros(256, np.int64))
    values = np.flatnonzero(histogram)
    if not problems and not histogram[255] and values.any():
        problems.append(
            f"masks in {pairs[0].mask.parent} hold the values {_few(values)}, and 255, which marks a field, never"
        )
    if problems:
        raise DataError(
            f"{len(problems)} problems in {len(pairs)} pairs of image and mask:", problems, "Nothing was trained."
        )
    fields, empty = int(histogram[255]), int(histogram[0])
    return Survey(len(pairs), *usual, (int(histogram.sum()) - fields, fields), int(histogram.sum()) - fields - empty)


def survey_splits(splits: Iterable[Sequence[Pair]], workers: int = 0) -> list[Survey]:
    """`survey` of each split; one DataError for all that is wrong in any of them."""
    return collect(splits, lambda pairs: survey(pairs, workers))


def collect(items: Iterable, look: Callable) -> list:
    """`look` at each item; one DataError for what is wrong with any of them."""
    results, errors = [], []
    for item in items:
        try:
            results.append(look(item))
        except DataError as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        problems = [problem for error in errors for problem in error.problems]
        raise DataError("\n".join(e.headline for e in errors), problems, "\n".join({e.advice: 0 for e in errors}))
    return results


def _few(values: Iterable[object], most: int = 8) -> str:
    values = [str(v) for v in values]
    return ", ".join(values[:most]) + (f", ... ({len(values)} values)" if len(values) > most else "")


def _inspect(pair: Pair) -> dict:
    problems, arrays = [], []
    for read, path in ((read_image, pair.image), (read_gray, pair.mask)):
        try:
            arrays.append(read(path))
        except DataError as error:
            problems += error.problems
        except cv2.error as error:
            problems.append(f"{path}: OpenCV cannot decode it ({error.err})")
    if problems:
        return {"problems": problems, "size": None, "histogram": np.zeros(256, np.int64)}
    image, gray = arrays
    if image.shape[:2] != gray.shape:
        sizes = f"{gray.shape[1]}x{gray.shape[0]}, but its image {pair.image.name} is {image.shape[1]}x{image.shape[0]}"
        problems.append(f"{pair.mask}: is {sizes}; they must be equal")
    return {"problems": problems, "size": image.shape[:2], "histogram": np.bincount(gray.ravel(), minlength=256)}


def _map(function, items, workers: int):
    if workers == 0:
        return map(function, items)
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(function, items))
