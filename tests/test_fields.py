"""The made-up crop fields: same pixels everywhere, what color alone cannot tell, and nobody's files written over."""

import functools
import hashlib
import json

import cv2
import numpy as np
import pytest

from jaxseg.base.errors import UserError
from jaxseg.data.made.fields import RECORD, make_fields
from jaxseg.data.made.landscape import crop, make_tile, new_tile


def snapshot(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@functools.cache
def tiles(count, split):
    pairs = [make_tile(np.random.default_rng((7, split, index)), 128) for index in range(count)]
    return np.stack([image for image, _ in pairs]), np.stack([mask for _, mask in pairs]) == 255


def test_make_fields_writes_the_articles_layout(tmp_path):
    root = make_fields(tmp_path / "made", train=3, val=2, size=48)
    assert root == tmp_path / "made"
    assert sorted(snapshot(root)) == sorted(
        [RECORD]
        + [f"train/train_000{i}.png" for i in range(3)]
        + [f"Ltrain/train_000{i}_mask.png" for i in range(3)]
        + [f"val/val_000{i}.png" for i in range(2)]
        + [f"Lval/val_000{i}_mask.png" for i in range(2)]
    )
    image = cv2.imread(str(root / "train/train_0001.png"), cv2.IMREAD_UNCHANGED)
    mask = cv2.imread(str(root / "Ltrain/train_0001_mask.png"), cv2.IMREAD_UNCHANGED)
    assert image.shape == (48, 48, 3)
    assert image.dtype == np.uint8
    assert mask.shape == (48, 48)
    assert set(np.unique(mask)) == {0, 255}
    drawn, labeled = make_tile(np.random.default_rng((0, 0, 1)), 48)
    np.testing.assert_array_equal(image, drawn)
    np.testing.assert_array_equal(mask, labeled)
    assert [path.name for path in tmp_path.iterdir()] == ["made"]  # no draft is left


def test_tiles_depend_on_the_seed_and_all_differ(tmp_path):
    first, again = (make_fields(tmp_path / name, train=4, val=4, size=40, seed=3) for name in "ab")
    assert snapshot(first) == snapshot(again)
    other = make_fields(tmp_path / "c", train=4, val=4, size=40, seed=4)
    images = [data for root in (first, other) for path, data in snapshot(root).items() if path[0] in "tv"]
    assert len(images) == len(set(images)) == 16


def test_a_longer_set_starts_with_the_same_tiles(tmp_path):
    short = snapshot(make_fields(tmp_path / "a", train=2, val=1, size=40))
    long = snapshot(make_fields(tmp_path / "b", train=3, val=2, size=40))
    assert all(long[path] == data for path, data in short.items() if path != RECORD)


def test_pixels_are_the_same_on_every_platform():
    digest = hashlib.sha256()
    for index in range(8):
        for pixels in make_tile(np.random.default_rng((0, 0, index)), 96):
            digest.update(pixels.tobytes())
    # Recorded on Linux x86-64 with NumPy 2.4 and 2.5; whoever changes a pixel counts `VERSION` up.
    assert digest.hexdigest()[:16] == "cf0fa68536818fa4"


def test_color_alone_cannot_tell_a_field():
    """The best lookup from a pixel's color (16 levels a channel) to its class, judged on tiles it has not seen."""
    (images, fields), (unseen, truth) = tiles(24, 0), tiles(12, 1)

    def color(image):
        return (image // 16).astype(int) @ [256, 16, 1]

    votes = np.bincount(color(images[fields]), minlength=4096) - np.bincount(color(images[~fields]), minlength=4096)
    guess = votes[color(unseen)] > 0
    miou = np.mean([((guess == k) & (truth == k)).sum() / ((guess == k) | (truth == k)).sum() for k in (False, True)])
    assert miou < 0.6
    assert 0.35 < fields.mean() < 0.65


def test_row_texture_tells_a_field():
    """What color cannot: brightness changes more over two pixels in crop rows than in the look-alikes' grass."""
    images, fields = tiles(24, 0)
    gray = images.mean(-1)
    change = np.abs(gray[:, 2:, 2:] - 2 * gray[:, 1:-1, 1:-1] + gray[:, :-2, :-2])
    inner = np.stack([cv2.erode(np.uint8(mask), np.ones((7, 7))) for mask in fields])[:, 1:-1, 1:-1] > 0
    dark = images.max(-1)[:, 1:-1, 1:-1] < 110  # woods
    outer = np.stack([cv2.erode(np.uint8(~mask), np.ones((13, 13))) for mask in fields])[:, 1:-1, 1:-1] > 0
    assert np.median(change[inner]) > 1.5 * np.median(change[outer & ~dark])


@pytest.mark.parametrize("seed", range(12))
def test_fields_are_at_least_three_pixels_apart(seed):
    tile = new_tile(np.random.default_rng(seed), 96)
    crop(tile, (-50.0, 3.0, -40.0, 40.0))
    first, tile.field = tile.field, np.zeros_like(tile.field)
    crop(tile, (3.0, 50.0, -40.0, 40.0))
    away = cv2.distanceTransform(np.uint8(~first), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)  # 1 to the next pixel
    assert away[tile.field].min() > 3


@pytest.mark.parametrize("size", [32, 57, 200])
def test_tiles_of_any_size_are_drawn(size):
    image, mask = make_tile(np.random.default_rng((0, 1, 2)), size)
    assert image.shape == (size, size, 3)
    assert mask.shape == (size, size)


def test_folder_made_earlier_is_reused(tmp_path):
    root = make_fields(tmp_path / "made", train=1, val=1, size=32)
    stamps = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    (root / ".DS_Store").write_bytes(b"")
    stamps[root] = root.stat().st_mtime_ns
    assert make_fields(root, train=1, val=1, size=32) == root
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "made").mkdir()
    assert (make_fields(tmp_path / "made", train=1, val=1, size=32) / RECORD).is_file()


def test_existing_files_are_not_overwritten(tmp_path):
    theirs = tmp_path / "photos"
    theirs.mkdir()
    (theirs / "holiday.png").write_bytes(b"x")
    with pytest.raises(UserError, match="was not made by jaxseg"):
        make_fields(theirs)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="was not made by jaxseg"):
        make_fields(tmp_path / "file")
    assert snapshot(tmp_path) == {"photos/holiday.png": b"x", "file": b"x"}


