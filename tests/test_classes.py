"""What the values of a mask file are, which classes a set of them has, and what is refused."""

import io
import itertools
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from jaxseg.base.config import IGNORE_INDEX, Data
from jaxseg.base.errors import DataError, UserError
from jaxseg.data.read.masks import ARTICLE, MOST_CLASSES, PALETTE, ClassMap, read_values, show, to_colors
from jaxseg.doctor import shapes
from jaxseg.doctor.classes import discover


def png(path: Path, array: np.ndarray) -> Path:
    path.write_bytes(cv2.imencode(".png", array)[1].tobytes())
    return path


def tif(path: Path, array: np.ndarray, **options) -> Path:
    tifffile.imwrite(path, array, **options)
    return path


def colored(*colors: int) -> np.ndarray:
    """[1 n 3] BGR."""
    return np.array([[(c & 255, c >> 8 & 255, c >> 16) for c in colors]], np.uint8)


def named(values: tuple[int, ...], **kind) -> ClassMap:
    return ClassMap(values, tuple(f"class {i}" for i in range(len(values))), **kind)


# what a mask file holds


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_a_gray_png_gives_its_values(dtype, tmp_path):
    array = np.array([[0, 1, 255], [7, np.iinfo(dtype).max, 2]], dtype)
    values, color = read_values(png(tmp_path / "a.png", array))
    assert not color
    assert values.dtype == dtype
    assert values.tolist() == array.tolist()


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "uint32", "int64"])
def test_a_tiff_of_integers_gives_its_values(dtype, tmp_path):
    array = np.array([[-1, 0, 100]]).astype(dtype)
    assert read_values(tif(tmp_path / "a.tif", array))[0].tolist() == array.tolist()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_whole_floats_are_accepted(dtype, tmp_path):
    array = np.array([[0, 1, 255, -9999]], dtype)
    values, color = read_values(tif(tmp_path / "a.tif", array))
    assert (values.dtype.kind, color) == ("i", False)
    assert values.tolist() == array.tolist()


@pytest.mark.parametrize("wrong", [0.5, np.nan, np.inf, -np.inf, 1e30])
def test_fractional_floats_are_refused_with_the_value(wrong, tmp_path):
    path = tif(tmp_path / "a.tif", np.array([[0, 1, wrong, wrong]], np.float64))
    with pytest.raises(DataError, match=r"whole numbers") as caught:
        read_values(path)
    assert f"{path}: holds {wrong:g} (2 values" in str(caught.value)


def test_a_number_that_does_not_fit_64_bits_is_refused(tmp_path):
    path = tif(tmp_path / "a.tif", np.array([[0, 2**64 - 1]], np.uint64))
    with pytest.raises(DataError, match="whole numbers"):
        read_values(path)


@given(colors=st.lists(st.integers(0, 0xFFFFFF), min_size=2, max_size=30))
def test_color_masks_give_0xrrggbb_values(tmp_path_factory, colors):
    path = png(tmp_path_factory.getbasetemp() / "a.png", colored(0x123456, *colors))
    values, color = read_values(path)
    assert color
    assert values.tolist() == [[0x123456, *colors]]
    alpha = np.dstack([colored(0x123456, *colors), np.arange(len(colors) + 1, dtype=np.uint8)[None]])
    assert read_values(png(path, alpha))[0].tolist() == values.tolist()


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_equal_rgb_channels_are_gray(dtype, tmp_path):
    gray = np.array([[0, 7, 255]], dtype)
    values, color = read_values(png(tmp_path / "a.png", np.dstack([gray] * 3)))
    assert not color
    assert values.tolist() == gray.tolist()


def test_palette_mask_gives_indices_or_colors(tmp_path):
    picture = Image.fromarray(np.array([[0, 1, 2, 1]], np.uint8))
    picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    for path in (tmp_path / "a.png", tmp_path / "a.gif", tmp_path / "a.tif"):
        picture.save(path)
        assert read_values(path)[0].tolist() == [[0, 1, 2, 1]]
        assert read_values(path)[1] is False
        values, color = read_values(path, color=True)
        assert color
        assert values.tolist() == [[0, 0xFF0000, 0x00FF00, 0xFF0000]]


