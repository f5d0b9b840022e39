"""Reads the objects of annotation files: COCO, labelme and YOLO."""

import base64
import contextlib
import dataclasses
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import yaml

from jaxseg.base.errors import DataError, problem
from jaxseg.data.convert.draw import Shape, from_runs, unpack_runs
from jaxseg.data.find.annotations import yolo_kind

BACKGROUND = frozenset({"background", "_background_", "__background__"})
IGNORED = "__ignore__"  # labelme's name for pixels without a label


@dataclasses.dataclass(frozen=True)
class Annotated:
    """An image with its objects, in the order of drawing."""

    file: Path
    """Annotation file."""
    image: str
    """Path or name of the image, as the file gives it."""
    shapes: tuple[Shape, ...]
    size: tuple[int, int] | None = None
    """Height and width in pixels; None if only the image has them."""
    left_out: tuple[str, ...] = ()
    """Kinds of objects that have no area, such as "point"."""


def read_coco(file: Path) -> tuple[list[Annotated], list[str]]:
    """Reads a COCO file: its images, each with larger objects first, and its classes by category id."""
    with naming(file):
        content = json.loads(file.read_text(encoding="utf-8-sig"))
        names = {c["id"]: str(c["name"]) for c in sorted(content["categories"], key=lambda c: c["id"])}
        images = {i["id"]: (str(i["file_name"]), (int(i["height"]), int(i["width"]))) for i in content["images"]}
        shapes: dict[int, list[Shape]] = {number: [] for number in images}
        boxes: Counter[int] = Counter()
        for entry in content["annotations"]:
            if not (segmentation := entry.get("segmentation")):
                boxes[entry["image_id"]] += 1
                continue
            shapes[entry["image_id"]].append(coco_shape(segmentation, names[entry["category_id"]]))
        found = []
        for number, (image, size) in images.items():
            ordered = tuple(sorted(shapes[number], key=lambda shape: -shape.area))
            found.append(Annotated(file, image, ordered, size, ("box",) * boxes[number]))
    return found, list(names.values())


def coco_shape(segmentation: list | dict, name: str) -> Shape:
    """Reads a segmentation: polygons, or run lengths, plain or compressed."""
    if isinstance(segmentation, dict):
        height, width = segmentation["size"]
        counts = segmentation["counts"]
        runs = unpack_runs(counts) if isinstance(counts, str) else [int(n) for n in counts]
        return Shape(name, mask=from_runs(runs, height, width))
    return Shape(name, tuple(points(part) for part in segmentation))


def read_labelme(file: Path) -> Annotated:
    """Reads a labelme file, with its shapes in its order."""
    with naming(file):
        content = json.loads(file.read_text(encoding="utf-8-sig"))
        size = (content.get("imageHeight"), content.get("imageWidth"))
        size = (int(size[0]), int(size[1])) if None not in size else None
        image = re.split(r"[/\\]", content.get("imagePath") or file.stem)[-1]
        shapes, left_out = [], []
        for shape in content["shapes"]:
            name, kind = str(shape["label"]), shape.get("shape_type") or "polygon"
            corners = points(np.ravel(shape["points"]), least=1)
            if kind == "mask":
                shapes.append(Shape(name, mask=labelme_mask(shape["mask"], corners, size)))
            elif (outline := labelme_outline(kind, corners)) is not None:
                shapes.append(Shape(name, (outline,)))
            else:
                left_out.append(kind)
    return Annotated(file, image, tuple(shapes), size, tuple(left_out))


def labelme_outline(kind: str, corners: np.ndarray) -> np.ndarray | None:
    """Outline of a polygon, a rectangle given by two corners, or a circle given by center and a point; else None."""
    if kind == "polygon" and len(corners) >= 3:
        return corners
    if kind == "rectangle" and len(corners) == 2:
        (left, top), (right, bottom) = corners
        return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
    if kind == "circle" and len(corners) == 2:
        angles = np.linspace(0, 2 * np.pi, 128, endpoint=False)
        radius = np.linalg.norm(corners[1] - corners[0])
        return corners[0] + radius * np.stack([np.cos(angles), np.sin(angles)], -1)
    return None


def labelme_mask(encoded: str, corners: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Places a small mask, a PNG in base64, at its left upper corner: bool [h w]."""
    small = cv2.imdecode(np.frombuffer(base64.b64decode(encoded), np.uint8), cv2.IMREAD_GRAYSCALE) > 0
    left, top = np.rint(corners.min(0)).astype(int)
    mask = np.zeros(size, bool)
    part = mask[top : top + small.shape[0], left : left + small.shape[1]]
    part[:] = small[: part.shape[0], : part.shape[1]]
    return mask


def read_yolo(file: Path, names: Sequence[str]) -> tuple[str, list[tuple[str, np.ndarray]], int]:
    """Reads a YOLO file: the stem of its image; classes with polygons in shares of the image; the number of boxes."""
    shapes, boxes = [], 0
    with naming(file):
        text = file.read_text(encoding="utf-8-sig")
        if text.strip() and yolo_kind(text) is None:
            raise ValueError("lines are not a class and numbers from 0 to 1")
        for line in filter(str.strip, text.splitlines()):
            number, *numbers = line.split()
            if len(numbers) < 6:
                boxes += 1
                continue
            name = names[int(number)] if int(number) < len(names) else f"class {number}"
            shapes.append((name, points([float(n) for n in numbers])))
    return file.stem, shapes, boxes


def yolo_names(root: Path) -> list[str]:
    """Reads YOLO's class names from classes.txt, or from a YAML file with `names`, in `root`; [] if there are none."""
    path = root / "classes.txt"
    if path.is_file():
        with naming(path):
            return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    for file in sorted([*root.glob("*.yaml"), *root.glob("*.yml")]):
        with naming(file):
            content = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
        if isinstance(content, dict) and (names := content.get("names")):
            return [str(names[i]) for i in sorted(names)] if isinstance(names, dict) else list(map(str, names))
    return []


def points(numbers: Sequence | np.ndarray, least: int = 3) -> np.ndarray:
    """Converts x, y, x, y, ... to [n 2]. Raises ValueError with fewer than `least` points, or if one is not finite."""
    array = np.asarray(numbers, np.float64)
    if array.ndim != 1 or len(array) % 2 or len(array) < 2 * least or not np.isfinite(array).all():
        raise ValueError(f"a shape of {array.size} numbers; expected x and y of {least} points or more")
    return array.reshape(-1, 2)


@contextlib.contextmanager
def naming(file: Path) -> Iterator[None]:
    """Turns errors of a file that is damaged, or of another kind, into a DataError that names it."""
    try:
        yield
    except DataError:
        raise
    except OSError as error:
        raise problem(file, f"cannot be opened ({error.strerror or error})") from None
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, cv2.error, yaml.YAMLError) as error:
        what = f"no entry {error}" if isinstance(error, KeyError) else str(error).splitlines()[0]
        raise problem(file, f"is damaged or of another kind: {what}") from None
