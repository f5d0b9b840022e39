"""A run is written by one process at a time."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxseg.base.errors import UserError
from jaxseg.runs import lock

HOLD = """
import sys, time
from pathlib import Path
from jaxseg.runs.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_lock_of_a_running_process_is_refused_and_that_of_a_dead_one_is_not(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(Path(lock.__file__).parents[2])}
    how = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "env": environment}
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], **how) as process:
        assert process.stdout.readline().strip() == b"held"
        for attempt in (lambda: lock.locked(tmp_path).__enter__(), lambda: lock.refuse_if_locked(tmp_path)):
            with pytest.raises(UserError, match=f"process {process.pid} on .* is writing this run"):
                attempt()
        process.kill()
    assert (tmp_path / lock.NAME).exists()
    with lock.locked(tmp_path):
        assert f'"process": {os.getpid()}' in (tmp_path / lock.NAME).read_text()
    assert list(tmp_path.iterdir()) == []


def test_lock_is_not_taken_on_a_file_that_its_holder_has_deleted(tmp_path, monkeypatch):
    """The holder ends between another process's opening of the file and its locking."""
    path, real, calls = tmp_path / lock.NAME, lock._take, []

    def take(file):
        calls.append(file)
        if len(calls) == 1:
            path.unlink()
        real(file)

    monkeypatch.setattr(lock, "_take", take)
    with lock.locked(tmp_path):
        assert len(calls) == 2
        with pytest.raises(UserError, match="is writing"):
            lock.locked(tmp_path).__enter__()


def test_file_system_without_locks_is_used_with_a_warning(tmp_path, monkeypatch, capsys):
    def take(file):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock, "_take", take)
    with lock.locked(tmp_path), lock.locked(tmp_path):
        pass
    assert "file system has no locks (No locks available)" in capsys.readouterr().err


def test_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    def refuse(path, *_):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(lock.os, "open", refuse)
    with pytest.raises(UserError, match=r"run: cannot be written \(Permission denied\)"):
        lock.locked(tmp_path / "run").__enter__()


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff"])
def test_lock_file_without_a_process_is_still_a_lock(tmp_path, text):
    with lock.locked(tmp_path):
        (tmp_path / lock.NAME).write_bytes(text)
        with pytest.raises(UserError, match="another process is writing"):
            lock.locked(tmp_path).__enter__()