def test_one_bit_mask_gives_0_and_1_or_black_and_white(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.array([[True, False, True]])).save(path)
    assert read_values(path)[0].tolist() == [[1, 0, 1]]
    assert read_values(path, color=True)[0].tolist() == [[255, 0, 255]]


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((4, 5, 2), np.uint8), "has 2 bands"),
        (np.zeros((4, 5, 12), np.int16), "has 12 bands"),
    ],
)
def test_a_mask_of_many_bands_is_refused(array, said, tmp_path):
    path = tif(tmp_path / "a.tif", array, photometric="minisblack", planarconfig="contig")
    with pytest.raises(DataError, match=said):
        read_values(path)


def test_colors_of_16_bits_are_refused(tmp_path):
    with pytest.raises(DataError, match="colors of type uint16"):
        read_values(png(tmp_path / "a.png", colored(0xFF0000).astype(np.uint16) * 257))


def test_truncated_mask_is_refused(tmp_path):
    path = png(tmp_path / "a.png", np.zeros((64, 64), np.uint8))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="cut off"):
        read_values(path)


# from values to classes


values_of = {
    "uint8": st.integers(0, 255),
    "uint16": st.integers(0, 2**16 - 1),
    "int16": st.integers(-(2**15), 2**15 - 1),
    "int32": st.integers(-(2**31), 2**31 - 1),
    "int64": st.integers(-(2**62), 2**62),
}


@st.composite
def maps_and_masks(draw):
    """What a class map is made of, and values that all mean something."""
    color = draw(st.booleans())
    dtype = draw(st.sampled_from(["int32", "int64"] if color else list(values_of)))
    one = st.integers(0, 0xFFFFFF) if color else values_of[dtype]
    known = draw(st.lists(one, min_size=2, max_size=20, unique=True))
    ignored = draw(st.integers(0, len(known) - 1))
    mask = draw(st.lists(st.sampled_from(known), min_size=1, max_size=30))
    return {"values": tuple(known[ignored:]), "ignored": tuple(known[:ignored]), "color": color}, dtype, mask


@given(maps_and_masks())
def test_encoding_is_invertible(case):
    labels, values = named(**case[0]), np.array([case[2]], case[1])
    classes = labels.encode(values, labels.color)
    assert (classes.dtype, classes.shape) == (np.uint8, values.shape)
    for value, number in zip(values.ravel().tolist(), classes.ravel().tolist()):
        if number == IGNORE_INDEX:
            assert value in labels.ignored
        else:
            assert labels.values[number] == value


@given(maps_and_masks(), st.data())
def test_value_of_no_class_is_refused(case, data):
    labels, values = named(**case[0]), np.array([case[2]], case[1])
    one = st.integers(0, 0xFFFFFF) if labels.color else values_of[str(values.dtype)]
    other = data.draw(one.filter(lambda v: v not in labels.values + labels.ignored))
    values.flat[data.draw(st.integers(0, values.size - 1))] = other
    with pytest.raises(DataError) as caught:
        labels.encode(values, labels.color)
    assert f"{show(other, labels.color)} (1 pixels)" in str(caught.value)


@given(maps_and_masks(), st.data())
def test_snap_takes_the_nearest_value(case, data):
    labels = named(**case[0], snap=True)
    dtype = data.draw(st.sampled_from(["int32"] if labels.color else ["uint8", "uint16", "int32"]))
    one = st.integers(0, 0xFFFFFF) if labels.color else values_of[dtype]
    values = np.array([data.draw(st.lists(one, min_size=1, max_size=10))], dtype)
    classes = labels.encode(values, labels.color)

    def distance(a: int, b: int) -> int:
        return (
            sum(
                (a >> s & 255) * (a >> s & 255) - 2 * (a >> s & 255) * (b >> s & 255) + (b >> s & 255) ** 2
                for s in (0, 8, 16)
            )
            if labels.color
            else abs(a - b)
        )

    known = labels.values + labels.ignored
    for value, number in zip(values[0].tolist(), classes[0].tolist()):
        nearest = min(known, key=lambda v: distance(v, value))
        assert number == (labels.values.index(nearest) if nearest in labels.values else IGNORE_INDEX)


