"""The folder of a run, and the signals that end a run."""

import errno
import json
import signal
import threading
from pathlib import Path

import pytest

from jaxseg.base import config
from jaxseg.base.config import Config, Run
from jaxseg.base.errors import UserError
from jaxseg.runs import folder
from jaxseg.runs.folder import open_run
from jaxseg.training.steps import Signals

SPLIT = {"training": ["a.png", "b.png"], "validation": ["田.png"]}


# the run folder


def new_run(out: Path, overwrite: bool = False) -> Path:
    return open_run(Config(run=Run(out=out, overwrite=overwrite)), SPLIT)


@pytest.fixture
def full(tmp_path) -> Path:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/thesis.txt").write_text("years of work")
    return tmp_path / "precious"


def test_nonempty_folder_is_refused_and_left_alone(full):
    with pytest.raises(UserError) as caught:
        new_run(full)
    assert str(full) in str(caught.value)
    assert "--overwrite" in str(caught.value)
    assert [path.name for path in full.iterdir()] == ["thesis.txt"]


def test_overwrite_deletes_only_the_folder_of_a_run(full):
    with pytest.raises(UserError, match="no run"):
        new_run(full, overwrite=True)
    assert (full / "thesis.txt").read_text() == "years of work"
    (full / "config.json").write_text("{}")
    with pytest.raises(UserError):
        new_run(full)
    assert new_run(full, overwrite=True) == full
    assert sorted(path.name for path in full.iterdir()) == ["config.json", "split.json"]
    assert config.load(full).run.overwrite


def test_file_as_run_folder_is_refused(full):
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"thesis\.txt"):
            new_run(full / "thesis.txt", overwrite)
    with pytest.raises(UserError, match=r"thesis\.txt"):
        new_run(full / "thesis.txt" / "below")


def test_empty_or_missing_folder_is_used(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("empty", "deep/er"):
        assert config.load(new_run(tmp_path / name)).run.out == tmp_path / name


def test_run_folder_defaults_to_a_new_one_in_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = open_run(Config(), SPLIT)
    assert run.parent == Path("runs")
    assert (tmp_path / run / "config.json").is_file()


def no_room(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (Run(out=Path("a/b")), r"--out a/b: cannot be written \(No space left on device\)\. Make room"),
        (Run(), r"--out runs: cannot be written"),
        (Run(resume=Path("r")), r"--resume r: cannot be written .*\. Copy the run to a folder that can be written"),
    ],
)
def test_folder_that_cannot_be_written_is_refused_before_the_run(monkeypatch, settings, says):
    monkeypatch.setattr(folder, "try_writing", no_room)
    with pytest.raises(UserError, match=says):
        folder.try_target(settings)


# resuming


def resume(run: Path, split: dict) -> Path:
    return open_run(Config(run=Run(resume=run)), split)


def test_resume_keeps_the_file_whose_weights_the_run_began_with(tmp_path):
    run = open_run(Config(run=Run(out=tmp_path / "run", load=Path("unet.pth"))), SPLIT)
    resume(run, SPLIT)
    assert config.load(run).run.load == Path("unet.pth")


def test_resume_with_the_same_images_changes_nothing(tmp_path):
    run = new_run(tmp_path / "run")
    before = {path: path.read_bytes() for path in run.iterdir()}
    assert resume(run, SPLIT) == run
    assert {path: path.read_bytes() for path in run.iterdir()} == before
    assert json.loads((run / "split.json").read_text(encoding="utf-8")) == SPLIT


def test_resume_names_missing_and_new_images_of_both_sides(tmp_path):
    run = new_run(tmp_path / "run")
    with pytest.raises(UserError) as caught:
        resume(run, {"training": ["a.png", "c.png"], "validation": ["田.png", "d.png"]})
    for part in ("b.png", "c.png", "d.png", "split.json"):
        assert part in str(caught.value)
    assert "田.png" not in str(caught.value)
    with pytest.raises(UserError, match="田"):  # moved from one side to the other
        resume(run, {"training": ["a.png", "b.png", "田.png"], "validation": []})


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"training": ["a.png", "b.png"]}', b"\xff"])
def test_resume_refuses_an_unreadable_split_by_name(tmp_path, text):
    path = new_run(tmp_path / "run") / "split.json"
    path.unlink()
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=r"split\.json"):
        resume(tmp_path / "run", SPLIT)


# signals


@pytest.fixture
def foreground():
    """Restores the handler of Ctrl-C, which shells disable for background jobs."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_is_noted_and_a_second_one_is_not_caught(number, foreground):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with Signals() as signals:
        assert signals.received == 0
        signal.raise_signal(number)
        assert signals.received == number
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_signal_handlers_are_restored():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with Signals():
        assert signal.getsignal(signal.SIGINT) != before[0]
        assert signal.getsignal(signal.SIGTERM) != before[1]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_signal_handlers_are_left_alone_in_other_threads():
    found = []

    def run():
        with Signals() as signals:
            found.append(signals.received)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [0]


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
def test_terminal_that_goes_away_ends_a_run_unless_nohup_protects_it():
    before = signal.getsignal(signal.SIGHUP)
    try:
        with Signals() as signals:
            signal.raise_signal(signal.SIGHUP)
        assert signals.received == signal.SIGHUP
        assert signal.getsignal(signal.SIGHUP) == before
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with Signals() as signals:
            signal.raise_signal(signal.SIGHUP)
        assert signals.received == 0
    finally:
        signal.signal(signal.SIGHUP, before)
