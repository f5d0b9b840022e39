"""What a run remembers: the contents of its data, and the lines of its log."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from jaxseg.base import digests
from jaxseg.base.config import Data
from jaxseg.base.errors import UserError
from jaxseg.data.find.listing import Pair
from jaxseg.data.find.splits import Split
from jaxseg.doctor.survey import survey
from jaxseg.runs.record import check_split, of_split, restore_log

# contents of files


def test_digest_follows_from_content_not_name_or_time(tmp_path):
    first, second, other = (tmp_path / name for name in ("a", "b", "c"))
    first.write_bytes(b"0123"), second.write_bytes(b"0123"), other.write_bytes(b"0124")
    assert digests.of_content(first) == digests.of_content(second) != digests.of_content(other)


def test_large_file_is_sampled_from_end_to_end(tmp_path, monkeypatch):
    """A change of a block's length is seen wherever blocks are near enough, and each change of length."""
    monkeypatch.setattr(digests, "WHOLE", 100)
    monkeypatch.setattr(digests, "BLOCK", 10)
    monkeypatch.setattr(digests, "BLOCKS", 21)
    path, content = tmp_path / "scene.tif", bytes(range(200)) + bytes(10)

    def digest(data: bytes) -> str:
        path.write_bytes(data)
        return digests.of_content(path)

    before = digest(content)
    for at in (0, 100, 200, 209):
        assert digest(content[:at] + b"\xff" + content[at + 1 :]) != before
    assert digest(content + b"\0") != before
    assert digest(content) == before


# split.json


def paint(path: Path, value: int, side: int = 4) -> None:
    path.write_bytes(cv2.imencode(".png", np.full((side, side), value, np.uint8))[1].tobytes())


@pytest.fixture
def split(tmp_path) -> Split:
    pairs = [Pair(tmp_path / f"image{i}", tmp_path / f"mask{i}") for i in range(4)]
    for number, pair in enumerate(pairs):
        paint(pair.image, 10 + number), paint(pair.mask, number % 2)
    return Split(tuple(pairs[:3]), tuple(pairs[3:]), "")


def record(split: Split) -> dict:
    return of_split(split, survey(split.training + split.validation, Data(), 0))


def test_split_holds_names_and_contents(split):
    found = record(split)
    assert (found["training"], found["validation"]) == (["image0", "image1", "image2"], ["image3"])
    expected = [f"{digests.of_content(pair.image)} {digests.of_content(pair.mask)}" for pair in split.training]
    assert found["contents"]["training"] == dict(zip(found["training"], expected))
    assert list(found["contents"]["validation"]) == ["image3"]


def test_every_changed_file_is_named(split, tmp_path):
    path = tmp_path / "split.json"
    path.write_text(json.dumps(record(split)))
    check_split(path, record(split))
    for pair in split.training:
        paint(pair.mask, 255)
    paint(split.training[1].image, 0)
    paint(split.validation[0].image, 13, side=8)
    with pytest.raises(UserError) as caught:
        check_split(path, record(split))
    assert str(caught.value).splitlines()[1:-1] == [
        "  training: 1 images have another content, such as image1",
        "  training: 3 masks have another content, such as image0, image1, image2",
        "  validation: 1 images have another content, such as image3",
    ]


def test_split_of_an_earlier_version_has_no_contents(split, tmp_path):
    path = tmp_path / "split.json"
    path.write_text(json.dumps({name: names for name, names in record(split).items() if name != "contents"}))
    paint(split.training[0].image, 0)
    check_split(path, record(split))


@pytest.mark.parametrize("contents", [[], {"training": []}, {"training": {"image0": "x"}}, {"training": {"image0": 3}}])
def test_damaged_contents_are_named(split, tmp_path, contents):
    path = tmp_path / "split.json"
    path.write_text(json.dumps(record(split) | {"contents": contents}))
    with pytest.raises(UserError, match=r"split\.json: cannot be read"):
        check_split(path, record(split))


# log.jsonl


def line(epoch: int) -> str:
    part = {"loss": 0.5, "accuracy": 0.5, "miou": 0.5}
    return json.dumps({"epoch": epoch, "step": 3 * epoch + 3, "train": part, "validation": part, "learning_rate": 0.1})


@pytest.fixture
def log(tmp_path) -> Path:
    (tmp_path / "log.jsonl").write_text("".join(f"{line(i)}\n" for i in range(4)))
    return tmp_path / "log.jsonl"


def test_log_is_cut_to_the_finished_epochs(log):
    kept, removed = restore_log(log, 3)
    assert ([record["epoch"] for record in kept], [record["epoch"] for record in removed]) == ([0, 1, 2], [3])
    assert log.read_text().splitlines() == [line(i) for i in range(3)]


DAMAGE = {
    "a list": lambda data: data.replace(line(1).encode(), b"[]"),
    "a number": lambda data: data.replace(line(1).encode(), b"7"),
    "without scores": lambda data: data.replace(line(1).encode(), b'{"epoch": 1, "step": 6, "train": {}}'),
    "binary": lambda data: b"\x89\xff\0" + data,
    "only binary": lambda data: b"\x89\xff\0" * 9,
    "zeros at its end": lambda data: data[:-20] + bytes(20),
    "deep": lambda data: b"[" * 100_000 + b"\n" + data,
    "an epoch is missing": lambda data: data.replace(line(1).encode() + b"\n", b""),
    "an epoch is there twice": lambda data: data + line(3).encode() + b"\n",
    "cut within a line": lambda data: data[: len(data) // 2],
    "cut between lines": lambda data: data[: data.index(b"\n") + 1],
}


@pytest.mark.parametrize("how", DAMAGE)
def test_damaged_log_is_refused_and_left_as_it_is(log, how):
    log.write_bytes(damaged := DAMAGE[how](log.read_bytes()))
    with pytest.raises(UserError, match=r"log\.jsonl.*delete") as caught:
        restore_log(log, 4)
    assert "\n" not in str(caught.value)
    assert log.read_bytes() == damaged


def test_line_cut_by_a_crash_after_the_checkpoint_is_dropped(log):
    for end in ('{"epoch": 4, "st', line(4)):
        log.write_text("".join(f"{line(i)}\n" for i in range(4)) + end)
        assert len(restore_log(log, 4)[0]) == 4
        assert log.read_text().splitlines() == [line(i) for i in range(4)]


def test_log_that_was_deleted_begins_anew_with_a_warning(log, capsys):
    log.unlink()
    assert restore_log(log, 4) == ([], [])
    assert "log.jsonl: the log and the curves begin with epoch 5" in capsys.readouterr().err
    log.write_text(line(4) + "\n" + line(5) + "\n")
    assert len(restore_log(log, 6)[0]) == 2
    assert "begin with epoch 5" in capsys.readouterr().err


def test_log_of_finished_epochs_without_a_checkpoint_is_not_thrown_away(log):
    with pytest.raises(UserError, match="has 4 epochs, but there is no checkpoint"):
        restore_log(log, 0)
    log.write_text(line(0) + "\n")  # killed between the first line and the first checkpoint
    assert [record["epoch"] for record in restore_log(log, 0)[1]] == [0]
