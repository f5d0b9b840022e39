"""What ends a command: exit status and message of every kind of error."""

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from jaxseg.base import compilation, doors, terminal
from jaxseg.base.errors import ArgumentError, NonFiniteLoss, OutOfMemory, Stopped, UserError


def raises(error):
    def do():
        raise error

    return do


def enter(capsys, error, **how) -> tuple[int, str]:
    status = doors.enter(raises(error), **how)
    return status, capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (UserError("--epochs is 0"), 2, "error: --epochs is 0\n"),
        (ArgumentError([("batch_size", "is 0")]), 2, "error: --batch-size is 0\n"),
        (NonFiniteLoss("loss nan"), 1, "stopped: loss nan\n"),
        (OutOfMemory("not enough"), 1, "stopped: not enough\n"),
        (Stopped(15), 143, ""),
        (KeyboardInterrupt(), 130, ""),
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), 2, "error: a/b: No space left on device\n"),
        (OSError(errno.EROFS, "Read-only file system"), 2, "error: [Errno 30] Read-only file system\n"),
        (OSError("odd"), 2, "error: odd\n"),
    ],
)
def test_known_errors_become_a_message_and_a_status(capsys, error, status, says):
    assert enter(capsys, error) == (status, says)


def test_unknown_errors_are_raised():
    with pytest.raises(ZeroDivisionError):
        doors.enter(lambda: 1 // 0)


def test_status_of_what_was_done_is_returned():
    assert [doors.enter(lambda value=value: value) for value in (None, 0, 2)] == [0, 0, 2]


def test_debug_shows_the_traceback_and_ctrl_c_its_message(capsys):
    status, err = enter(capsys, UserError("wrong"), debug=True)
    assert status == 2
    assert err.startswith("Traceback")
    assert err.endswith("error: wrong\n")
    assert enter(capsys, KeyboardInterrupt(), interrupted="stopped; go on") == (130, "stopped; go on\n")


def test_opencv_without_libgl_names_the_package_for_servers(capsys):
    missing = "libGL.so.1: cannot open shared object file: No such file or directory"
    status, err = enter(capsys, ImportError(missing, name="cv2"))
    assert status == 2
    assert missing in err
    assert "opencv-python-headless" in err


def test_names_that_the_encoding_lacks_are_escaped(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="cp1252", write_through=True))
    assert doors.enter(lambda: print("日本 é \udcdf")) == 0
    assert raw.getvalue().rstrip() == "\\u65e5\\u672c é \\udcdf".encode("cp1252")


PROGRAM = """
from jaxseg.base import doors, terminal
raise SystemExit(doors.enter(lambda: terminal.console.print("text")))
"""


def run(stdout) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(Path(doors.__file__).parents[2])}
    words = [sys.executable, "-c", PROGRAM]
    return subprocess.run(words, env=environment, stdout=stdout, stderr=subprocess.PIPE, text=True)


def test_closed_output_ends_with_2_and_a_line():
    read, write = os.pipe()
    os.close(read)
    done = run(write)
    os.close(write)
    assert (done.returncode, done.stderr) == (2, "error: standard output: Broken pipe\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_full_output_ends_with_2_and_a_line():
    with open("/dev/full", "w") as full:
        done = run(full)
    assert (done.returncode, done.stderr) == (2, "error: standard output: No space left on device\n")


def test_console_names_what_cannot_be_written(monkeypatch):
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sys, "stdout", Full())
    with pytest.raises(OSError, match="standard output"):
        terminal.console.print("text")
    terminal.console._buffer.clear()


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (
            RuntimeError("Unable to initialize backend 'x': not known. (set JAX_PLATFORMS='')"),
            "backend 'x': not known.",
        ),
        (AssertionError(), "JAX finds no such device."),
    ],
)
def test_platform_that_is_not_there_is_one_line(monkeypatch, error, why):
    monkeypatch.setattr(jax, "devices", raises(error))
    with pytest.raises(UserError, match="JAX_PLATFORMS") as caught:
        compilation.try_jax()
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


def test_disabled_compilation_is_refused():
    with jax.disable_jit(), pytest.raises(UserError, match="JAX_DISABLE_JIT"):
        compilation.try_jax()
    compilation.try_jax()
