"""What the sample of a pair is, and what is said about files that are wrong."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from image_files import write
from PIL import Image

from jaxseg.base.config import IGNORE_INDEX
from jaxseg.base.errors import DataError, UserError
from jaxseg.data.find.listing import EXTENSIONS, Pair
from jaxseg.data.read import masks, samples
from jaxseg.data.read.mapped import open_tile
from jaxseg.data.read.masks import ARTICLE, ClassMap
from jaxseg.data.read.samples import Reading, read_image, read_mask


def picture(height=6, width=8, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def mask(height=6, width=8, value=255) -> np.ndarray:
    """Left half `value`, right half 0."""
    pixels = np.zeros((height, width), np.uint8)
    pixels[:, : width // 2] = value
    return pixels


def good_pairs(root: Path, count: int, **size) -> list[Pair]:
    return [
        Pair(write(root / f"images/t{i}.png", picture(**size, seed=i)), write(root / f"masks/t{i}.png", mask(**size)))
        for i in range(count)
    ]


def problems(call, *args) -> list[str]:
    """What the error lists, each offender once, and every one of them in the message."""
    with pytest.raises(DataError) as caught:
        call(*args)
    found = caught.value.problems
    assert len(set(found)) == len(found)
    assert [problem for problem in found[:20] if problem not in str(caught.value)] == []
    return list(found)


# pixels


@pytest.mark.parametrize("extension", sorted(EXTENSIONS - {".gif", ".pbm", ".npy"}))
def test_read_image_matches_imread(extension, tmp_path):
    path = tmp_path / f"a{extension}"
    Image.fromarray(picture(48, 64)).save(path)
    image = read_image(path)
    assert image.dtype == np.uint8
    assert image.shape == (48, 64, 3)
    assert image.tobytes() == cv2.imread(str(path)).tobytes()


@pytest.mark.parametrize(
    "pixels",
    [picture()[..., 0], np.dstack([picture(), np.full((6, 8), 255, np.uint8)])],
    ids=["gray", "with an opaque alpha"],
)
def test_gray_and_opaque_images_get_three_channels_as_imread(pixels, tmp_path):
    path = write(tmp_path / "a.png", pixels)
    assert read_image(path).shape == (6, 8, 3)
    assert read_image(path).tobytes() == cv2.imread(str(path)).tobytes()


def test_color_channels_are_bgr(tmp_path):
    rgb = np.zeros((2, 2, 3), np.uint8)
    rgb[...] = (10, 20, 30)
    Image.fromarray(rgb).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png")[0, 0].tolist() == [30, 20, 10]


@pytest.mark.parametrize("name", ["Größe.png", "田んぼ.jpg", "поле 1.tif", "a b'c.png"])
def test_unicode_file_names_are_read(name, tmp_path):
    path = write(tmp_path / name, picture())
    assert read_image(path).shape == (6, 8, 3)


def gray(bgr: np.ndarray) -> np.ndarray:
    """OpenCV's fixed-point formula: weights of 15 bits that add up to 1, rounded."""
    b, g, r = np.moveaxis(bgr.astype(np.int64), -1, 0)
    return (3735 * b + 19235 * g + 9798 * r + 2**14) >> 15


colors = st.tuples(*[st.integers(0, 255) | st.integers(248, 255)] * 3)


