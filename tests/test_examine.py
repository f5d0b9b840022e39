"""What the doctor says of each fault alone, that it is silent about good data, and how it has them read."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from image_files import write
from PIL import Image

from jaxseg.base.config import IGNORE_INDEX, Data
from jaxseg.base.errors import DataError
from jaxseg.data.find.folders import find_pairs, find_split
from jaxseg.data.made.fields import make_fields
from jaxseg.data.read.samples import FULL, read_image, read_sample, read_tile
from jaxseg.doctor import conventions
from jaxseg.doctor.class_findings import value_counts
from jaxseg.doctor.classes import discover
from jaxseg.doctor.examine import Examination, channel_order, examine
from jaxseg.doctor.survey import survey
from jaxseg.doctor.values import describe_input

SIDE = 48


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("JAXSEG_CACHE_DIR", str(tmp_path / "cache"))


def scene(seed: int, side: int = SIDE) -> tuple[np.ndarray, np.ndarray]:
    """A smooth picture, uint8 [h w 3], and where it is light, uint8 [h w] of 0 and 1."""
    noise = np.random.default_rng(seed).integers(0, 256, (7, 7, 3), np.uint8)
    image = cv2.resize(noise, (side, side), interpolation=cv2.INTER_CUBIC)
    return image, (image.mean(-1) > 128).astype(np.uint8)


def edit(path: Path, change: Callable) -> Path:
    return write(path, change(cv2.imread(str(path), cv2.IMREAD_UNCHANGED)))


def edit_all(root: Path, folders: str, change: Callable) -> None:
    for folder in folders.split():
        for path in sorted((root / folder).iterdir()):
            edit(path, change)


def all_as(root: Path, change: Callable) -> None:
    """Images as TIFF of another type: `change` makes it of uint8 [h w 3] RGB."""
    for folder in ("train", "val"):
        for path in sorted((root / folder).glob("*.png")):
            pixels = change(cv2.imread(str(path))[..., ::-1])
            path.unlink()
            photometric = "rgb" if pixels.shape[-1] == 3 else "minisblack"
            tifffile.imwrite(path.with_suffix(".tif"), pixels, photometric=photometric, planarconfig="contig")


@pytest.fixture
def root(tmp_path) -> Path:
    """The article's layout: 8 training and 4 validation pairs, t0 to t7 and v0 to v3."""
    root = tmp_path / "data"
    for split, names in (("train", [f"t{i}" for i in range(8)]), ("val", [f"v{i}" for i in range(4)])):
        for name in names:
            image, mask = scene(int(name[1:]) + 100 * (split == "val"))
            write(root / split / f"{name}.png", image)
            write(root / f"L{split}" / f"{name}_mask.png", 255 * mask)
    return root


def examined(root: Path, **changes) -> Examination:
    settings = Data(data=root, workers=0, **changes)
    return examine(find_split(settings, 0), settings, 0)


# good data


def test_good_data_have_no_findings(root):
    found = examined(root)
    assert found.findings == ()
    found.raise_errors()


@pytest.mark.parametrize("seed", range(3))
def test_made_up_fields_have_no_findings(seed, tmp_path):
    assert examined(make_fields(tmp_path / "fields", train=24, val=8, size=64, seed=seed)).findings == ()


# one fault at a time: what makes it, flags, level, words of the finding, files that it names, words of the advice


def truncated(root):
    path = root / "train/t1.png"
    path.write_bytes(path.read_bytes()[:200])


def empty_file(root):
    (root / "Lval/v2_mask.png").write_bytes(b"")


def other_size(root):
    edit(root / "Ltrain/t3_mask.png", lambda m: m[:40])


def turned(root):
    edit(root / "train/t0.png", lambda i: i[:40])
    edit(root / "Ltrain/t0_mask.png", lambda m: m[:40].T)


def with_alpha(root):
    edit(root / "train/t4.png", lambda i: np.dstack([i, i[..., 0]]))


def bands_missing(root):
    edit(root / "train/t4.png", lambda i: np.dstack([i, i[..., 0]]))


def sixteen_bits(root):
    edit(root / "val/v1.png", lambda i: i.astype(np.uint16) * 257)


def plain_bands(root):
    image = cv2.imread(str(root / "train/t5.png"))
    (root / "train/t5.png").unlink()
    tifffile.imwrite(root / "train/t5.tif", image, photometric="minisblack", planarconfig="contig")


def opaque(root):
    edit_all(root, "train val", lambda i: np.dstack([i, np.full(i.shape[:2], 255, np.uint8)]))


def nodata_everywhere(root):
    edit_all(root, "train", lambda i: np.full_like(i, 7))


def one_without_data(root):
    all_as(root, lambda i: i.astype(np.float32) / 255)
    tifffile.imwrite(root / "train/t2.tif", np.full((SIDE, SIDE, 3), np.nan, np.float32), photometric="rgb")


def not_finite(root):
    all_as(root, lambda i: i.astype(np.float32) / 255)
    image = tifffile.imread(root / "train/t2.tif")
    image[:3, :5] = np.inf
    tifffile.imwrite(root / "train/t2.tif", image, photometric="rgb")