def test_snap_tie_takes_the_first_value():
    for dtype in ("uint8", "int32"):
        assert named((0, 10), snap=True).encode(np.array([[5]], dtype), color=False).tolist() == [[0]]
        assert named((10, 0), snap=True).encode(np.array([[5]], dtype), color=False).tolist() == [[0]]


def test_gray_among_colors_is_the_color_vvv():
    labels = named((0, 0xFFFFFF, 0x808080, 0xFF0000), color=True)
    assert labels.encode(np.array([[0, 255, 128]], np.uint8), color=False).tolist() == [[0, 1, 2]]
    with pytest.raises(DataError, match=r"#070707 \(2 pixels\); expected #000000, #ffffff"):
        labels.encode(np.array([[0, 7, 7]], np.uint8), color=False)
    for beyond in (300, -1, 0xFF0000):  # the number of a color is not that color
        with pytest.raises(DataError, match=rf"holds {beyond} \(1"):
            labels.encode(np.array([[0, beyond]], np.int32), color=False)


def test_color_among_grays_is_gray_if_vvv_else_refused():
    labels = named((0, 255), ignored=(7,))
    assert labels.encode(np.array([[0xFFFFFF, 0, 0x070707]]), color=True).tolist() == [[1, 0, IGNORE_INDEX]]
    with pytest.raises(DataError, match=r"#ff0000 \(2 pixels\), #0000ff \(1 pixels\)"):
        labels.encode(np.array([[0, 0xFF0000, 0xFF0000, 0x0000FF]]), color=True)
    snapped = named((0, 255), snap=True)
    assert snapped.encode(np.array([[0xFEFFFC, 0x020003, 0xFFFFFF]]), color=True).tolist() == [[1, 0, 1]]
    with pytest.raises(DataError, match="#000000"):
        named((300, 400)).encode(np.array([[0]]), color=True)


@given(
    grays=st.lists(st.integers(0, 255), min_size=1, max_size=20),
    binarize=st.integers(1, 255),
    ignored=st.sets(st.integers(0, 255), max_size=3),
)
@example(grays=[0, 3, 200, 255, 7], binarize=128, ignored={3, 255})
def test_binarize_splits_at_the_threshold(grays, binarize, ignored):
    labels = ClassMap((0, binarize), ("no", "yes"), tuple(ignored), binarize=binarize)
    expected = [IGNORE_INDEX if v in ignored else int(v >= binarize) for v in grays]
    assert labels.encode(np.array([grays], np.uint8), color=False).tolist() == [expected]
    assert labels.encode(to_colors(np.array([grays], np.uint8)), color=True).tolist() == [expected]


def test_colors_are_binarized_by_opencv_gray():
    colors = [0xFFFFFF, 0xFFFFFE, 0xFFFEFF, 0xFF0000, 0x00FF00]
    gray = cv2.cvtColor(colored(*colors), cv2.COLOR_BGR2GRAY)
    for binarize in (76, 77, 149, 150, 255):
        labels = ClassMap((0, binarize), ("no", "yes"), binarize=binarize)
        assert labels.encode(np.array([colors]), color=True).tolist() == (gray >= binarize).astype(int).tolist()
    assert ARTICLE.encode(np.array([colors]), color=True).tolist() == (gray // 255).tolist()


def test_a_mask_of_8_bits_takes_well_under_a_millisecond():
    labels = named((0, 255, 7), ignored=(9,))
    values = np.random.default_rng(0).choice(np.array([0, 255, 7, 9], np.uint8), (256, 256))
    labels.encode(values, color=False)

    def seconds() -> float:
        start = time.perf_counter()
        labels.encode(values, color=False)
        return time.perf_counter() - start

    assert min(seconds() for _ in range(20)) < 5e-4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"values": (0, 0), "names": ("a", "b")}, "0 are given two meanings"),
        ({"values": (0, 1), "names": ("a", "b"), "ignored": (1,)}, "1 are given two meanings"),
        ({"values": (0, 1), "names": ("a", "a")}, "a different name for each"),
        ({"values": (0, 1), "names": ("a",)}, "a different name for each"),
        ({"values": (), "names": ()}, "0 classes"),
        ({"values": tuple(range(255)), "names": tuple(map(str, range(255)))}, "255 classes; expected 1 to 254"),
    ],
)
def test_contradictory_class_map_is_refused(arguments, said):
    with pytest.raises(UserError, match=said):
        ClassMap(**arguments)


