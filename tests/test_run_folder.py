"""The folder of a run, and the signals that end a run."""

import datetime
import errno
import json
import os
import signal
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from jaxseg.base import config
from jaxseg.base.config import Config, Data, Run
from jaxseg.base.errors import UserError
from jaxseg.runs import folder
from jaxseg.runs.folder import open_run
from jaxseg.training.steps import Signals

SPLIT = {"training": ["a.png", "b.png"], "validation": ["田.png"]}


# the run folder


def new_run(out: Path | None, overwrite: bool = False, files: Sequence[Path] = (), data: Path | None = None) -> Path:
    with open_run(Config(data=Data(data=data), run=Run(out=out, overwrite=overwrite)), SPLIT, files) as run:
        return run


@pytest.fixture
def full(tmp_path) -> Path:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/thesis.txt").write_text("years of work")
    return tmp_path / "precious"


def test_nonempty_folder_is_refused_and_left_alone(full):
    with pytest.raises(UserError) as caught:
        new_run(full)
    assert str(full) in str(caught.value)
    assert [path.name for path in full.iterdir()] == ["thesis.txt"]


def test_overwrite_refuses_a_folder_that_is_no_run(full):
    with pytest.raises(UserError, match="no run"):
        new_run(full, overwrite=True)
    for text in ("{}", '{"name": "webapp"}', "{", '{"model": {"attention": true}}'):  # another program's, or damaged
        (full / "config.json").write_text(text)
        with pytest.raises(UserError, match=r"this is none of jaxseg's: .*config\.json"):
            new_run(full, overwrite=True)
    assert sorted(path.name for path in full.iterdir()) == ["config.json", "thesis.txt"]


def test_overwrite_deletes_what_training_wrote_and_leaves_the_rest(tmp_path, capsys):
    run = new_run(tmp_path / "run")
    written = ["log.jsonl", "README.md", "curves.png", "samples/batch.png", "tensorboard/events.out.tfevents.1"]
    written += ["trackers/wandb.json", "checkpoints/best/3/meta", "evaluation-x/metrics.json", ".7-0.tmp"]
    own = ["thesis.txt", "samples/mine.png", "predictions/a.png", "corrected/config.json"]
    for name in written + own:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("years of work")
    with pytest.raises(UserError, match="--overwrite"):
        new_run(run)
    assert new_run(run, overwrite=True) == run
    assert (
        "left alone what jaxseg did not write: corrected, predictions, samples, thesis.txt" in capsys.readouterr().out
    )
    found = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    assert found == {"config.json", "split.json", *own}
    assert not (run / "checkpoints").exists()
    assert config.load(run).run.overwrite


def test_overwrite_follows_no_links(tmp_path):
    run, elsewhere = new_run(tmp_path / "run"), tmp_path / "elsewhere"
    (elsewhere / "best").mkdir(parents=True)
    (run / "checkpoints").mkdir()
    (run / "checkpoints/best").symlink_to(elsewhere)
    new_run(run, overwrite=True)
    assert (elsewhere / "best").is_dir()


@pytest.mark.parametrize("name", ["corrected/a.png", "checkpoints", "."])
def test_overwrite_never_deletes_what_the_run_reads(tmp_path, name):
    run = new_run(tmp_path / "run")
    (run / "corrected").mkdir()
    link = tmp_path / "link"
    link.symlink_to(run / name)
    before = sorted(run.rglob("*"))
    for given in (run / name, link):
        for how in ({"files": [tmp_path / "data", given]}, {"data": given}):
            with pytest.raises(UserError, match="holds what this run reads") as caught:
                new_run(run, overwrite=True, **how)
            assert str(given) in str(caught.value)
    assert sorted(run.rglob("*")) == before
    new_run(run, overwrite=True, data=tmp_path)  # the folder that the run lies in


def test_folder_that_was_killed_before_its_config_is_used(tmp_path):
    for name in ("split.json", ".lock", ".12-0.tmp"):
        (tmp_path / name).write_text("{")
    assert json.loads((new_run(tmp_path) / "split.json").read_text()) == SPLIT


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
    run = new_run(None)
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
        folder.check_target(Config(run=settings))


def test_runs_of_one_second_have_folders_of_their_own(tmp_path, monkeypatch):
    class Clock(datetime.datetime):
        @classmethod
        def now(cls):
            return cls(2026, 11, 29, 9, 30)

    monkeypatch.setattr(folder.datetime, "datetime", Clock)
    monkeypatch.chdir(tmp_path)
    assert [new_run(None).name for _ in range(3)] == ["20261129-093000", "20261129-093000-2", "20261129-093000-3"]


def test_run_that_is_being_written_is_refused_with_its_process(tmp_path):
    """Whatever asks for it, before anything is deleted or written, and only as long as it lasts."""
    run = tmp_path / "run"
    with open_run(Config(run=Run(out=run)), SPLIT):
        before = {path: path.read_bytes() for path in run.iterdir()}
        for how in (Run(out=run), Run(out=run, overwrite=True), Run(resume=run)):
            for attempt in (lambda c: open_run(c, SPLIT).__enter__(), folder.check_target):
                with pytest.raises(UserError, match=f"process {os.getpid()} on .* is writing this run"):
                    attempt(Config(run=how))
        assert {path: path.read_bytes() for path in run.iterdir()} == before
    assert sorted(path.name for path in run.iterdir()) == ["config.json", "split.json"]
    assert resume(run, SPLIT) == run


def test_file_that_cannot_be_written_is_named_before_a_run_goes_on(tmp_path, monkeypatch):
    run = new_run(tmp_path / "run")
    (run / "checkpoints/last").mkdir(parents=True)
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != run / "checkpoints/last" and real(path, mode))
    with pytest.raises(UserError, match=r"cannot be written: .*checkpoints/last"):
        resume(run, SPLIT)


# resuming


def resume(run: Path, split: dict) -> Path:
    with open_run(Config(run=Run(resume=run)), split) as opened:
        return opened


def test_resume_keeps_the_file_whose_weights_the_run_began_with(tmp_path):
    with open_run(Config(run=Run(out=tmp_path / "run", load=Path("unet.pth"))), SPLIT) as run:
        pass
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
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with Signals() as signals:
            signal.raise_signal(signal.SIGHUP)
        assert signals.received == signal.SIGHUP
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with Signals() as signals:
            signal.raise_signal(signal.SIGHUP)
        assert signals.received == 0
    finally:
        signal.signal(signal.SIGHUP, before)