def black(root):
    edit(root / "train/t6.png", np.zeros_like)


def reflectances(root):
    all_as(root, lambda i: 800 + 4 * i.astype(np.uint16))


def big_floats(root):
    all_as(root, lambda i: i.astype(np.float32) * 20)


def standardized(root):
    all_as(root, lambda i: (i.astype(np.float32) - 128) / 60)


def ones_and_zeros(root):
    edit_all(root, "train val", lambda i: i // 128)


def several_sizes(root):
    edit(root / "train/t0.png", lambda i: i[:40])
    edit(root / "Ltrain/t0_mask.png", lambda m: m[:40])


def shared(root):
    write(root / "val/v0.png", cv2.imread(str(root / "train/t0.png")))


def almost_shared(root):
    image = cv2.imread(str(root / "train/t7.png"))
    jpeg = cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 60])[1], cv2.IMREAD_COLOR)
    write(root / "val/v3.png", jpeg)


def flipped(root):
    write(root / "val/v3.png", cv2.imread(str(root / "train/t7.png"))[::-1])


def two_masks(root):
    write(root / "train/t1.png", cv2.imread(str(root / "train/t0.png")))


def a_photo(root):
    edit(root / "Ltrain/t2_mask.png", lambda m: scene(77)[0])


def swapped(root):
    for side in ("train", "val"):
        (root / side).rename(root / "x")
        (root / f"L{side}").rename(root / side)
        (root / "x").rename(root / f"L{side}")
        for path in sorted((root / side).iterdir()):
            path.rename(path.with_name(path.name.replace("_mask", "")))
        for path in sorted((root / f"L{side}").iterdir()):
            path.rename(path.with_name(f"{path.stem}_mask.png"))


def antialiased(root):
    edit(root / "Ltrain/t5_mask.png", lambda m: cv2.GaussianBlur(m, (5, 5), 0))