def test_maximum_number_of_classes_is_encoded_distinctly():
    labels = named(tuple(range(MOST_CLASSES)), ignored=(255,))
    every = np.arange(256, dtype=np.uint8)[None]
    with pytest.raises(DataError, match=r"holds 254 \(1 pixels\)"):
        labels.encode(every, color=False)
    assert labels.encode(np.delete(every, 254, axis=1), color=False)[0].tolist() == [*range(254), IGNORE_INDEX]


def test_palette_uses_mask_colors_or_the_default():
    shown = named((0x112233, 0xFFEE00), color=True).palette()
    assert shown[:2].tolist() == [[0x11, 0x22, 0x33], [0xFF, 0xEE, 0x00]]
    assert shown[2:].tolist() == PALETTE[2:].tolist()
    assert named((0, 7)).palette().tolist() == PALETTE.tolist()


# finding the classes


def found(counts, color=False, **settings) -> ClassMap:
    if not isinstance(counts, dict):
        counts = dict.fromkeys(counts, 100)
    return discover(counts, color, Data(**settings))


def refused(counts, color=False, **settings) -> str:
    with pytest.raises(UserError) as caught:
        found(counts, color, **settings)
    return str(caught.value)


@pytest.mark.parametrize(
    ("held", "values", "ignored"),
    [
        ([0, 255], (0, 255), ()),
        ([0, 1], (0, 1), ()),
        ([1, 255], (1, 255), ()),
        ([0, 1, 2, 3], (0, 1, 2, 3), ()),
        ([3, 1, 2], (1, 2, 3), ()),
        ([10, 700, 20], (10, 20, 700), ()),
        ({0: 900, 1: 90, 255: 10}, (0, 1), (255,)),
        ({10: 900, 20: 90, 255: 10}, (10, 20), (255,)),
        ({**dict.fromkeys(range(20), 100), 255: 20}, tuple(range(20)), (255,)),
    ],
)
def test_sorted_values_are_classes_and_a_rare_255_is_ignored(held, values, ignored):
    labels = found(held)
    assert (labels.values, labels.ignored, labels.color, labels.snap, labels.binarize) == (
        values,
        ignored,
        False,
        False,
        None,
    )


def test_classes_get_default_or_given_names():
    assert found([0, 255]).names == found([0, 1]).names == ("background", "foreground")
    assert found({0: 900, 1: 90, 255: 10}).names == ("background", "foreground")
    assert found([1, 2, 4]).names == ("class 0", "class 1", "class 2")
    assert found([0xFF0000, 0], color=True).names == ("#000000", "#ff0000")
    assert found([0, 128], binarize=100).names == ("background", "foreground")
    assert found([0, 255], class_names=("soil", "field")).names == ("soil", "field")
    said = refused([0, 5, 9], class_names=("soil", "field"))
    for part in ("--class-names has 2 (soil, field)", "3 classes: 0, 5, 9"):
        assert part in said


def test_each_color_is_a_class():
    labels = found([0xFF0000, 0x000000, 0x00FF00, 0xFFFFFF], color=True)
    assert labels.color
    assert labels.values == (0, 0x00FF00, 0xFF0000, 0xFFFFFF)
    assert labels.ignored == ()