def test_other_arguments_or_changed_folder_errors_say_what_differs(tmp_path):
    root = make_fields(tmp_path / "made", train=2, val=1, size=32)
    with pytest.raises(UserError, match=r"'size': 32.*expected.*'size': 64"):
        make_fields(root, train=2, val=1, size=64)
    (root / "train/train_0001.png").rename(root / "train/mine.png")
    with pytest.raises(UserError, match=r"missing \['train/train_0001.png'\], unknown \['train/mine.png'\]"):
        make_fields(root, train=2, val=1, size=32)
    (root / "train/mine.png").rename(root / "train/train_0001.png")
    record = json.loads((root / RECORD).read_text())
    record["made"]["generator"] -= 1
    (root / RECORD).write_text(json.dumps(record))
    with pytest.raises(UserError, match="other crop fields"):
        make_fields(root, train=2, val=1, size=32)


def test_impossible_arguments_are_all_named(tmp_path):
    with pytest.raises(UserError, match=r"val is 0; expected at least 1; size is 8; expected at least 32"):
        make_fields(tmp_path / "made", val=0, size=8)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_run_leaves_nothing_behind(tmp_path, monkeypatch):
    def full_disk(image, pixels):
        raise OSError("No space left on device")

    monkeypatch.setattr(cv2, "imencode", full_disk)
    with pytest.raises(OSError, match="No space left"):
        make_fields(tmp_path / "made", train=1, val=1, size=32)
    assert not list(tmp_path.iterdir())