def strange_value(root):
    edit_all(root, "Ltrain Lval", lambda m: m // 255)
    edit(root / "Lval/v1_mask.png", lambda m: np.where(np.arange(SIDE) < 3, 9, m).astype(np.uint8))


def all_empty(root):
    edit_all(root, "Ltrain Lval", np.zeros_like)


def training_empty(root):
    edit_all(root, "Ltrain", np.zeros_like)


def all_ignored(root):
    edit_all(root, "Lval", lambda m: np.full_like(m, 255))
    edit_all(root, "Ltrain", lambda m: m // 255)


def third_class(folder: str, size: int):
    def make(root):
        edit_all(root, "Ltrain Lval", lambda m: m // 255)
        for path in sorted((root / folder).iterdir())[:1]:
            mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
            mask[:size, :size] = 2
            write(path, mask)

    return make


def rare(root):
    edit_all(root, "Ltrain Lval", lambda m: m // 255)
    edit(root / "Ltrain/t0_mask.png", lambda m: np.where(np.arange(SIDE) < 2, 2, m).astype(np.uint8))
    edit(root / "Lval/v0_mask.png", lambda m: np.where(np.arange(SIDE) < 2, 2, m).astype(np.uint8))


def jpeg_masks(root):
    path = root / "Ltrain/t4_mask.png"
    Image.fromarray(np.zeros((SIDE, SIDE), np.uint8)).save(path, format="JPEG")


def enlarged(root):
    edit_all(root, "Ltrain Lval", lambda m: m[::2, ::2].repeat(2, 0).repeat(2, 1))


def interpolated(root):
    edit_all(root, "Ltrain Lval", lambda m: cv2.resize(cv2.resize(m // 51, (24, 24)), (SIDE, SIDE)))


def misplaced(root):
    edit_all(root, "Ltrain Lval", lambda m: np.roll(m, (4, -5), (0, 1)))


def same_masks(root):
    mask = cv2.imread(str(root / "Ltrain/t0_mask.png"), cv2.IMREAD_UNCHANGED)
    for name in ("t1", "t2", "t3"):
        write(root / f"Ltrain/{name}_mask.png", mask)


def some_ignored(root):
    """Numbers 0 and 1; some masks have 255 in the place of 1, as what is not labeled."""
    edit_all(root, "Ltrain Lval", lambda m: m // 255)
    for name in ("Ltrain/t0", "Lval/v0"):
        edit(root / f"{name}_mask.png", lambda m: m * 255)


def negative(root):
    edit_all(root, "Ltrain Lval", lambda m: m // 255)
    for path in sorted(root.glob("L*/*")):
        values = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE).astype(np.int16)
        values[:4] = -1
        path.unlink()
        tifffile.imwrite(path.with_suffix(".tif"), values)


def drawing(seed: int) -> np.ndarray:
    """Black, half of it light green, and a red square of 1.4 % of the pixels: uint8 [96 96 3] RGB."""
    mask = np.zeros((96, 96, 3), np.uint8)
    mask[40 + seed % 9 :, 20:] = 0, 255, 0
    mask[4:24, 4:24] = 255, 0, 0
    return mask


def spoilt(change):
    """Images of 96 x 96 pixels, and masks as JPEG of `drawing`."""

    def make(root):
        for i, path in enumerate(sorted([*root.glob("train/*"), *root.glob("val/*")])):
            write(path, scene(i, 96)[0])
        for i, path in enumerate(sorted(root.glob("L*/*"))):
            path.unlink()
            Image.fromarray(change(drawing(i))).save(path.with_suffix(".jpg"), quality=85)

    return make


in_color = spoilt(lambda m: m)
in_gray = spoilt(lambda m: (m[..., 1] // 255 * 120 + m[..., 0] // 255 * 240).astype(np.uint8))


def colored_objects(root):
    rng = np.random.default_rng(0)
    for path in sorted(root.glob("L*/*")):
        mask = np.zeros((SIDE, SIDE, 3), np.uint8)
        for y, x in ((y, x) for y in range(0, 48, 12) for x in range(0, 48, 12)):
            mask[y + 2 : y + 9, x + 2 : x + 9] = rng.integers(50, 256, 3)
        write(path, mask)


def numbered(root):
    rng = np.random.default_rng(0)
    for path in sorted(root.glob("L*/*")):
        mask = np.zeros((SIDE, SIDE), np.uint16)
        places = [(y, x) for y in range(0, 48, 12) for x in range(0, 48, 12) if rng.random() < 0.6]
        for number, (y, x) in enumerate(places, 1):
            mask[y + 2 : y + 9, x + 2 : x + 9] = number
        write(path, mask)


def five_bands(root, change=lambda bands: bands, tag=None):
    """Images of 5 bands as int16; `change` is applied to those of t0, t1 and v0."""
    for path in sorted([*root.glob("train/*.png"), *root.glob("val/*.png")]):
        image = cv2.imread(str(path)).astype(np.int16)
        bands = np.dstack([image, image[..., :2] // 2]) * 60
        bands = change(bands) if path.stem in ("t0", "t1", "v0") else bands
        path.unlink()
        tags = [(42113, "s", 0, tag, True)] if tag else []
        how = {"photometric": "minisblack", "planarconfig": "contig", "extratags": tags}
        tifffile.imwrite(path.with_suffix(".tif"), bands, **how)


def band_four(value):
    return lambda bands: np.dstack([bands[..., :3], np.full((SIDE, SIDE), value), bands[..., 4:]]).astype(np.int16)


def band_without_data(root):
    five_bands(root, band_four(-9999), "-9999")


def band_of_zeros(root):
    five_bands(root, band_four(0))


def undeclared_nodata(root):
    five_bands(root, band_four(-9999))


def constant_band(root):
    edit_all(root, "train val", lambda i: np.dstack([i[..., :2], np.full((SIDE, SIDE), 77, np.uint8)]))


def turn_images(root, orientation, names, folder="train"):
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in names:
        path = root / folder / name
        Image.open(path).save(path, exif=exif)


def turned_upside_down(root):
    turn_images(root, 3, ["t1.png", "t2.png"])


def turned_square(root):
    turn_images(root, 6, ["t1_mask.png"], "Ltrain")


def drawn_as_stored(root):
    edit(root / "train/t0.png", lambda i: i[:40])
    edit(root / "Ltrain/t0_mask.png", lambda m: m[:40])
    turn_images(root, 8, ["t0.png"])


FAULTS = {
    band_without_data: (
        {},
        "warning",
        "band 4 is empty (no data, or 0 everywhere) in 3 of 12 images",
        ["train/t0.tif", "train/t1.tif", "val/v0.tif"],
        "--channels 1 2 3 5 leaves it out",
    ),
    band_of_zeros: ({}, "warning", "band 4 is empty", ["train/t0.tif", "train/t1.tif", "val/v0.tif"], "--channels"),
    undeclared_nodata: (
        {},
        "warning",
        "-9999 in band 4 of 3 images looks like no data",
        ["train/t0.tif", "train/t1.tif", "val/v0.tif"],
        "--nodata -9999",
    ),
    constant_band: ({}, "warning", "band 1 is 77 in all training images", [], "--channels 2 3 leaves it out"),
    turned_upside_down: (
        {},
        "error",
        "2 images with another EXIF orientation than the mask",
        ["train/t1.png: orientation 3, its mask has none", "train/t2.png: orientation 3, its mask has none"],
        "mogrify -auto-orient",
    ),
    turned_square: ({}, "error", "1 image with another EXIF", ["train/t1.png: orientation 1, its mask 6"], "exiftool"),
    drawn_as_stored: (
        {},
        "error",
        "1 mask of another size",
        ["Ltrain/t0_mask.png: 48x40, its image 40x48"],
        "exiftool",
    ),
    truncated: ({}, "error", "1 file cannot be read", ["train/t1.png: is cut off"], "--on-bad-file skip"),
    empty_file: ({}, "error", "1 file cannot be read", ["Lval/v2_mask.png: is empty"], "--on-bad-file skip"),
    other_size: ({}, "error", "1 mask of another size", ["Ltrain/t3_mask.png: 48x40, its image 48x48"], "nearest"),
    turned: ({}, "error", "1 mask of another size", ["Ltrain/t0_mask.png: 40x48, its image 48x40"], "90 degrees"),
    with_alpha: ({}, "error", "1 of 12 images not of 3 channels", ["train/t4.png: 4 channels"], "--channels 1 2 3"),
    bands_missing: (
        {"channels": (1, 4)},
        "error",
        "band 4, which is missing in 11 images",
        [f"train/t{i}.png: 3 channels" for i in (0, 1, 2, 3, 5, 6, 7)] + [f"val/v{i}.png: 3 ch" for i in range(4)],
        "1 to 3",
    ),
    sixteen_bits: ({}, "error", "1 of 12 images not uint8", ["val/v1.png: uint16"], "Convert"),
    plain_bands: ({}, "error", "1 image with plain bands", ["train/t5.tif"], "--channels 3 2 1"),
    opaque: ({}, "warning", "opaque alpha", [], "--channels 1 2 3"),
    nodata_everywhere: ({"nodata": 7.0}, "error", "no pixel of training has a class", [], "--nodata"),
    one_without_data: ({}, "warning", "1 image without any data", ["train/t2.tif"], "remove"),
    not_finite: ({}, "warning", "1 image with NaN or infinite", ["train/t2.tif: 15 pixels"], "export"),
    black: ({}, "warning", "1 image all black", ["train/t6.png"], "--nodata 0"),
    reflectances: ({}, "warning", "little of their type's range (uint16", [], "--normalize dataset"),
    ones_and_zeros: ({}, "warning", "little of their type's range (uint8, 0 to 1", [], "--normalize dataset"),
    big_floats: ({}, "warning", "large floats (float32", [], "--normalize dataset"),
    standardized: ({"normalize": "dataset"}, "warning", "normalized already", [], "--normalize unit"),
    several_sizes: ({}, "note", "2 sizes: random crops", [], "--crop"),
    shared: ({}, "warning", "1 validation image also in training", ["val/v0.png = train/t0.png"], "--group-by"),
    almost_shared: ({}, "warning", "almost the same as one in training", ["val/v3.png ~ train/t7.png"], "--group-by"),
    flipped: ({}, "warning", "almost the same", ["val/v3.png ~ train/t7.png (flipped or turned)"], "--group-by"),
    two_masks: ({}, "warning", "1 image with several masks", ["Ltrain/t0_mask.png and Ltrain/t1_mask.png"], "remove"),
    a_photo: ({}, "error", "1 mask looking like a photo", ["Ltrain/t2_mask.png: 2"], "--masks"),
    swapped: ({}, "error", "images and masks are swapped", [f"Ltrain/t{i}_mask.png" for i in range(5)], "--images"),
    antialiased: ({}, "error", "looks resampled", ["Ltrain/t5_mask.png: "], "--binarize 128"),
    strange_value: (
        {"classes": 2},
        "error",
        "belong to no class: 9",
        ["Lval/v1_mask.png: 9 (144 pixels)"],
        "--ignore-index 9",
    ),
    negative: ({}, "error", "negative values: -1 (8.33 %)", ["Ltrain/t0_mask.tif: -1 (192"], "--ignore-index -1, if"),
    in_color: ({}, "error", "distinct colors", [], "--labels '#000000' '#00ff01' '#fd0200' --snap-colors"),
    in_gray: ({}, "error", "within 4 of {0, 120, 240}", [], "Give --labels 0 120 240 --snap-colors"),
    colored_objects: ({}, "error", "192 objects by 192 colors", ["Ltrain/t0_mask.png: 16"], "--binarize 1, if all"),
    numbered: ({}, "error", "number their objects", ["Ltrain/t0_mask.png: "], "--binarize 1, if all"),
    all_empty: ({}, "error", "one class only", [], "right masks"),
    training_empty: ({}, "error", "training masks hold one class only, background", [], "right masks"),
    all_ignored: ({"classes": 2}, "error", "no pixel of validation has a class", [], "--ignore-index"),
    some_ignored: (
        {},
        "error",
        "255 holds 9.96 %",
        ["Ltrain/t0_mask.png: 255", "Lval/v0_mask.png: 255"],
        "--binarize 1",
    ),
    third_class("Lval", 20): ({}, "warning", "cannot be learned: class 2 (400 pixels)", [], "--seed"),
    third_class("Ltrain", 20): ({}, "warning", "not measured: class 2 (400 pixels)", [], "--seed"),
    rare: ({}, "warning", "rare in training: class 2 0.52%", [], "--class-weights auto"),
    jpeg_masks: ({}, "warning", "1 mask in JPEG", ["Ltrain/t4_mask.png"], "PNG"),
    enlarged: ({}, "warning", "12 masks with all borders on a grid of 2", ["Ltrain/t0_mask.png"], "Export"),
    interpolated: ({}, "warning", "values 1, 2, 3, 4 lie only as seams", ["Ltrain/t0_mask.png"], "nearest neighbor"),
    misplaced: ({}, "warning", "misplaced: most fit their images better when moved 4 pixels up", [], "bounds"),
    same_masks: ({}, "warning", "4 masks the same as others", [f"Ltrain/t{i}_mask.png" for i in range(4)], "one image"),
}


@pytest.mark.parametrize("masks_too", [True, False])
def test_orientation_that_fits_has_no_findings(masks_too, root):
    """Both are turned alike, or only the upright image has the mask's size."""
    if masks_too:
        turn_images(root, 3, ["t0.png"])
        turn_images(root, 3, ["t0_mask.png"], "Ltrain")
    else:
        edit(root / "train/t0.png", lambda i: i[:40])
        edit(root / "Ltrain/t0_mask.png", lambda m: np.rot90(m[:40]))
        turn_images(root, 8, ["t0.png"])
    found = examined(root)
    assert [finding.what for finding in found.findings if finding.level != "note"] == []
    image, mask = (read_sample(found.split.training[0])[name] for name in ("image", "mask"))
    assert np.array_equal(mask, image.mean(-1) > 128)
    assert any("turned upright by the EXIF orientation" in line for line in describe_input(found.reading, found.facts))


def test_empty_band_gets_no_mean_from_its_marker(root):
    band_without_data(root)
    found = examined(root, normalize="dataset")
    assert not found.errors
    assert found.reading.mean[3] > 0
    image, has_data = read_tile(found.split.training[0].image, found.reading)
    assert has_data.all()
    assert set(np.unique(image[..., 3])) == {round(found.reading.mean[3] * 32767)}


@pytest.mark.parametrize(("dtype", "value"), [(np.uint8, 77), (np.uint16, 255), (np.float32, 0.1)])
def test_deviation_of_a_band_that_never_changes_is_1(dtype, value, root):
    def change(image):
        return np.dstack([image, np.full(image.shape[:2], value)]).astype(dtype)

    all_as(root, change)
    found = examined(root, normalize="dataset")
    assert found.reading.std[3] == 1
    assert f"band 4 is {value:g} in all training images" in " ".join(finding.what for finding in found.findings)


CLASSES_ARE_KNOWN = (nodata_everywhere, training_empty, all_ignored)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__qualname__.split(".")[0])
def test_fault_is_found_with_files_and_fix(fault, root):
    fault(root)
    changes, level, what, files, advice = FAULTS[fault]
    found = examined(root, **changes)
    (finding,) = [finding for finding in found.findings if what in finding.what]
    assert finding.level == level
    for expected in files:
        assert sum(file.startswith(expected) for file in finding.files) == 1, finding.files
    assert advice in finding.advice
    assert bool(found.errors) == (level == "error")
    assert (found.reading is None) == (level == "error" and fault not in CLASSES_ARE_KNOWN)
    assert set(found.errors) <= {finding}
    assert " ".join(finding.flags) in finding.advice.replace("'", "")
    if level == "error":
        with pytest.raises(DataError) as caught:
            found.raise_errors()
        for part in (finding.what, *finding.files[:5], *map(str.strip, finding.advice.splitlines())):
            assert part in str(caught.value)


# how samples are read


def all_samples(found: Examination) -> list[dict]:
    return [read_sample(pair, found.reading) for pair in found.split.training + found.split.validation]


def bands_with_holes(root):
    rng = np.random.default_rng(0)

    def change(image):
        bands = np.dstack([image, 255 - image, image // 2]).astype(np.int16)
        bands[rng.random((SIDE, SIDE)) < 0.1] = -9999
        bands[rng.random((SIDE, SIDE)) < 0.1, 4] = -9999
        return bands

    all_as(root, change)


def gray_and_opaque_among_colors(root):
    edit(root / "train/t0.png", lambda i: i[..., 0])
    edit(root / "train/t1.png", lambda i: np.dstack([i, np.full(i.shape[:2], 255, np.uint8)]))


def ignored(root):
    edit_all(root, "Ltrain Lval", lambda m: np.where(np.arange(SIDE) < 5, 255, m // 255 * 3).astype(np.uint8))


def palettes_among_colors(root):
    edit_all(root, "Ltrain Lval", lambda m: np.dstack([m, 0 * m, 255 - m]))
    for path in sorted((root / "Ltrain").iterdir())[:3]:
        Image.fromarray(cv2.imread(str(path))[..., ::-1]).quantize(2).save(path)


def black_and_colored(root):
    edit_all(root, "Ltrain Lval", lambda m: np.dstack([m, m, 0 * m]))
    edit(root / "Ltrain/t0_mask.png", np.zeros_like)


def blurred(root):
    edit_all(root, "Ltrain Lval", lambda m: cv2.GaussianBlur(m, (5, 5), 0))


def one_class_to_an_image(root):
    edit(root / "Ltrain/t0_mask.png", np.zeros_like)
    edit(root / "Ltrain/t1_mask.png", lambda m: np.full_like(m, 255))
    edit(root / "Lval/v0_mask.png", np.zeros_like)


def save_indexed(path: Path, colors: list[tuple[int, int, int]]) -> None:
    """The mask at `path` with a palette of two colors, the first for 0."""
    picture = Image.fromarray(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) // 255)
    picture.putpalette([channel for color in colors for channel in color])
    picture.save(path)


def turned_palettes(root):
    for i, path in enumerate(sorted(root.glob("L*/*"))):
        mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        write(path, 255 - mask if i % 2 else mask)
        save_indexed(path, [(200, 0, 0), (0, 0, 200)] if i % 2 else [(0, 0, 200), (200, 0, 0)])


def gray_palettes(root):
    for i, path in enumerate(sorted(root.glob("L*/*"))):
        save_indexed(path, [(0, 0, 0), (80 + 40 * (i % 2),) * 3])


def shorter_palettes(root):
    for i, path in enumerate(sorted(root.glob("L*/*"))):
        save_indexed(path, [(0, 0, 0), (200, 0, 0), (0, 200, 0)][: 2 + i % 2])


def bits_among_bytes(root):
    for path in sorted((root / "Ltrain").iterdir())[:3]:
        Image.fromarray(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)).convert("1").save(path)


def soft_palettes(root):
    for path in sorted(root.glob("L*/*")):
        save_indexed(path, [(40, 40, 40), (200, 200, 200)])


READINGS = {
    "as it is": (lambda root: None, {}, ("uint8", 3, (0, 255))),
    "bands with holes": (bands_with_holes, {"nodata": -9999.0}, ("int16", 9, (0, 255))),
    "some bands with holes": (bands_with_holes, {"nodata": -9999.0, "channels": (7, 5)}, ("int16", 2, (0, 255))),
    "gray and opaque": (gray_and_opaque_among_colors, {}, ("uint8", 3, (0, 255))),
    "ignored": (ignored, {"ignore_index": (255,)}, ("uint8", 3, (0, 3))),
    "palettes": (palettes_among_colors, {}, ("uint8", 3, (0x0000FF, 0xFF0000))),
    "black and colored": (black_and_colored, {}, ("uint8", 3, (0, 0x00FFFF))),
    "one class to an image": (one_class_to_an_image, {}, ("uint8", 3, (0, 255))),
    "turned palettes": (turned_palettes, {}, ("uint8", 3, (0x0000C8, 0xC80000))),
    "turned palettes, numbers asked for": (turned_palettes, {"classes": 2}, ("uint8", 3, (0, 1))),
    "gray palettes": (gray_palettes, {}, ("uint8", 3, (0, 0x505050, 0x787878))),
    "shorter palettes": (shorter_palettes, {}, ("uint8", 3, (0, 1))),
    "bits among bytes": (bits_among_bytes, {}, ("uint8", 3, (0, 0xFFFFFF))),
    "bits among bytes, two classes": (bits_among_bytes, {"classes": 2}, ("uint8", 3, (0, 0xFFFFFF))),
    "soft palettes, binarized": (soft_palettes, {"binarize": 128}, ("uint8", 3, (0, 128))),
    "0 and 1, or 0 and 255 as ignored": (some_ignored, {"ignore_index": (255,)}, ("uint8", 3, (0, 1))),
    "binarized": (blurred, {"binarize": 255}, ("uint8", 3, (0, 255))),
    "snapped": (blurred, {"labels": ("0", "255"), "snap_colors": True}, ("uint8", 3, (0, 255))),
    "floats": (lambda root: all_as(root, lambda i: i.astype(np.float64)), {}, ("float32", 3, (0, 255))),
}


@pytest.mark.parametrize("normalize", ["unit", "dataset"])
@pytest.mark.parametrize("case", READINGS)
def test_parts_and_statistics_match_the_samples(case, normalize, root):
    spoil, changes, (dtype, channels, values) = READINGS[case]
    spoil(root)
    found = examined(root, normalize=normalize, **changes)
    assert not found.errors
    reading = found.reading
    assert (reading.dtype, reading.channels, reading.labels.values) == (dtype, channels, values)
    assert reading.normalize == normalize
    assert found.labels == reading.labels
    samples = all_samples(found)
    edge = len(found.split.training)
    for part, side in ((found.training, samples[:edge]), (found.validation, samples[edge:])):
        pixels = sum(np.bincount(sample["mask"].ravel(), minlength=256) for sample in side)
        assert part.class_pixels == tuple(pixels[: len(values)])
        labeled = [np.bincount(sample["mask"].ravel(), minlength=256)[:IGNORE_INDEX] for sample in side]
        assert part.image_pixels == tuple(sum(n.sum() for n in labeled if n[c]) for c in range(len(values)))
        assert part.ignored_pixels == pixels[IGNORE_INDEX]
        assert part.sizes == tuple(sample["image"].shape[:2] for sample in side)
        assert part.decoded_bytes == sum(sample["image"].nbytes + sample["mask"].nbytes for sample in side)
        assert part.pairs == len(side)
    if normalize == "unit":
        assert (reading.mean, reading.std) == ((), ())
        return
    tiles = [read_tile(pair.image, reading) for pair in found.split.training]
    pixels = np.concatenate([image[has_data] for image, has_data in tiles]).astype(np.float64)
    without = dataclasses.replace(reading, mean=(-0.5,) * channels)  # values without data become these
    again = np.concatenate(
        [read_tile(pair.image, without)[0][seen] for pair, (_, seen) in zip(found.split.training, tiles)]
    )
    pixels = np.where(again == pixels, pixels, np.nan) / FULL[dtype]
    np.testing.assert_allclose(reading.mean, np.nanmean(pixels, 0), rtol=1e-9)
    np.testing.assert_allclose(reading.std, np.nanstd(pixels, 0), rtol=1e-6)


@pytest.mark.parametrize(
    ("colored", "asked", "order"),
    [
        ([True, False], None, "bgr"),  # some are gray
        ([True], (1, 2, 3), "bgr"),
        ([True], (3, 2, 1), "bgr"),
        ([True], (1, 2, 3, 4), "bgr"),
        ([True], (2, 1, 3), "bands"),
        ([True], (1,), "bands"),
        ([False], None, "bands"),
        ([False], (3, 2, 1), "bands"),
    ],
)
def test_order_is_blue_green_red_for_color_pictures_only(colored, asked, order):
    assert channel_order(colored, asked) == order


RED, GREEN, BLUE = 0.485, 0.456, 0.406


@pytest.mark.parametrize(
    ("plain", "bands", "mean"),
    [
        (False, None, (BLUE, GREEN, RED)),
        (False, (1, 2, 3), (BLUE, GREEN, RED)),
        (False, (3, 2, 1), (BLUE, GREEN, RED)),
        (False, (2, 1, 3), (GREEN, RED, BLUE)),
        (True, None, (RED, GREEN, BLUE)),
        (True, (1, 2, 3), (RED, GREEN, BLUE)),
        (True, (3, 2, 1), (BLUE, GREEN, RED)),
        (True, (3, 2, 4), (RED, GREEN, BLUE)),
    ],
)
def test_imagenet_statistics_follow_the_channel_order(plain, bands, mean, root):
    if plain:
        all_as(root, lambda i: np.dstack([i, i[..., :1]] if 4 in (bands or ()) else [i])[..., : 4 if bands else 3])
        for path in [*(root / "train").iterdir(), *(root / "val").iterdir()]:
            tifffile.imwrite(path, tifffile.imread(path), photometric="minisblack", planarconfig="contig")
    elif bands:  # the doctor's numbers belong to the channels that come out
        colors = np.zeros((SIDE, SIDE, 3), np.uint8)
        colors[...] = (BLUE * 200, GREEN * 200, RED * 200)
        reading = examined(root, normalize="imagenet", channels=bands).reading
        write(root / "x.png", colors)
        np.testing.assert_allclose(read_image(root / "x.png", reading)[0, 0] / 200, reading.mean, atol=0.01)
    assert examined(root, normalize="imagenet", channels=bands).reading.mean == mean


def test_gray_image_among_colors_keeps_imagenet_order(root):
    edit(root / "train/t0.png", lambda i: i[..., 0])
    assert examined(root, normalize="imagenet").reading.mean == (BLUE, GREEN, RED)


def test_gray_mask_among_colors_is_not_blamed_for_a_strange_color(root):
    edit_all(root, "Ltrain Lval", lambda m: np.dstack([m, m, m]))
    edit(root / "Lval/v1_mask.png", lambda m: np.where(m > 0, m, np.uint8([9, 0, 0])))
    (error,) = examined(root, labels=("0", "255")).errors
    assert "#000009" in error.what
    assert [file.split(":")[0] for file in error.files] == ["Lval/v1_mask.png"]


@pytest.mark.parametrize(
    ("spoil", "names"),
    [(bits_among_bytes, ("background", "foreground")), (turned_palettes, ("#0000c8", "#c80000"))],
)
def test_masks_are_read_by_color_where_their_numbers_disagree(spoil, names, root):
    before = [read_sample(pair)["mask"] for pair in examined(root).split.training]
    spoil(root)
    for _ in range(2):  # the second time from the cache
        found = examined(root)
        assert found.reading.labels.names == names
        after = [read_sample(pair, found.reading)["mask"] for pair in found.split.training]
        assert all((a == b).all() for a, b in zip(before, after, strict=True))


def test_constant_channel_is_not_divided_by_zero(root):
    edit_all(root, "train val", lambda i: np.dstack([i[..., :2], np.full(i.shape[:2], 51, np.uint8)]))
    reading = examined(root, normalize="dataset").reading
    assert reading.std[2] == 1.0
    assert reading.mean[2] == pytest.approx(0.2)


def test_masks_of_0_and_255_give_the_articles_labels(root):
    found = examined(root)
    for pair in found.split.training:
        assert read_sample(pair, found.reading)["mask"].tolist() == read_sample(pair)["mask"].tolist()


def test_binarize_255_gives_the_articles_rule_for_antialiased_masks(root):
    blurred(root)
    found = examined(root, binarize=255)
    assert [f.level for f in found.findings if "--binarize 255 decides" in f.what] == ["warning"]
    for pair in found.split.training:
        assert read_sample(pair, found.reading)["mask"].tolist() == read_sample(pair)["mask"].tolist()
    assert found.training.class_pixels != examined(root, binarize=128).training.class_pixels


def test_soft_masks_are_accepted_with_binarize(root):
    edit_all(root, "train", lambda i: i)
    for side in ("train", "val"):
        for path in sorted((root / side).iterdir()):
            write(root / f"L{side}" / f"{path.stem}_mask.png", cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))
    assert "looking like a photo" in examined(root).errors[0].what
    assert not examined(root, binarize=128).errors


def test_wrong_flag_is_blamed_not_the_masks(root):
    for changes in ({"labels": ("abc", "1")}, {"class_names": ("a", "b", "c")}, {"snap_colors": True}):
        (error,) = examined(root, **changes).errors
        assert error.what.startswith("--")
        assert error.files == ()


# pairs that are left out


def test_classes_are_named_by_the_file_beside_them(root):
    (root / "classes.txt").write_text("soil\nfield\n")
    found = examined(root)
    assert found.labels.names == ("soil", "field")
    assert [f.what for f in found.findings] == ["class names from classes.txt: soil, field"]
    assert examined(root, class_names=("a", "b")).labels.names == ("a", "b")
    (root / "classes.txt").write_text("soil\nfield\nroad\n")
    assert "names other classes (soil, field, road) than the masks hold (0, 255)" in examined(root).findings[0].what


@pytest.mark.parametrize(
    ("layout", "level"), [("CamVid's", "warning"), ("the article's", "note")], ids=["by layout", "by number of classes"]
)
def test_usually_ignored_value_is_named(layout, level):
    counts = dict.fromkeys(range(12), 100)
    (found,) = conventions.usually_ignored(counts, f"{layout}: train/ trainannot/", ())
    assert (found.level, found.what) == (level, "CamVid usually ignores mask value 11 (void; 8.33% of pixels)")
    assert "--ignore-index 11" in found.advice
    assert list(conventions.usually_ignored(counts, layout, (11,))) == []
    ade = dict.fromkeys(range(151), 100)
    assert "--classes 151 --ignore-index 0." in next(conventions.usually_ignored(ade, layout, ())).advice
    assert discover(ade, False, Data(classes=151, ignore_index=(0,))).values == tuple(range(1, 151))
    for classes in (19, 21, 150):
        counts = dict.fromkeys([*range(classes), 255], 9)
        assert conventions.void_is_known(counts, layout)
        assert "mask value 255 is ignored, as in" in next(conventions.usually_ignored(counts, "", ())).what
    assert not conventions.void_is_known({0: 9, 1: 9, 255: 9}, layout)


def test_on_bad_file_skip_leaves_out_pairs(root):
    truncated(root), empty_file(root)
    found = examined(root, on_bad_file="skip")
    assert not found.errors
    (note,) = [finding for finding in found.findings if "left out" in finding.what]
    assert "2 pairs left out" in note.what
    assert [file.split(":")[0] for file in note.files] == ["train/t1.png", "Lval/v2_mask.png"]
    assert (found.training.pairs, found.validation.pairs) == (7, 3)
    assert [pair.image.name for pair in found.split.validation] == ["v0.png", "v1.png", "v3.png"]
    assert found.reading is not None


def test_side_without_readable_pairs_is_an_error(root):
    for path in (root / "val").iterdir():
        path.write_bytes(b"")
    found = examined(root, on_bad_file="skip")
    assert [finding.what for finding in found.errors] == [
        "no validation pair has two readable files",
        "no pixel of validation has a class: all are ignored or without data",
    ]
    for path in (root / "train").iterdir():
        path.write_bytes(b"")
    assert len(examined(root, on_bad_file="skip").errors) == 2


@given(
    array=hnp.arrays(
        np.float64, (8, 8, 3), elements=st.sampled_from([0.0, -1e300, 1e300, 3.4e38, -3.4e38, np.nan, np.inf, 1e-300])
    )
)
def test_any_image_values_are_examined(tmp_path_factory, array):
    root = tmp_path_factory.mktemp("strange")
    os.environ["JAXSEG_CACHE_DIR"] = str(root / "cache")
    for name in ("images", "masks"):
        (root / name).mkdir()
    for i in range(3):
        tifffile.imwrite(root / f"images/{i}.tif", np.roll(array, i).repeat(8, 0).repeat(8, 1), photometric="rgb")
        write(root / f"masks/{i}.png", 255 * np.eye(64, dtype=np.uint8))
    found = examined(root, normalize="dataset")
    assert all(np.isfinite(n) for n in (found.reading.mean + found.reading.std if found.reading else ()))


def test_negative_gray_among_colored_masks_is_no_color(tmp_path):
    write(tmp_path / "images/a.png", np.zeros((8, 8, 3), np.uint8))
    write(tmp_path / "images/b.png", np.zeros((8, 8, 3), np.uint8))
    write(tmp_path / "masks/a.png", np.tile(np.array([0, 0, 200], np.uint8), (8, 8, 1)))
    write(tmp_path / "masks/b.tif", np.full((8, 8), -1, np.int16))
    pairs = find_pairs(tmp_path / "images", tmp_path / "masks")
    assert value_counts(survey(pairs, Data(), 0)) == ({0xC80000: 64, -1: 64}, True)