def test_ignore_index_names_the_ignored_values():
    assert found([0, 1, 255], ignore_index=()).values == (0, 1, 255)
    labels = found([0, 1, 2], ignore_index=(0,))
    assert (labels.values, labels.ignored) == ((1, 2), (0,))
    labels = found([0, 1, 255], ignore_index=(7, 255))
    assert (labels.values, labels.ignored) == ((0, 1), (7, 255))
    labels = found([0xFF0000, 0, 0xFFFFFF], color=True, ignore_index=(0xFFFFFF,))
    assert (labels.values, labels.ignored) == ((0, 0xFF0000), (0xFFFFFF,))
    labels = found([0xFF0000, 0x00FF00, 0xFFFFFF, 0], color=True, ignore_index=(255, 0))  # the grays, not a blue
    assert (labels.values, labels.ignored) == ((0x00FF00, 0xFF0000), (0xFFFFFF, 0))
    assert found([0, 0xFFFFFF, 0xFF0000], color=True, labels=("#000000", "#ff0000"), ignore_index=(255,)).ignored == (
        0xFFFFFF,
    )


def test_classes_n_takes_values_below_n_and_refuses_others():
    labels = found([0, 2, 255], classes=4)
    assert (labels.values, labels.ignored) == ((0, 1, 2, 3), (255,))
    assert found([0, 1, 9], classes=2, ignore_index=(9,)).ignored == (9,)
    said = refused({0: 900, 2: 60, 7: 30, 9: 10}, classes=3)
    for part in ("7 (3 %), 9 (1 %)", "expected 0, 1, 2, 255", "--ignore-index 7 9", "--labels"):
        assert part in said
    assert "2 to 254" in refused([0, 1], classes=1)
    assert "2 to 254" in refused([0, 1], classes=255)


def test_classes_2_accepts_0_and_255():
    assert found([0, 255], classes=2).values == (0, 255)


def test_labels_give_the_class_order():
    labels = found([0, 100, 200], labels=("200", "0", "100"))
    assert labels.values == (200, 0, 100)
    assert labels.encode(np.array([[0, 100, 200]], np.uint8), False).tolist() == [[1, 2, 0]]
    labels = found([0, 0xFF0000], color=True, labels=("#ff0000", "#000000"))
    assert (labels.values, labels.color, labels.names) == ((0xFF0000, 0), True, ("#ff0000", "#000000"))
    assert found([0, 255, 128], labels=("#ffffff", "#000000", "#808080")).color  # gray in a set of colors
    assert found([0, 0xFFFFFF], color=True, labels=("0", "255")).values == (0, 255)
    assert found([0, 1, 255], labels=("0", "1")).ignored == (255,)
    assert found([0, 1], labels=("0", "1", "-5")).values == (0, 1, -5)


@pytest.mark.parametrize(
    ("held", "settings", "parts"),
    [
        ([0, 1, 7], {"labels": ("0", "1")}, ("7 (33.3 %)", "expected 0, 1, 255", "--ignore-index 7", "--snap-colors")),
        ([0, 1], {"labels": ("0", "red")}, ("--labels red", "'#00ff7f'")),
        ([0, 1], {"labels": ("#12", "#ff0000")}, ("--labels #12", "'#00ff7f'")),
        ([0, 1], {"labels": ("0", "#ff0000")}, ("--labels 0 #ff0000", "not both")),
        ([0, 1], {"labels": ()}, ("--labels",)),
        ([0, 1], {"labels": ("0", "0")}, ("0 are given two meanings",)),
        ([0, 1], {"labels": ("0", "1"), "ignore_index": (1,)}, ("1 are given two meanings",)),
        ([0, 1], {"labels": ("0", "1"), "classes": 3}, ("--classes is 3", "--labels names 2")),
        ([0, 1], {"snap_colors": True}, ("--snap-colors needs --labels",)),
        ([0, 1], {"binarize": 1, "labels": ("0", "1")}, ("--binarize", "leave out")),
        ([0, 1], {"binarize": 1, "classes": 3}, ("--binarize", "leave out")),
        ([0, 1], {"binarize": 0}, ("--binarize is 0",)),
        ([0, 3], {"binarize": 128}, ("--binarize 128", "one side", "0 (50 %), 3 (50 %)", "between")),
        ([300, 400], {"binarize": 128}, ("one side",)),
    ],
)
def test_settings_that_do_not_fit_the_masks_are_refused(held, settings, parts):
    said = refused(held, **settings)
    assert [part for part in parts if part not in said] == []


