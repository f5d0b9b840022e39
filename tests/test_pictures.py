"""Pictures: exact sizes, exact colors where it matters, and curves for whatever a run may bring."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxseg.pictures import GAP, LABEL, PALETTE, VERDICTS, _flow, draw_curves, draw_samples, write_png


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
def test_curves_of_any_run(epochs):
    assert draw_curves(epochs).shape == (400, 1300, 3)


def test_curves_change_with_the_numbers():
    assert (draw_curves([record(0), record(1)]) != draw_curves([record(0), record(1, loss=0.25)])).any()


def test_png_is_rgb_and_replaces_what_was_there(tmp_path):
    path = tmp_path / "a.png"
    for color in ([250, 10, 20], [1, 2, 3]):
        write_png(path, np.full((4, 5, 3), color, np.uint8))
        np.testing.assert_array_equal(cv2.imread(str(path))[..., ::-1], np.full((4, 5, 3), color))
    assert list(tmp_path.iterdir()) == [path]
