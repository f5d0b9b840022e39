"""The picture of a confusion matrix: numbers that say neither more nor less than there is, for any classes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxseg.inference import confusion_picture
from jaxseg.inference.confusion_picture import draw_confusion, human, percent
from jaxseg.runs.pictures import draw


@given(st.integers(0, 10**13))
def test_numbers_are_short_and_right_to_three_digits_or_a_tenth(count):
    text = human(count)
    number = float(text.rstrip("kMG")) * {"k": 10**3, "M": 10**6, "G": 10**9}.get(text[-1], 1)
    assert number == pytest.approx(count, rel=0.051)
    assert len(text) <= 6


@given(st.floats(0, 1))
def test_none_and_all_are_those_alone(share):
    text = percent(share)
    assert (text == "0.0") == (share == 0)
    assert (text == "100.0") == (share == 1)
    assert float(text.strip("<>")) == pytest.approx(100 * share, abs=0.11)


def test_rows_are_labels_and_columns_predictions():
    """The second cell of the first row is dark when all of the first label is predicted as the second class."""
    picture = draw_confusion(np.array([[0, 10], [0, 0]]), ["a", "b"])
    dark = (picture == [8, 48, 107]).all(-1)  # the end of the color map
    rows, columns = np.nonzero(dark)
    light = np.argwhere((picture == [247, 251, 255]).all(-1))  # its beginning
    assert dark.sum() > 1000
    assert rows.max() < light[:, 0].max() - 50, "in the upper row"
    assert columns.min() > light[:, 1].min() + 50, "in the right column"


def test_shares_are_of_the_labels_pixels():
    """A rare class that is half right is as blue as a common one that is, whatever the columns hold."""
    picture = draw_confusion(np.array([[500, 500], [5, 5]]), ["a", "b"])
    colors, counts = np.unique(picture.reshape(-1, 3), axis=0, return_counts=True)
    blue = np.ptp(colors.astype(int), 1) > 20  # neither black nor white
    assert counts[blue].max() > 40_000, "all four cells, of 120 pixels a side, are 50 %"


def test_numbers_as_they_are_written():
    assert [human(n) for n in (0, 999, 1000, 12_340, 99_940, 99_950, 999_999, 2_050_000)] == [
        "0", "999", "1.0k", "12.3k", "99.9k", "100k", "1000k", "2.0M",
    ]  # fmt: skip


@pytest.mark.parametrize("classes", [2, 7, 41, 60])
def test_any_number_of_classes_is_named_to_the_letter(classes, monkeypatch):
    figures = []
    monkeypatch.setattr(confusion_picture, "draw", lambda figure: figures.append(figure) or draw(figure))
    confusion = np.diag(np.arange(classes))  # class 0 has no pixels
    names = [f"$_{i}_" for i in range(classes)]
    picture = draw_confusion(confusion, names)
    (axes,) = figures[0].get_axes()
    assert [label.get_text() for label in axes.get_xticklabels()] == names
    assert [label.get_text() for label in axes.get_yticklabels()] == [f"{name}  {i}" for i, name in enumerate(names)]
    assert not any(label.get_parse_math() for label in axes.get_xticklabels())
    shares = axes.get_images()[0].get_array()
    np.testing.assert_array_equal(shares, np.diag([0] + [1] * (classes - 1)))
    assert (picture.dtype, picture.shape[2]) == (np.uint8, 3)
    inked = (picture < 255).any(-1)
    assert [np.flatnonzero(inked.any(axis))[[0, -1]].tolist() for axis in (1, 0)] == [
        [12, side - 13] for side in picture.shape[:2]
    ]