@pytest.mark.parametrize(
    ("held", "settings", "parts"),
    [
        ([0], {}, ("one class only", "0 (100 %)", "right masks")),
        ([255], {}, ("one class only",)),
        ([0, 255], {"ignore_index": (255,)}, ("one class only", "255 is ignored", "--labels")),
        ([255], {"ignore_index": (255,)}, ("one class only", "255 is ignored")),
        ([0, 255], {"classes": 3}, ("one class only", "255 is ignored")),
        ([5], {"labels": ("5", "6")}, ("one class only", "5 (100 %)")),
        ([0xFF0000], {"color": True}, ("one class only", "#ff0000 (100 %)")),
    ],
)
def test_one_class_is_refused(held, settings, parts):
    said = refused(held, **settings)
    assert [part for part in parts if part not in said] == []


def test_masks_without_pixels_are_refused():
    assert "no pixels" in refused({})
    assert "no pixels" in refused({0: 0})


def test_negative_values_are_refused_unless_named():
    said = refused([0, 1, -9999])
    assert "-9999 (33.3 %)" in said
    assert "--ignore-index -9999" in said
    assert found([0, 1, -9999], ignore_index=(-9999,)).values == (0, 1)
    assert found([-1, 0], labels=("-1", "0")).values == (-1, 0)


# masks that were resampled or went through JPEG


def counts_of(array: np.ndarray) -> dict[int, int]:
    return dict(zip(*(part.tolist() for part in np.unique(array, return_counts=True))))


def blobs(values: tuple[int, ...], size: int = 256) -> np.ndarray:
    noise = cv2.GaussianBlur(np.random.default_rng(0).random((size, size)), (0, 0), 12)
    edges = np.quantile(noise, np.linspace(0, 1, len(values) + 1)[1:-1])
    return np.array(values, np.uint8)[np.digitize(noise, edges)]


def jpeg(array: np.ndarray) -> np.ndarray:
    return cv2.imdecode(cv2.imencode(".jpg", array, [cv2.IMWRITE_JPEG_QUALITY, 90])[1], cv2.IMREAD_UNCHANGED)


def enlarged(array: np.ndarray) -> np.ndarray:
    return cv2.resize(array, None, fx=1.5, fy=1.5, interpolation=cv2.INTER_CUBIC)