@given(pixels=st.lists(colors, min_size=1, max_size=40))
def test_a_mask_is_1_where_the_gray_value_is_255(tmp_path_factory, pixels):
    path = tmp_path_factory.getbasetemp() / "mask.png"
    bgr = np.array([pixels], np.uint8)
    write(path, bgr)
    assert samples.read_gray(path).tolist() == gray(bgr).tolist()
    assert read_mask(path).tolist() == (gray(bgr) // 255).tolist()
    assert read_mask(path).dtype == np.uint8


def test_mask_near_white_and_every_gray_follow_the_articles_rule(tmp_path):
    near = 255 - np.stack(np.meshgrid(*[np.arange(8, dtype=np.uint8)] * 3, indexing="ij"), -1).reshape(8, 64, 3)
    found = read_mask(write(tmp_path / "near.png", near))
    assert found.tolist() == (gray(near) // 255).tolist()
    by_color = {tuple(color): int(value) for color, value in zip(near.reshape(-1, 3), found.ravel())}
    assert by_color[255, 255, 255] == 1
    assert by_color[255, 254, 255] == 0
    assert by_color[254, 254, 254] == 0
    assert by_color[254, 255, 255] == 1  # a little less blue still rounds to 255
    assert by_color[250, 255, 255] == 0
    grays = np.arange(256, dtype=np.uint8)[None]
    assert read_mask(write(tmp_path / "grays.png", grays)).tolist() == [[0] * 255 + [1]]


@pytest.mark.parametrize("bgr", [(0, 0, 255), (0, 255, 0), (255, 0, 0), (0, 255, 255)])
def test_a_colored_mask_pixel_is_background(bgr, tmp_path):
    path = write(tmp_path / "m.png", np.full((2, 2, 3), bgr, np.uint8))
    assert not read_mask(path).any()


def test_read_sample_returns_image_and_mask(tmp_path):
    (pair,) = good_pairs(tmp_path, 1)
    sample = samples.read_sample(pair)
    assert sample.keys() == {"image", "mask"}
    assert sample["image"].tobytes() == picture().tobytes()
    assert sample["mask"].tolist() == (mask() // 255).tolist()


# how files become samples


def tif(path: Path, array: np.ndarray, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    how = {"photometric": "minisblack"} | ({"planarconfig": "contig"} if array.ndim == 3 else {})
    tifffile.imwrite(path, array, **(how | options))
    return path


def bands(count=4, dtype="int16", height=6, width=8, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-900, 900, (height, width, count)).astype(dtype)


def problem(call, *args) -> str:
    (line,) = problems(call, *args)
    return line


TWO = ClassMap((0, 255), ("background", "foreground"))
MAPS = [
    ARTICLE,
    TWO,
    ClassMap((3, 1), ("a", "b"), (7, 9)),
    ClassMap((0, 0xFF00FF), ("x", "y"), color=True, snap=True),
]
floats = st.floats(-1, 1)
readings = st.fixed_dictionaries(
    {
        "labels": st.sampled_from(MAPS),
        "channels": st.integers(1, 12),
        "bands": st.none() | st.lists(st.integers(1, 12), min_size=1, max_size=4).map(tuple),
        "dtype": st.sampled_from(sorted(samples.FULL)),
        "nodata": st.none() | st.floats(allow_nan=False),
        "normalize": st.sampled_from(["unit", "dataset", "imagenet"]),
        "mean": st.lists(floats, max_size=3).map(tuple),
        "std": st.lists(floats, max_size=3).map(tuple),
    }
)


@given(arguments=readings)
def test_reading_round_trips_through_json(arguments):
    reading = Reading(**arguments)
    assert Reading.from_dict(json.loads(json.dumps(reading.to_dict()))) == reading


@pytest.mark.parametrize(
    "spoil",
    [
        lambda values: values.pop("labels"),
        lambda values: values.update(unknown=1),
        lambda values: values["labels"].pop("values"),
        lambda values: values["labels"].update(names=["a", "a"]),
    ],
)
def test_reading_of_unknown_form_raises_user_error(spoil):
    values = json.loads(json.dumps(Reading().to_dict()))
    spoil(values)
    with pytest.raises(UserError):
        Reading.from_dict(values)


@given(
    dtype=st.sampled_from(["uint8", "uint16", "int16", "int32", "float32", "float64"]),
    count=st.integers(1, 12),
    chosen=st.none() | st.lists(st.integers(1, 12), min_size=1, max_size=5).map(tuple),
)
def test_bands_are_in_file_order_or_as_requested(tmp_path_factory, dtype, count, chosen):
    array = bands(count, dtype)
    path = tif(tmp_path_factory.getbasetemp() / "a.tif", array)
    reading = Reading(
        channels=len(chosen or range(count)), bands=chosen, dtype=dtype if dtype in samples.FULL else "float32"
    )
    if chosen and max(chosen) > count and not (count == 1 and set(chosen) <= {1, 2, 3}):
        said = problem(read_image, path, reading)
        assert f"has {count} bands; --channels asks for" in said
        return
    expected = array if chosen is None else array[..., [0 if count == 1 else band - 1 for band in chosen]]
    image, has_data = samples.read_tile(path, reading)
    assert image.dtype == reading.dtype
    assert image.tolist() == expected.astype(reading.dtype).tolist()
    assert has_data.all()
    assert has_data.shape == (6, 8)


@pytest.mark.parametrize(
    ("asked", "order"),
    [((1, 2, 3), [0, 1, 2]), ((1, 2, 3, 4), [0, 1, 2, 3]), ((3, 2, 1), [0, 1, 2]), ((1,), [2]), ((4, 1), [3, 2])],
)
def test_red_is_band_1_but_bands_1_2_3_are_bgr(asked, order, tmp_path):
    array = np.dstack([picture(), picture(seed=1)[..., 0]])
    image = read_image(write(tmp_path / "a.png", array), Reading(channels=len(asked), bands=asked))
    assert image.tolist() == array[..., order].tolist()


def test_a_network_of_bands_gets_color_pictures_as_red_green_blue(tmp_path):
    array = picture()
    opaque = np.dstack([array, np.full((6, 8), 255, np.uint8)])
    for name, file in (("a.png", array), ("b.png", opaque)):
        path = write(tmp_path / name, file)
        for asked in (None, (1, 2, 3)):
            image = read_image(path, Reading(bands=asked, order="bands"))
            assert image.tolist() == array[..., ::-1].tolist()
        assert read_image(path, Reading(order="bgr")).tolist() == array.tolist()


def test_a_network_of_colors_refuses_plain_bands_unless_their_order_is_given(tmp_path):
    array = bands(3, "uint8")
    path = tif(tmp_path / "a.tif", array)
    for asked in (None, (1, 2, 3)):
        assert "holds plain bands; expected a color picture" in problem(
            read_image, path, Reading(bands=asked, order="bgr")
        )
    assert read_image(path, Reading(bands=(3, 2, 1), order="bgr")).tolist() == array[..., ::-1].tolist()
    assert read_image(path, Reading()).tolist() == array.tolist()


def test_gray_image_among_color_is_repeated(tmp_path):
    path = write(tmp_path / "a.png", picture()[..., 0])
    for reading in (Reading(), Reading(bands=(1, 2, 3))):
        assert read_image(path, reading).tolist() == np.dstack([picture()[..., 0]] * 3).tolist()


def test_opaque_alpha_is_dropped_and_other_alpha_refused(tmp_path):
    for dtype, scale in (("uint8", 1), ("uint16", 257)):
        opaque = np.dstack([picture(), np.full((6, 8), 255, np.uint8)]).astype(dtype) * np.dtype(dtype).type(scale)
        path = write(tmp_path / f"{dtype}.png", opaque)
        assert read_image(path, Reading(dtype=dtype)).tolist() == opaque[..., :3].tolist()
        assert read_image(path, Reading(channels=4, dtype=dtype)).tolist() == opaque.tolist()
        opaque[3, 3, 3] = 0
        write(path, opaque)
        with pytest.raises(DataError, match="--channels 1 2 3") as caught:
            read_image(path, Reading(dtype=dtype))
        assert f"{path}: has blue, green, red and an alpha that is not opaque; expected 3" in str(caught.value)
        assert read_image(path, Reading(dtype=dtype, bands=(1, 2, 3))).tolist() == opaque[..., :3].tolist()


@pytest.mark.parametrize(("count", "wanted"), [(1, 4), (2, 3), (4, 3), (3, 1), (12, 3)])
def test_other_numbers_of_bands_are_refused_with_the_flag(count, wanted, tmp_path):
    path = tif(tmp_path / "a.tif", bands(count))
    with pytest.raises(DataError, match="--channels") as caught:
        read_image(path, Reading(channels=wanted, dtype="int16"))
    assert f"{path}: has {count} bands; expected {wanted} channels" in str(caught.value)


@pytest.mark.parametrize(("dtype", "wanted"), [("uint16", "uint8"), ("uint8", "uint16"), ("int32", "int16")])
def test_other_dtype_is_refused(dtype, wanted, tmp_path):
    path = tif(tmp_path / "a.tif", bands(3).astype(dtype))
    with pytest.raises(DataError, match="convert all files") as caught:
        read_image(path, Reading(dtype=wanted))
    assert f"{path}: holds {dtype}; expected {wanted}" in str(caught.value)


# pixels without data


@given(
    dtype=st.sampled_from(["uint8", "uint16", "int16", "int32", "float32", "float64"]),
    holes=st.sets(st.tuples(st.integers(0, 5), st.integers(0, 7), st.integers(0, 2)), max_size=12),
    empty=st.sets(st.tuples(st.integers(0, 5), st.integers(0, 7)), max_size=6),
    by=st.sampled_from(["settings", "file", "file, overruled"]),
    mean=st.sampled_from([(), (0.25, 0.5, 0.75)]),
)
def test_pixels_without_data_in_all_bands_become_the_mean_and_are_ignored(
    tmp_path_factory, dtype, holes, empty, by, mean
):
    root, nodata = tmp_path_factory.getbasetemp(), 77
    array = np.abs(bands(3, "int64")) % 50
    for place in holes | empty:
        array[place] = nodata
    array = array.astype(dtype)
    tag = {"settings": "", "file": str(nodata), "file, overruled": "3"}[by]
    options = {"extratags": [(42113, "s", 0, tag, True)]} if tag else {}
    kind = dtype if dtype in samples.FULL else "float32"
    reading = Reading(TWO, 3, None, kind, None if by == "file" else float(nodata), mean=mean, std=mean)
    pair = Pair(tif(root / "i.tif", array, **options), write(root / "m.png", mask()))
    image, has_data = samples.read_tile(pair.image, reading)
    sample = samples.read_sample(pair, reading)
    none = (array == nodata).all(-1)
    assert (has_data == ~none).all()
    assert image.dtype == sample["image"].dtype == kind
    assert image.tobytes() == sample["image"].tobytes()
    filled = np.broadcast_to(np.array(mean or (0, 0, 0)) * samples.FULL[kind], array.shape)
    replaced = none[..., None] | ((array == nodata) & (np.dtype(kind).kind in "if"))
    assert image[~replaced].tolist() == array[~replaced].tolist()
    assert np.abs(image[replaced] - filled[replaced]).max(initial=0) <= (0 if kind == "float32" else 0.5)
    assert (sample["mask"] == np.where(none, IGNORE_INDEX, mask() // 255)).all()


def test_zero_in_one_band_is_a_measurement(tmp_path):
    array = bands(3, "int16") % 50 + 1
    array[2, 3, 1] = array[4, 5] = 0
    image, has_data = samples.read_tile(
        tif(tmp_path / "a.tif", array), Reading(dtype="int16", nodata=0.0, mean=(0.5,) * 3)
    )
    assert np.argwhere(~has_data).tolist() == [[4, 5]]
    assert image[2, 3].tolist() == array[2, 3].tolist()


@pytest.mark.parametrize("hole", [np.nan, np.inf, -np.inf, 1e300])
def test_non_finite_values_become_the_mean_and_have_no_data_where_all_are(hole, tmp_path):
    array = bands(2, "float64")
    array[1, 2, 0] = array[5, 7] = hole
    reading = Reading(channels=2, dtype="float32", mean=(0.5, 0.25))
    image, has_data = samples.read_tile(tif(tmp_path / "a.tif", array), reading)
    assert np.argwhere(~has_data).tolist() == [[5, 7]]
    assert image[1, 2].tolist() == [0.5, np.float32(array[1, 2, 1])]
    assert image[5, 7].tolist() == [0.5, 0.25]
    assert np.isfinite(image).all()


@pytest.mark.parametrize("opaque", [True, False])
@pytest.mark.parametrize(("asked", "alpha"), [(None, 3), ((4, 1, 2, 3), 0), ((1, 2, 3), None), ((4,), 0)])
def test_alpha_is_never_compared_with_nodata(asked, alpha, opaque, tmp_path):
    array = np.dstack([picture() // 2, np.full((6, 8), 255, np.uint8)])
    array[0, 0, 3] = 255 if opaque else 0
    array[2, 3, :3] = array[4, 5, :3] = 255
    path = write(tmp_path / "a.png", array)
    reading = Reading(channels=len(asked or range(4)), bands=asked, nodata=255.0)
    image, has_data = samples.read_tile(path, reading)
    assert np.argwhere(~has_data).tolist() == ([] if asked == (4,) else [[2, 3], [4, 5]])
    if alpha is not None:
        assert (image[has_data][1:, alpha] == 255).all()
        assert image[0, 0, alpha] == array[0, 0, 3]


def test_float_alpha_of_the_nodata_value_stays(tmp_path):
    array = np.dstack([picture() / 512, np.ones((6, 8))]).astype(np.float32)
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="rgb", extrasamples=["unassalpha"])
    image, has_data = samples.read_tile(tmp_path / "a.tif", Reading(channels=4, dtype="float32", nodata=1.0))
    assert has_data.all()
    assert (image[..., 3] == 1).all()


def test_fourth_signed_band_of_a_color_tiff_is_compared_with_nodata(tmp_path):
    array = bands(4, "int16")
    array[1, 2, 3] = array[3, 4] = -9999
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, array, photometric="rgb", extrasamples=["unassalpha"])
    image, has_data = samples.read_tile(path, Reading(channels=4, dtype="int16", nodata=-9999.0))
    assert np.argwhere(~has_data).tolist() == [[3, 4]]
    assert image[1, 2].tolist() == [*array[1, 2, 2::-1], 0]


def test_only_used_bands_decide_the_data_mask(tmp_path):
    array = bands(3, "float32")
    array[0, 0, 0] = array[1, 1, 1:] = np.nan
    reading = Reading(channels=2, bands=(2, 3), dtype="float32")
    assert np.argwhere(~samples.read_tile(tif(tmp_path / "a.tif", array), reading)[1]).tolist() == [[1, 1]]


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("where", ["inside", "beside"])
def test_gdal_mask_decides_instead_of_nodata(where, compression, tmp_path):
    array, shown = picture(), np.ones((6, 8), bool)
    array[0, 0], shown[:, :3] = 7, False
    path, tags = tmp_path / "a.tif", [(42113, "s", 0, "7", True)]
    with tifffile.TiffWriter(path) as writer:
        writer.write(array, photometric="rgb", compression=compression, extratags=tags)
        if where == "inside":
            writer.write(shown, photometric="mask", subfiletype=4, compression="zlib")
            writer.write(shown[::2, ::2], photometric="mask", subfiletype=5)
    if where == "beside":
        tifffile.imwrite(f"{path}.msk", shown * np.uint8(255))
    for has_data in (samples.read_tile(path)[1], open_tile(path, Reading())[1][:, :]):
        assert has_data.tolist() == shown.tolist()
    assert open_tile(path, Reading())[1][2:5, 1:6].tolist() == shown[2:5, 1:6].tolist()
    everywhere = samples.read_tile(path, Reading(nodata=float(array[3, 5, 0])))[1]
    assert (everywhere <= shown).all()


def test_mask_beside_of_another_size_is_refused(tmp_path):
    path = write(tmp_path / "a.png", picture())
    tifffile.imwrite(f"{path}.msk", np.zeros((5, 5), np.uint8))
    with pytest.raises(DataError, match=r"a\.png\.msk: is 5x5, but its image a\.png is 8x6"):
        samples.read_tile(path)


def test_alpha_and_nodata_agree_in_plain_and_compressed_files(tmp_path):
    array = np.dstack([picture() % 200, np.full((6, 8), 255, np.uint8)])
    array[0, 0, 3] = 0
    array[5, :, :3] = 255
    for name, how in (("plain", {}), ("deflate", {"compression": "zlib"})):
        path, tags = tmp_path / f"{name}.tif", [(42113, "s", 0, "255", True)]
        tifffile.imwrite(path, array, photometric="rgb", extrasamples=["unassalpha"], extratags=tags, **how)
        for has_data in (
            samples.read_tile(path, Reading(channels=4))[1],
            open_tile(path, Reading(channels=4))[1][:, :],
        ):
            assert has_data.tolist() == [[True] * 8] * 5 + [[False] * 8]


@pytest.mark.parametrize("nodata", [-9999.0, 300.0, 0.5, 1e40, float("inf")])
def test_nodata_out_of_range_of_the_dtype_matches_nothing(nodata, tmp_path):
    path = write(tmp_path / "a.png", picture())
    image, has_data = samples.read_tile(path, Reading(nodata=nodata))
    assert has_data.all()
    assert image.tolist() == picture().tolist()


def test_gdal_lowest_float_is_nodata(tmp_path):
    array = bands(1, "float32")[..., 0]
    array[2, 3] = np.finfo(np.float32).min
    path = tif(tmp_path / "a.tif", array, extratags=[(42113, "s", 0, "-3.4028234663852886e+38", True)])
    reading = Reading(channels=1, dtype="float32")
    assert np.argwhere(~samples.read_tile(path, reading)[1]).tolist() == [[2, 3]]


# masks by a class map


def test_a_mask_is_read_by_the_class_map(tmp_path):
    reading = Reading(ClassMap((10, 20), ("a", "b"), (255,)))
    path = write(tmp_path / "m.png", np.array([[10, 20, 255]], np.uint8))
    assert read_mask(path, reading).tolist() == [[0, 1, IGNORE_INDEX]]
    write(path, np.array([[10, 21, 21]], np.uint8))
    with pytest.raises(DataError) as caught:
        read_mask(path, reading)
    assert f"{path}: holds 21 (2 pixels); expected 10, 20, 255" in str(caught.value)
    assert "--ignore-index" in str(caught.value)


def test_palette_mask_is_read_by_indices_or_with_colors_by_colors(tmp_path):
    indexed = Image.fromarray(np.array([[0, 1, 1]], np.uint8))
    indexed.putpalette([255, 255, 255, 255, 0, 0])
    indexed.save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png", Reading(ClassMap((1, 0), ("a", "b")))).tolist() == [[1, 0, 0]]
    by_color = Reading(ClassMap((0xFF0000, 0xFFFFFF), ("a", "b"), color=True))
    assert read_mask(tmp_path / "m.png", by_color).tolist() == [[1, 0, 0]]
    binary = Reading(ClassMap((0, 128), ("a", "b"), binarize=128))
    assert read_mask(tmp_path / "m.png", binary).tolist() == [[1, 0, 0]]


@given(grays=st.lists(st.integers(0, 255), min_size=1, max_size=30), color=st.booleans())
def test_binarizing_at_255_is_the_articles_rule(tmp_path_factory, grays, color):
    path = tmp_path_factory.getbasetemp() / "m.png"
    array = np.array([grays], np.uint8)
    write(path, np.dstack([array, array, array[:, ::-1]]) if color else array)
    by_map = ClassMap((0, 255), ("no", "yes"), binarize=255)
    assert read_mask(path, Reading(by_map)).tolist() == read_mask(path).tolist()


def test_the_articles_rule_takes_8_bits_only(tmp_path):
    path = write(tmp_path / "m.png", mask().astype(np.uint16) * 257)
    said = problem(read_mask, path)
    assert "uint16" in said
    assert "--labels" in said


def test_alpha_of_a_mask_is_ignored(tmp_path):
    path = write(tmp_path / "m.png", np.dstack([mask()] * 3 + [picture()[..., 0]]))
    assert read_mask(path).tolist() == (mask() // 255).tolist()
    assert read_mask(path, Reading(TWO)).tolist() == (mask() // 255).tolist()


def test_mask_of_other_size_is_named_with_both_sizes(tmp_path):
    pair = Pair(write(tmp_path / "i.png", picture()), write(tmp_path / "m.png", mask(width=10)))
    said = problem(samples.read_sample, pair)
    for part in (str(pair.mask), "10x6", "i.png is 8x6"):
        assert part in said


# files that are not whole


@given(cut=st.floats(0, 1, exclude_max=True))
def test_truncated_png_does_not_decode(tmp_path_factory, cut):
    path = tmp_path_factory.getbasetemp() / "cut.png"
    whole = write(path, picture()).read_bytes()
    path.write_bytes(whole[: int(cut * len(whole))])
    with pytest.raises(DataError, match=r"cut\.png"):
        read_image(path)


def test_truncated_jpeg_and_tiff_do_not_decode(tmp_path):
    for name in ("a.jpg", "a.tif"):
        path = write(tmp_path / name, picture(64, 64))
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(DataError, match=name):
            read_image(path)


def test_one_hot_needs_one_band_a_pixel_and_several_bands_in_all():
    on = np.eye(3, dtype=np.uint8)[np.array([[0, 1], [2, 1]])] * 255
    assert masks._is_one_hot(on)
    assert not masks._is_one_hot(np.eye(3, dtype=np.uint8)[np.array([[1, 1], [1, 1], [1, 1]])])  # one band alone
    assert not masks._is_one_hot(np.zeros((2, 2, 3), np.uint8))
    assert not masks._is_one_hot(np.where([[[True, False, False]]], 7, on))  # two values
    assert not masks._is_one_hot(np.full((2, 2, 3), 255, np.uint8))
