"""Masks from polygons: which pixels, which values, and what is refused."""

import base64
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from jaxseg import convert_labels
from jaxseg.data.convert.draw import Shape, draw, fill, from_runs, unpack_runs
from jaxseg.data.convert.labels import same_names
from jaxseg.data.convert.read import labelme_outline
from jaxseg.data.find.annotations import kind_of

SQUARE = [2, 2, 6, 2, 6, 6, 2, 6]


def polygon(*numbers: float) -> np.ndarray:
    return np.array(numbers, float).reshape(-1, 2)


def image(path: Path, height: int = 10, width: int = 12) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", np.zeros((height, width, 3), np.uint8))[1].tobytes())


def read(path: Path) -> np.ndarray:
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def boxed(height: int, width: int, **boxes: tuple[int, int, int, int]) -> np.ndarray:
    """Zeros with boxes of values: v1=(top, bottom, left, right)."""
    mask = np.zeros((height, width), np.uint8)
    for name, (top, bottom, left, right) in boxes.items():
        mask[top:bottom, left:right] = int(name[1:])
    return mask


# drawing


def test_pixels_with_their_center_inside_are_filled():
    assert (fill([polygon(*SQUARE)], 10, 12) == boxed(10, 12, v1=(2, 6, 2, 6))).all()
    assert (fill([polygon(-5, -5, 3.6, -5, 3.6, 2.4, -5, 2.4)], 10, 12) == boxed(10, 12, v1=(0, 2, 0, 4))).all()
    assert not fill([polygon(20, 20, 30, 20, 30, 30)], 10, 12).any()


def test_disc_has_the_area_of_its_polygon():
    angles = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    disc = 100 + 50 * np.stack([np.cos(angles), np.sin(angles)], -1)
    y, x = np.mgrid[:200, :200] + 0.5
    assert ((y - 100) ** 2 + (x - 100) ** 2 < 2500).sum() == pytest.approx(fill([disc], 200, 200).sum(), abs=12)


def test_inner_polygon_is_a_hole_and_others_are_parts():
    outer, hole, island = (polygon(a, a, b, a, b, b, a, b) for a, b in ((0, 10), (2, 8), (4, 6)))
    apart = polygon(10, 0, 12, 0, 12, 2, 10, 2)
    expected = boxed(10, 12, v1=(0, 10, 0, 10), v2=(2, 8, 2, 8), v3=(4, 6, 4, 6), v4=(0, 2, 10, 12))
    assert (fill([hole, apart, outer, island], 10, 12) == (expected % 2 + (expected == 4) > 0)).all()
    touching = [polygon(0, 0, 6, 0, 6, 6, 0, 6), polygon(4, 0, 9, 0, 9, 6, 4, 6)]  # overlap without a hole
    assert (fill(touching, 10, 12) == boxed(10, 12, v1=(0, 6, 0, 9))).all()


def test_later_shapes_cover_earlier_ones():
    shapes = [Shape("a", (polygon(*SQUARE),)), Shape("b", (polygon(4, 4, 9, 4, 9, 9, 4, 9),))]
    expected = boxed(10, 12, v1=(2, 6, 2, 6), v2=(4, 9, 4, 9))
    assert (draw(shapes, {"a": 1, "b": 2}, 10, 12) == expected).all()


def pack(runs: list[int]) -> str:
    """COCO's compressed run lengths, as in maskApi.c."""
    text = ""
    for i, run in enumerate(runs):
        rest, more = run - (runs[i - 2] if i > 2 else 0), True
        while more:
            bits, rest = rest & 31, rest >> 5
            more = rest != (-1 if bits & 16 else 0)
            text += chr(48 + bits + 32 * more)
    return text


def test_run_lengths_are_columns_and_unpack():
    mask = boxed(10, 12, v1=(2, 6, 2, 6)) > 0
    runs = [22, 4, 6, 4, 6, 4, 6, 4, 64]
    assert (from_runs(runs, 10, 12) == mask).all()
    assert unpack_runs("f04600000j1") == runs  # what pycocotools writes for it
    for many in ([5, 100000, 3, 17, 40, 2, 900], [0, 31, 32, 33, 1]):
        assert unpack_runs(pack(many)) == many
    with pytest.raises(ValueError, match="run lengths for 5 pixels"):
        from_runs([5], 10, 12)


# files


def coco(path: Path, annotations: list[dict], **changes) -> None:
    content = {
        "images": [{"id": 7, "file_name": "a.png", "height": 10, "width": 12}],
        "categories": [{"id": 9, "name": "tree"}, {"id": 3, "name": "house"}],
        "annotations": [{"image_id": 7, "category_id": 3} | annotation for annotation in annotations],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content | changes))


def run(capsys, *argv) -> tuple[int, str]:
    code = convert_labels.main([str(arg) for arg in argv])
    out, err = capsys.readouterr()
    return code, out + err


