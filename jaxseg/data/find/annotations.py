"""Recognizes annotations that are no pictures: COCO, labelme, YOLO, Supervisely and GeoJSON files, and boxes."""

import json
import re
from collections import Counter
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

ENDS = frozenset({".json", ".geojson", ".txt", ".xml"})
MOST_READ = 50  # files of a folder that are looked into
LARGEST = 1 << 30  # bytes; a larger file is not looked into
CONVERTED = ("COCO", "labelme", "YOLO")
"""Kinds that `python -m jaxseg.convert_labels` turns into masks."""
WAYS = {
    "Supervisely": "export them from Supervisely as 'Segmentation masks', then train on those",
    "GeoJSON": "burn them with the image's grid: gdal_rasterize -a CLASS -ot Byte -a_srs ... labels.geojson mask.tif",
    "VOC XML": "these are boxes, not outlines of objects: label the pixels, or train a detector",
    "YOLO boxes": "these are boxes, not outlines of objects: label the pixels, or train a detector",
}


def kind_of(file: Path) -> str | None:
    """Kind of an annotation file, such as "COCO"; None if it is none, or cannot be read."""
    try:
        if file.suffix.lower() not in ENDS or file.stat().st_size > LARGEST:
            return None
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        return None
    if file.suffix.lower() == ".txt":
        return yolo_kind(text)
    if file.suffix.lower() == ".xml":
        return "VOC XML" if "<annotation" in text and "<bndbox" in text else None
    try:
        return json_kind(json.loads(text))
    except (ValueError, RecursionError):
        return None


def json_kind(content: object) -> str | None:
    """Kind of the content of a JSON file."""
    if not isinstance(content, dict):
        return None
    if isinstance(content.get("annotations"), list) and isinstance(content.get("images"), list):
        return "COCO"
    if isinstance(content.get("shapes"), list):
        return "labelme"
    if isinstance(content.get("objects"), list) and isinstance(content.get("size"), dict):
        return "Supervisely"
    return "GeoJSON" if content.get("type") in ("FeatureCollection", "Feature") else None


def yolo_kind(text: str) -> str | None:
    """Returns "YOLO" if lines are a class and three points or more, "YOLO boxes" if a class and four numbers."""
    lines = [line.split() for line in text.splitlines() if line.strip()]
    number = re.compile(r"-?\d*\.?\d+(e-?\d+)?", re.I)
    if not lines or not all(len(line) >= 5 and line[0].isdigit() for line in lines):
        return None
    words = [word for line in lines for word in line[1:]]
    if not all(map(number.fullmatch, words)) or any(abs(float(word)) > 2 for word in words):
        return None
    return "YOLO" if any(len(line) >= 7 and len(line) % 2 for line in lines) else "YOLO boxes"


def found_in(folders: Iterable[Path], root: Path | None = None) -> list[str]:
    """Lines that name the annotation files directly in `folders` and how to convert them; empty if there are none.

    - `root`: folder to name in the command that converts them; the folder of the files if None.
    """
    lines = []
    for folder in dict.fromkeys(folders):
        if not folder.is_dir():
            continue
        files = (file for file in sorted(folder.iterdir()) if not file.name.startswith("."))
        kinds = Counter(map(kind_of, islice((f for f in files if f.suffix.lower() in ENDS), MOST_READ)))
        for kind in sorted(filter(None, kinds)):
            what = f"{folder} holds {kind} annotations, which are not masks: "
            command = f"python -m jaxseg.convert_labels {root or folder}"
            lines.append(what + (f"{command} draws masks of them" if kind in CONVERTED else WAYS[kind]))
    return lines