@pytest.mark.parametrize("spoil", [jpeg, enlarged])
def test_resampled_two_value_masks_are_refused_with_the_fix(spoil):
    spoiled = spoil(blobs((0, 255)))
    counts = counts_of(spoiled)
    near = sum(n for v, n in counts.items() if v <= 4 or v >= 251) / spoiled.size
    said = refused(counts)
    first = (
        f"{len(counts)} distinct values: looks resampled or JPEG; {100 * near:.3g} % of pixels within 4 of {{0, 255}}"
    )
    assert said.splitlines()[0] == first
    assert "--binarize 128" in said
    assert "--labels 0 255 --snap-colors" in said
    fixed = [found(counts, binarize=128), found(counts, labels=("0", "255"), snap_colors=True)]
    for labels in fixed:
        assert (labels.encode(spoiled, False) == (spoiled >= 128)).all()
        assert (labels.encode(spoil(blobs((0, 255))), False) != spoil(blobs((0, 255))) // 128).mean() == 0


def test_resampled_three_value_mask_is_refused_and_snaps():
    spoiled = jpeg(blobs((0, 100, 200)))
    said = refused(counts_of(spoiled))
    assert "within 4 of {0, 100, 200}" in said
    assert "--labels 0 100 200 --snap-colors" in said
    assert "--binarize" not in said
    labels = found(counts_of(spoiled), labels=("0", "100", "200"), snap_colors=True)
    right = np.digitize(blobs((0, 100, 200)), [50, 150])
    assert (labels.encode(spoiled, False) != right).mean() < 0.02


def test_resampled_color_mask_is_refused_and_snaps(tmp_path):
    right = blobs((0, 1, 2))
    picture = colored(0x000000, 0xFF0000, 0x00FF00)[0][right]
    values, color = read_values(png(tmp_path / "a.png", jpeg(picture)))
    assert color
    said = refused(counts_of(values), color=True)
    assert "distinct colors: looks resampled or JPEG" in said
    assert "--snap-colors" in said
    labels = found(counts_of(values), color=True, labels=("#000000", "#ff0000", "#00ff00"), snap_colors=True)
    assert (labels.encode(values, True) != right).mean() < 0.03


@pytest.mark.parametrize(
    "counts",
    [
        {0: 9000, 255: 9000, 1: 10, 254: 12},
        {0: 9000, 1: 30, 2: 10, 253: 8, 254: 30, 255: 9000},
        {0: 50_000, 64: 150, 128: 160, 191: 140, 255: 20_000},
        {0: 50_000, 127: 1, 255: 20_000},
        {100: 5000, 101: 30, 99: 20, 200: 5000, 201: 10},
    ],
)
def test_few_extra_values_are_refused_unless_named(counts):
    said = refused(counts)
    assert "looks resampled or JPEG" in said
    assert "if they are classes" in said
    flags = [line.split(",")[0] for line in said.splitlines() if "if they are classes" in line]
    assert flags == [f"  --labels {' '.join(str(v) for v in sorted(counts))}"]


@pytest.mark.parametrize(
    "counts",
    [
        {v: 10 ** (6 - v % 6) for v in range(20)},  # some classes are rare
        {v: 10 ** (6 - v % 6) for v in (7, 8, 11, 12, 13, 17, 19, 20, 21, 33)} | {255: 10},
        {10: 10**6, 20: 900, 30: 10**5, 40: 50, 50: 4, 60: 1, 80: 10**3, 90: 10, 95: 10, 100: 3},
        {0: 10**6, 1: 3, 255: 10**3},
    ],
)
def test_rare_classes_are_kept(counts):
    assert set(found(counts).values) == set(counts) - {255}


def test_too_many_values_are_refused_unless_named():
    many = dict.fromkeys(range(150), 10)
    said = refused(many)
    assert said.startswith("150 distinct values: ")
    assert "--classes 150, if they are classes" in said
    assert found(many, classes=150).values == tuple(range(150))
    assert found(many, labels=tuple(map(str, range(150)))).values == tuple(range(150))
    assert "256 distinct values" in refused(dict.fromkeys(range(256), 10))


@given(
    counts=st.dictionaries(st.integers(-3, 300), st.integers(0, 10**6), max_size=40),
    color=st.booleans(),
    settings=st.fixed_dictionaries(
        {},
        optional={
            "classes": st.integers(0, 300),
            "labels": st.lists(st.integers(-1, 300).map(str) | st.just("#010203"), max_size=4).map(tuple),
            "ignore_index": st.lists(st.integers(-1, 300), max_size=3).map(tuple),
            "binarize": st.integers(-1, 300),
            "snap_colors": st.booleans(),
            "class_names": st.just(("a", "b")),
        },
    ),
)
def test_any_counts_give_a_complete_map_or_user_error(counts, color, settings):
    if color:
        counts = {abs(value) * 9999 % 2**24: count for value, count in counts.items()}
    try:
        labels = discover(counts, color, Data(**settings))
    except UserError as error:
        assert str(error)  # noqa: PT017
        return
    held = [value for value, count in counts.items() if count]
    classes = labels.encode(np.array([held], np.int64), color)[0].tolist()
    assert len(set(classes) - {IGNORE_INDEX}) >= 2
    assert all(number < len(labels.values) or number == IGNORE_INDEX for number in classes)
    assert len(labels.names) == len(labels.values)


def test_any_mix_of_black_and_white_formats_is_two_classes(tmp_path):
    """However 0 and 255 are stored, --binarize reads them alike."""
    bits = blobs((0, 255), 32) > 0
    palette = Image.fromarray(bits.astype(np.uint8))
    palette.putpalette([0, 0, 0, 255, 255, 255])
    files = {
        "gray": Image.fromarray(bits.astype(np.uint8) * 255),
        "bit": Image.fromarray(bits),
        "palette": palette,
        "color": Image.fromarray(np.dstack([bits.astype(np.uint8) * 255] * 3)),
    }
    labels = ClassMap((0, 128), ("no", "yes"), binarize=128)
    for (name, picture), end in itertools.product(files.items(), ("png", "bmp", "tif")):
        buffer = io.BytesIO()
        picture.save(buffer, {"png": "PNG", "bmp": "BMP", "tif": "TIFF"}[end])
        path = tmp_path / f"{name}.{end}"
        path.write_bytes(buffer.getvalue())
        assert labels.encode(*read_values(path, color=True)).tolist() == bits.astype(int).tolist()


def test_uneven_values_between_two_common_ends_are_seams():
    soft = {0: 300, 3: 40, 22: 40, 80: 40, 175: 40, 233: 40, 252: 40, 255: 300}
    with pytest.raises(UserError, match="--binarize 128"):
        discover(soft, False, Data())
    even = dict.fromkeys(range(0, 256, 51), 40) | {0: 300, 255: 300}
    assert "--labels 0 51 102 153 204 255, if 255 is a class" in refused(even)


# what 255 means


@pytest.mark.parametrize("values", [(0, 128, 255), (0, 85, 170, 255), (0, 1, 255), (0, 1, 2, 255)])
def test_a_common_255_is_refused_with_the_labels_to_paste(values):
    mask = np.random.default_rng(0).choice(np.array(values, np.uint8), (8, 8)).repeat(8, 0).repeat(8, 1)
    said = discover_error(counts_of(mask), outline=shapes.outline(mask))
    assert f"--labels {' '.join(map(str, values))}, if 255 is a class" in said
    assert "--ignore-index 255, if it means" in said
    assert ("--binarize 1" in said) == (values == (0, 1, 255))


def discover_error(counts: dict, **known) -> str:
    with pytest.raises(UserError) as caught:
        discover(counts, False, Data(), **known)
    return str(caught.value)


def test_255_as_an_outline_is_ignored():
    mask = blobs((0, 15, 7))
    edges = cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((5, 5), np.uint8)) > 0
    mask[edges] = 255
    assert counts_of(mask)[255] > 0.05 * mask.size
    labels = discover(counts_of(mask), False, Data(), outline=shapes.outline(mask))
    assert (labels.values, labels.ignored) == ((0, 7, 15), (255,))
    mask[64:192, 64:192] = 255  # also an area
    assert "--ignore-index 255" in discover_error(counts_of(mask), outline=shapes.outline(mask))


def test_255_of_a_data_set_that_ignores_it_is_ignored():
    counts = dict.fromkeys(range(19), 100) | {255: 500}
    assert discover(counts, False, Data(), void=True).ignored == (255,)
    assert "255 is a class" in discover_error(counts)


def test_rare_end_of_even_steps_is_a_class():
    assert "--labels 0 85 170 255" in refused({0: 900, 85: 80, 170: 80, 255: 4})


def test_stray_254_does_not_replace_255():
    said = refused({0: 9000, 255: 3000, 254: 1})
    assert [line.split(",")[0] for line in said.splitlines()[2:]] == [
        "  --binarize 128",
        "  --labels 0 255 --snap-colors",
        "  --labels 0 254 255",
    ]


def test_colors_of_further_classes_are_varied_and_stay():
    assert PALETTE[8:12].tolist() == [[194, 54, 110], [9, 100, 139], [210, 210, 70], [114, 19, 155]]
    assert len(np.unique(PALETTE[:255], axis=0)) == 255
