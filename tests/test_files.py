"""Atomic writes of files."""

import os

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
