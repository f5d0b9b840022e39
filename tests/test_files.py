"""Atomic writes of files."""

import errno
import os
from pathlib import Path

import pytest

from jaxseg.base import files


def test_replace_writes_the_file_and_leaves_no_draft(tmp_path):
    path = tmp_path / "a.json"
    for content in (b"one", b"two"):
        files.replace(path, content)
        assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["a.json"]


def test_readers_see_the_old_file_until_the_draft_is_complete(tmp_path):
    path = tmp_path / "map.png"
    path.write_bytes(b"old")
    with files.draft(path) as beside:
        beside.write_bytes(b"half")
        assert path.read_bytes() == b"old"
        assert beside.parent == tmp_path  # `os.replace` is atomic within a disk only
    assert path.read_bytes() == b"half"


def test_crash_before_the_rename_leaves_the_old_file(tmp_path, monkeypatch):
    def crashes(*_):
        raise KeyboardInterrupt

    path = tmp_path / "a.json"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "replace", crashes)
    with pytest.raises(KeyboardInterrupt):
        files.replace(path, b"new")
    assert path.read_bytes() == b"old"


def _fail_on_the_way(path):
    with files.draft(path) as beside:
        beside.write_bytes(b"half")
        raise ZeroDivisionError


def test_failed_draft_is_removed_and_leaves_the_old_file(tmp_path):
    path = tmp_path / "map.png"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError):
        _fail_on_the_way(path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["map.png"]


def test_longest_file_names_can_be_written(tmp_path):
    path = tmp_path / ("n" * 251 + ".tif")
    files.replace(path, b"")
    assert path.exists()


def test_concurrent_drafts_of_one_file_have_different_names(tmp_path):
    path = tmp_path / "a.json"
    with files.draft(path) as late:
        late.write_bytes(b"late")
        files.replace(path, b"early")
    assert path.read_bytes() == b"late"


# disks that are full and folders that cannot be written; as root may write everywhere, the system's errors are made


def no_room(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("write", [lambda path: files.replace(path, b"x"), lambda path: files.append(path, "x")])
def test_error_of_a_full_disk_names_the_file(tmp_path, monkeypatch, write):
    monkeypatch.setattr("pathlib.Path.write_bytes", no_room)
    monkeypatch.setattr("pathlib.Path.open", no_room)
    with pytest.raises(OSError, match=r"No space left on device: '.*a\.json'"):
        write(tmp_path / "a.json")
    assert os.listdir(tmp_path) == []


def test_error_about_another_file_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone"), files.draft(tmp_path / "a"):
        (tmp_path / "gone").read_bytes()


def test_trying_to_write_leaves_nothing_and_makes_no_folder(tmp_path):
    files.try_writing(tmp_path)
    files.try_writing(tmp_path / "a/b")
    assert os.listdir(tmp_path) == []


def test_trying_to_write_below_a_file_or_on_a_full_disk_names_the_folder(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match=r"file/runs'"):
        files.try_writing(tmp_path / "file/runs")
    monkeypatch.setattr("tempfile.TemporaryFile", no_room)
    with pytest.raises(OSError, match=r"No space left on device: '.*runs'"):
        files.try_writing(tmp_path / "runs")


def test_names_of_other_encodings_are_told_from_utf8():
    assert files.is_utf8(Path("straße 日本"))
    assert not files.is_utf8(Path(os.fsdecode(b"stra\xdfe")))
