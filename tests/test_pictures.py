"""Pictures: exact sizes, exact colors where it matters, and curves for whatever a run may bring."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxseg.data.read.masks import PALETTE
from jaxseg.runs import curves
from jaxseg.runs.curves import draw_curves
from jaxseg.runs.pictures import GAP, LABEL, VERDICTS, _flow, draw, draw_samples, thin, to_rgb, write_png


def record(number, loss=0.5, learning_rate=1e-3):
    scores = {"loss": loss, "accuracy": 0.75, "miou": 0.5}
    return {"epoch": number, "step": number + 1, "train": scores, "validation": scores, "learning_rate": learning_rate}


def tiles(count, size=40, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, size, size, channels), np.uint8)
    return images, rng.integers(0, 2, (count, size, size)), rng.integers(0, 2, (count, size, size))


def panel(sheet, number, size, top=LABEL):
    """The panel of one row of tiles, from the left."""
    x = GAP + number * (size + GAP)
    return sheet[top : top + size, x : x + size]


def test_palette_tells_classes_apart():
    assert PALETTE.shape == (256, 3)
    assert PALETTE.dtype == np.uint8
    assert PALETTE[0].max() < 50
    assert len(np.unique(PALETTE[:64], axis=0)) == 64
    np.testing.assert_array_equal(PALETTE[255], 128)


def test_small_tiles_are_enlarged_by_whole_pixels_and_labels_keep_their_colors():
    images, masks, predictions = tiles(1)
    sheet = draw_samples(images, masks, predictions)
    assert sheet.shape[1] == 4 * (160 + GAP) + 3 * GAP
    np.testing.assert_array_equal(panel(sheet, 0, 160), images[0, ..., ::-1].repeat(4, 0).repeat(4, 1))
    np.testing.assert_array_equal(panel(sheet, 1, 160), PALETTE[masks[0]].repeat(4, 0).repeat(4, 1))
    np.testing.assert_array_equal(panel(sheet, 2, 160), PALETTE[predictions[0]].repeat(4, 0).repeat(4, 1))


def test_large_tiles_are_thinned_out():
    images, masks, _ = tiles(1, size=600)
    sheet = draw_samples(images, masks)
    assert sheet.shape[1] == 2 * (300 + GAP) + 3 * GAP
    np.testing.assert_array_equal(panel(sheet, 1, 300), PALETTE[masks[0, ::2, ::2]])


def test_errors_show_what_was_missed_what_is_false_and_what_is_ignored():
    masks = np.array([[[0, 0, 1, 1], [2, 255, 255, 1]]]).repeat(80, 1).repeat(80, 2)
    predictions = np.array([[[0, 1, 0, 1], [1, 0, 1, 1]]]).repeat(80, 1).repeat(80, 2)
    sheet = draw_samples(np.full((1, 160, 320, 3), 128, np.uint8), masks, predictions, ["a", "b", "c"])
    x = GAP + 3 * (320 + GAP)
    seen = sheet[LABEL + 40 : LABEL + 160 : 80, x + 40 : x + 320 : 80].astype(int)
    gray = np.array([128, 128, 128])

    def likest(color):
        return min(
            VERDICTS, key=lambda verdict: np.abs(color - (0.15 * gray + 0.85 * np.array(VERDICTS[verdict]))).sum()
        )

    np.testing.assert_array_equal(seen[0, 0], gray)  # background that is right is not colored
    assert likest(seen[0, 1]) == "false"
    assert likest(seen[0, 2]) == "missed"
    assert likest(seen[1, 0]) == "other class"
    np.testing.assert_array_equal(seen[1, 1:3], np.tile(PALETTE[255], (2, 1)))
    np.testing.assert_array_equal(seen[0, 3], (0.7 * gray + 0.3 * np.array(VERDICTS["agrees"])).astype(int))


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_any_number_of_channels(channels):
    images, masks, _ = tiles(1, size=160, channels=channels)
    shown = images[0, ..., [2, 1, 0]].transpose(1, 2, 0) if channels >= 3 else images[0, ..., :1].repeat(3, -1)
    np.testing.assert_array_equal(panel(draw_samples(images, masks), 0, 160), shown)


def test_captions_and_a_legend_are_written_and_formulas_are_not_read_from_them():
    images, masks, predictions = tiles(4)
    plain = draw_samples(images, masks, predictions)
    captioned = draw_samples(images, masks, predictions, ["sea", "land"], ["$_$", "b", "c", "d"])
    assert captioned.shape[0] == plain.shape[0] + 2 * LABEL
    strip = captioned[LABEL : 2 * LABEL, :100]
    assert (strip < 100).any()
    assert (captioned[-LABEL:] == PALETTE[1]).all(-1).any()


@settings(deadline=None)
@given(st.lists(st.integers(1, 90), min_size=1), st.integers(1, 200))
def test_a_legend_never_runs_over_nor_out(widths, room):
    places = _flow(widths, room)
    for (x, line), width in zip(places, widths, strict=True):
        assert x == 0 or x + width <= room
        assert all(
            a + w <= x
            for (a, other), w in zip(places[: places.index((x, line))], widths, strict=False)
            if other == line
        )


@pytest.mark.parametrize(
    "epochs",
    [
        [record(0)],
        [record(i) for i in range(3)],
        [record(0, loss=None), record(1)],
        [record(i, loss=None, learning_rate=0.0) for i in range(2)],
    ],
    ids=["one", "several", "a gap", "nothing"],
)
def test_curves_show_every_number_of_a_run(epochs, monkeypatch):
    figures = []
    monkeypatch.setattr(curves, "draw", lambda figure: figures.append(figure) or draw(figure))
    assert draw_curves(epochs).shape == (400, 1300, 3)
    loss, scores, rate = (
        {line.get_label(): (line.get_xdata(), line.get_ydata()) for line in axes.get_lines()}
        for axes in figures[0].get_axes()
    )
    for (x, y), split, key in (
        (loss["train"], "train", "loss"),
        (loss["validation"], "validation", "loss"),
        (scores["mIoU train"], "train", "miou"),
        (scores["mIoU validation"], "validation", "miou"),
    ):
        np.testing.assert_array_equal(x, [record["epoch"] + 1 for record in epochs])
        np.testing.assert_array_equal(y, np.array([record[split].get(key) for record in epochs], float))
    ((_, rates),) = rate.values()
    np.testing.assert_array_equal(np.nan_to_num(rates), [record["learning_rate"] for record in epochs])


def test_png_is_rgb_and_replaces_what_was_there(tmp_path):
    path = tmp_path / "a.png"
    for color in ([250, 10, 20], [1, 2, 3]):
        write_png(path, np.full((4, 5, 3), color, np.uint8))
        np.testing.assert_array_equal(cv2.imread(str(path))[..., ::-1], np.full((4, 5, 3), color))
    assert list(tmp_path.iterdir()) == [path]


@given(st.lists(st.tuples(st.integers(20, 700), st.integers(20, 700)), min_size=1, max_size=3))
@settings(max_examples=6)
def test_tiles_of_several_sizes_stand_on_one_sheet(sizes):
    images = [np.full((h, w, 3), [200, 3, 90], np.uint8) for h, w in sizes]  # of no letter's color
    sheet = draw_samples(images, [np.full(size, 1) for size in sizes])
    shown = [thin(image)[..., 0] for image in images]
    times = [max(1, -(-160 // max(image.shape))) for image in shown]
    assert (sheet == [90, 3, 200]).all(-1).sum() == sum(image.size * n**2 for image, n in zip(shown, times))
    assert max(max(image.shape) for image in shown) <= 512


@pytest.mark.parametrize("dtype", ["uint16", "int16", "float32"])
def test_bands_of_other_types_are_stretched_to_what_is_valid(dtype):
    image = np.tile(np.arange(100)[:, None, None], (1, 4, 5)).astype(dtype)
    image[:9] = 9999
    valid = np.arange(100)[:, None].repeat(4, 1) >= 9
    shown = to_rgb(image, valid)
    assert shown.dtype == np.uint8
    assert (shown[9:11] == 0).all()
    assert (shown[98:] == 255).all()
    np.testing.assert_allclose(shown[54], 127, atol=3)
    assert to_rgb(image)[98].max() < 10, "where all pixels are taken, those without data are the white"


def test_what_is_not_finite_is_black_and_a_flat_band_is_no_trouble():
    image = np.ones((8, 8, 1), np.float32)
    image[0] = np.nan
    image[1] = np.inf
    assert (to_rgb(image) == 0).all()
    assert (to_rgb(np.full((4, 4, 3), np.nan, np.float32)) == 0).all()


def test_sheets_take_a_palette_but_ignored_stays_gray():
    palette = np.full((256, 3), 10, np.uint8)
    palette[1] = 200, 100, 0
    masks = np.ones((1, 160, 160), int)
    masks[0, 0] = 255
    shown = panel(draw_samples(np.zeros((1, 160, 160, 3), np.uint8), masks, palette=palette), 1, 160)
    np.testing.assert_array_equal(shown[1:], np.broadcast_to(palette[1], (159, 160, 3)))
    np.testing.assert_array_equal(shown[0], np.broadcast_to(PALETTE[255], (160, 3)))


def test_curves_of_every_class_come_below_and_follow_their_numbers():
    def epochs(last):
        return [record(i) | {"validation": record(i)["validation"] | {"iou": iou}} for i, iou in enumerate(last)]

    drawn = draw_curves(epochs([[0.1, None], [0.2, 0.5]]), ["sea", "$land"])
    assert drawn.shape == (800, 1300, 3)
    other = draw_curves(epochs([[0.1, None], [0.2, 0.9]]), ["sea", "$land"])
    np.testing.assert_array_equal(drawn[:400], other[:400])
    assert (drawn[400:] != other[400:]).any()


def test_classes_are_named_as_they_are_called_in_the_order_of_their_ends(monkeypatch):
    figures = []
    monkeypatch.setattr(curves, "draw", lambda figure: figures.append(figure) or np.zeros((1, 1, 3), np.uint8))
    ious = [0.9] * 4, [0.25, None, 0.5, 0.5]
    log = [record(i) | {"validation": {"loss": 1.0, "iou": iou}} for i, iou in enumerate(ious)]
    draw_curves(log, ["a", "b", "$_$", "_d"])
    legend = figures[0].subfigs[1].axes[0].get_legend()
    shown = [text.get_text() for text in legend.get_texts()]
    assert shown == ["0.500  $_$", "0.500  _d", "0.250  a", "absent  b"]
    draw(figures[0])  # a formula that is none would raise