def test_coco_polygons_become_masks_with_names(tmp_path, capsys):
    image(tmp_path / "images/a.png")
    small = [4, 4, 5, 4, 5, 5, 4, 5]
    runs = {"size": [10, 12], "counts": [90, 5, 25]}
    coco(
        tmp_path / "annotations/instances.json",
        [
            {"segmentation": [small], "category_id": 9},
            {"segmentation": [SQUARE, [8, 8, 10, 8, 10, 10, 8, 10]]},
            {"segmentation": runs, "category_id": 9, "iscrowd": 1},
            {"bbox": [1, 2, 3, 4]},
            {"bbox": [1, 2, 3, 4]},
        ],
    )
    code, said = run(capsys, tmp_path)
    assert code == 0
    expected = boxed(10, 12, v1=(2, 6, 2, 6), v2=(4, 5, 4, 5)) + boxed(10, 12, v1=(8, 10, 8, 10), v2=(0, 5, 9, 10))
    assert (read(tmp_path / "masks/a.png") == expected).all()
    assert (tmp_path / "classes.txt").read_text() == "background\nhouse\ntree\n"
    for part in ("values 0 background, 1 house, 2 tree", "larger objects first", "2 box", f"jaxseg.check {tmp_path}"):
        assert part in said
    code, said = run(capsys, tmp_path)
    assert code == 2
    assert "masks/a.png: exists, and is not replaced" in said


def test_labelme_shapes_become_masks(tmp_path, capsys):
    image(tmp_path / "a.png")
    image(tmp_path / "b.png")
    small = base64.b64encode(cv2.imencode(".png", np.ones((2, 3), np.uint8))[1].tobytes()).decode()
    shapes = [
        {"label": "z", "points": [[2, 2], [6, 2], [6, 6], [2, 6]], "shape_type": "polygon"},
        {"label": "b", "points": [[8, 8], [10, 10]], "shape_type": "rectangle"},
        {"label": "b", "points": [[1, 7], [3, 8]], "shape_type": "mask", "mask": small},
        {"label": "_background_", "points": [[4, 4], [5, 4], [5, 5], [4, 5]]},
        {"label": "__ignore__", "points": [[0, 0], [1, 1]], "shape_type": "rectangle"},
        {"label": "z", "points": [[1, 1]], "shape_type": "point"},
    ]
    content = {"shapes": shapes, "imagePath": "..\\x\\a.png", "imageHeight": 10, "imageWidth": 12}
    (tmp_path / "a.json").write_text(json.dumps(content))
    code, said = run(capsys, tmp_path, "-o", tmp_path / "out")
    assert code == 0
    expected = boxed(10, 12, v2=(2, 6, 2, 6), v1=(8, 10, 8, 10), v0=(4, 5, 4, 5), v255=(0, 1, 0, 1))
    expected[7:9, 1:4] = 1
    assert (read(tmp_path / "out/a.png") == expected).all()
    assert (tmp_path / "out/classes.txt").read_text() == "background\nb\nz\n"
    assert "1 point" in said
    assert "1 images without annotations, such as" in said


def test_yolo_polygons_become_masks_beside_their_images(tmp_path, capsys):
    for name in ("train/images/a", "train/images/empty", "train/images/none", "valid/images/b"):
        image(tmp_path / f"{name}.png")
    for name, text in (
        ("train/labels/a", "1 .5 0 1 0 1 .5 .5 .5\n0 .5 .5 .2 .2\n"),
        ("train/labels/empty", ""),
        ("valid/labels/b", "0 0 0 .5 0 .5 .5 0 .5"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{name}.txt").write_text(text)
    (tmp_path / "data.yaml").write_text("nc: 2\nnames:\n  0: car\n  1: bus\n")
    code, said = run(capsys, tmp_path)
    assert code == 0
    assert (read(tmp_path / "train/masks/a.png") == boxed(10, 12, v2=(0, 5, 6, 12))).all()
    assert (read(tmp_path / "valid/masks/b.png") == boxed(10, 12, v1=(0, 5, 0, 6))).all()
    assert not read(tmp_path / "train/masks/none.png").any()
    assert not read(tmp_path / "train/masks/empty.png").any()
    assert (tmp_path / "classes.txt").read_text() == "background\ncar\nbus\n"
    assert "1 box" in said


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"images": [], "annotations": [{"image_id": 1}]}, "no entry 'categories'"),
        ({"categories": [], "images": [], "annotations": [{"segmentation": [[1, 2, 3]]}]}, "no entry"),
        ({"shapes": [{"label": "a", "points": [[1, "x"]]}]}, "is damaged or of another kind"),
        ({"categories": [], "images": [], "annotations": []}, "no polygons"),
        ({"type": "FeatureCollection", "features": []}, "gdal_rasterize"),
        ({"objects": [], "size": {"height": 1, "width": 1}}, "Supervisely"),
        ({"what": 1}, "no annotations of COCO, labelme, YOLO found"),
    ],
)
def test_files_that_cannot_be_converted_exit_with_2(content, said, tmp_path, capsys):
    image(tmp_path / "a.png")
    (tmp_path / "a.json").write_text(json.dumps(content))
    code, text = run(capsys, tmp_path)
    assert code == 2
    assert said in text
    assert not (tmp_path / "masks").exists()


def test_ambiguous_and_doubly_annotated_images_are_all_named(tmp_path, capsys):
    for name in ("x/a.png", "y/a.png", "b.png"):
        image(tmp_path / name)
    coco(tmp_path / "1.json", [{"segmentation": [SQUARE]}])
    entry = [{"id": 7, "file_name": "b.png", "height": 10, "width": 12}]
    for name in ("2.json", "3.json"):
        coco(tmp_path / name, [{"segmentation": [SQUARE]}], images=entry)
    code, said = run(capsys, tmp_path)
    assert code == 2
    assert "its image a.png may be any of" in said
    assert "b.png: is annotated twice" in said


def test_next_command_names_training_and_validation(tmp_path, capsys):
    for name, split in (("a", "train"), ("b", "valid")):
        image(tmp_path / f"{split}/{name}.png")
        entry = [{"id": 7, "file_name": f"{name}.png", "height": 10, "width": 12}]
        coco(tmp_path / f"{split}/_annotations.coco.json", [{"segmentation": [SQUARE]}], images=entry)
    masks = tmp_path / "masks"
    folders = f"--images {tmp_path / 'train'} --masks {masks / 'train'}"
    folders += f" --val-images {tmp_path / 'valid'} --val-masks {masks / 'valid'}"
    assert f"jaxseg.check {folders}" in " ".join(run(capsys, tmp_path)[1].split())


def test_missing_images_are_told_or_refused_if_all_are_missing(tmp_path, capsys):
    image(tmp_path / "b.png")
    entries = [{"id": i, "file_name": f"{name}.png", "height": 10, "width": 12} for i, name in ((7, "a"), (8, "b"))]
    coco(tmp_path / "1.json", [{"segmentation": [SQUARE]}], images=entries)
    code, said = run(capsys, tmp_path / "1.json")
    assert code == 0
    assert "1 annotated images are not below" in said
    assert not read(tmp_path / "masks/b.png").any()
    (tmp_path / "b.png").unlink()
    assert run(capsys, tmp_path / "1.json")[0] == 2


@pytest.mark.parametrize(
    ("name", "text", "kind"),
    [
        ("a.json", '{"images": [], "annotations": []}', "COCO"),
        ("a.json", '{"shapes": []}', "labelme"),
        ("a.json", '{"objects": [], "size": {}}', "Supervisely"),
        ("a.geojson", '{"type": "FeatureCollection"}', "GeoJSON"),
        ("a.txt", "0 .1 .2 .3 .4 .5 .6\n", "YOLO"),
        ("a.txt", "0 .1 .2 .3 .4\n", "YOLO boxes"),
        ("a.xml", "<annotation><object><bndbox/></object></annotation>", "VOC XML"),
        ("a.txt", "train\nval\n", None),
        ("a.txt", "0.5 .1 .2 .3 .4 .5 .6\n", None),
        ("a.txt", "0 .1 .2 .3\n", None),
        ("a.txt", "1 2 3 4 500 6 7\n", None),
        ("a.json", "{", None),
        ("a.json", "[1]", None),
    ],
)
def test_kinds_of_annotation_files_are_recognized(name, text, kind, tmp_path):
    (tmp_path / name).write_text(text)
    assert kind_of(tmp_path / name) == kind


def test_a_file_of_the_same_names_is_no_other_file(tmp_path):
    file = tmp_path / "classes.txt"
    file.write_text("background\ncar\n")
    assert same_names(file, "background\ncar\n", "COCO")
    assert not same_names(file, "background\nbus\n", "COCO")
    file.write_text("car\n")
    assert same_names(file, "background\ncar\n", "YOLO")
    assert not same_names(file, "background\ncar\n", "COCO")
    assert not same_names(file, "background\nbus\n", "YOLO")


def test_outlines_of_labelme_are_polygons_rectangles_and_circles():
    corners = np.array([[5.0, 5.0], [8.0, 9.0]])
    circle = labelme_outline("circle", corners)
    np.testing.assert_allclose(np.linalg.norm(circle - corners[0], axis=1), 5.0)
    assert len(circle) == 128
    np.testing.assert_allclose(circle.mean(0), corners[0])
    assert labelme_outline("rectangle", corners).tolist() == [[5, 5], [8, 5], [8, 9], [5, 9]]
    assert labelme_outline("polygon", corners) is None
    assert labelme_outline("line", corners) is None
    three = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert labelme_outline("polygon", three) is three
    assert labelme_outline("circle", three) is None
