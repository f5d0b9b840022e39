"""What a run survives: kills, damaged files, two processes at once. The README's table of promises names these tests.

Each has a quick twin beside what it tests; here they are long, and asked for with `pytest -m full`.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_checkpoint import flip
from test_tracker import scalars
from test_train import assert_same_run, files_of, launch, records

from jaxseg import train
from jaxseg.base.errors import UserError
from jaxseg.runs.checkpoint import load_model

pytestmark = pytest.mark.full
EPOCHS = 12
HOW = ["--widths", "4", "8", "-e", str(EPOCHS), "-b", "4", "--log-every", "1", "--workers", "2", "--noise", "0.1"]
HOW += ["--zoom", "0.2", "--ema", "0.9", "--dropout", "0.1"]
KILLS = 20


def begin(folder: Path, *argv) -> subprocess.Popen:
    """Starts `python -m jaxseg.train argv` in a process of its own."""
    paths = os.pathsep.join(map(str, [Path(train.__file__).parents[1], *sys.path]))
    environment = os.environ | {"PYTHONPATH": paths, "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"}
    command = [sys.executable, "-m", "jaxseg.train", *map(str, argv)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, cwd=folder)


@pytest.fixture(scope="module")
def whole(tiles_root, tmp_path_factory) -> Path:
    """A run that nothing befell."""
    folder = tmp_path_factory.mktemp("whole")
    with begin(folder, "--data", tiles_root, "--out", folder / "run", *HOW) as process:
        assert process.wait() == 0, process.stdout.read()
    return folder / "run"


# kills


def changes(run: Path) -> tuple:
    """What differs between two moments of a run: its checkpoints and drafts, and the length of its log."""
    log = run / "log.jsonl"
    return sorted(path.name for path in run.glob("checkpoints/*/*")), log.exists() and log.stat().st_size


def wait_for_changes(process: subprocess.Popen, run: Path, count: int) -> None:
    seen = changes(run)
    while process.poll() is None and count:
        try:
            now = changes(run)
        except FileNotFoundError:  # deleted between the two looks
            continue
        if now != seen:
            seen, count = now, count - 1
        time.sleep(0.0005)


def test_run_killed_at_twenty_moments_ends_with_the_same_bits(whole, tiles_root, tmp_path):
    """`kill -9` while it starts, saves, logs, or trains; each time the run goes on, and is killed again."""
    moments, run = random.Random(22), tmp_path / "run"
    for number in range(KILLS):
        argv = ["--resume", run] if (run / "config.json").exists() else ["--data", tiles_root, "--out", run, *HOW]
        with begin(tmp_path, *argv) as process:
            if number % 5:  # drafts, commits, lines of the log: about eight an epoch
                wait_for_changes(process, run, moments.randint(1, 6))
                time.sleep(moments.uniform(0, 0.05))
            else:
                time.sleep(moments.uniform(0, 6))
            process.kill()
            out = process.stdout.read().decode()
        assert process.returncode in (-signal.SIGKILL, 0), out
    resumed = launch("--resume", run)
    assert (resumed.code, resumed.err) == (0, "")
    assert_same_run(run, whole)
    assert [record["epoch"] for record in records(run)] == list(range(EPOCHS))
    shown = scalars(run)
    assert sorted(shown["step/loss"]) == list(range(1, 3 * EPOCHS + 1))
    assert sorted(shown["loss/train"]) == list(range(3, 3 * EPOCHS + 1, 3))
    assert not [path.name for path in run.rglob("*") if "tmp" in path.name or path.name == ".lock"]


# damaged checkpoints


def ways(content: bytes, moments: random.Random) -> list[bytes | None]:
    """A file deleted, emptied, cut, and with zeros in it; then the numbers of bits to flip."""
    n = len(content)
    return [None, b"", content[: n // 2], content[:-1], content[: n // 3] + bytes(n // 3) + content[2 * (n // 3) :]] + [
        moments.randrange(8 * n) for _ in range(5)
    ]


@pytest.mark.parametrize("which", ["best", "last"])
def test_checkpoint_with_any_file_damaged_is_never_read(whole, tmp_path, which, capsys):
    """The other one is read instead, with a line; alone it is refused."""
    run, moments = shutil.copytree(whole, tmp_path / "run"), random.Random(22)
    other = {"best": "last", "last": "best"}[which]
    expected, (step,) = files_of(run, other), (run / "checkpoints" / which).iterdir()
    aside = tmp_path / "aside"
    for path in sorted(path for path in step.rglob("*") if path.is_file()):
        content = path.read_bytes()
        for way in ways(content, moments) if content else [None]:
            if way is None:
                path.unlink()
            elif isinstance(way, bytes):
                path.write_bytes(way)
            else:
                flip(path, way)
            changed = not path.exists() or path.read_bytes() != content
            capsys.readouterr()
            _, description = load_model(run, which)
            assert description["checkpoint"] == (other if changed else which), (path, way)
            assert ("is taken instead" in capsys.readouterr().err) == changed
            (run / "checkpoints" / other).rename(aside)
            if changed:
                with pytest.raises(UserError, match="damaged or incomplete"):
                    load_model(run, which)
            aside.rename(run / "checkpoints" / other)
            path.write_bytes(content)
    assert files_of(run, other) == expected


# two processes


def test_run_that_is_training_is_left_alone_by_a_second_process(whole, tiles_root, tmp_path):
    run = tmp_path / "run"
    new = ["--data", tiles_root, "--out", run, *HOW]
    with begin(tmp_path, *new) as process:
        wait_for_changes(process, run, 12)
        process.send_signal(signal.SIGSTOP)
        before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
        for argv in (["--resume", run], new, [*new, "--overwrite"]):
            second = launch(*argv)
            assert second.code == 2
            assert f"process {process.pid} on " in second.err
        assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
        process.send_signal(signal.SIGCONT)
        assert process.wait() == 0, process.stdout.read()
    assert_same_run(run, whole)
    for argv in (["--resume", run], [*new, "--overwrite"]):  # now nobody writes it
        assert launch(*argv).code == 0
    assert_same_run(run, whole)


def test_two_runs_begun_at_once_have_folders_of_their_own(tiles_root, tmp_path):
    both = [begin(tmp_path, "--data", tiles_root, *HOW, "-e", "1", "--seed", seed) for seed in (0, 1)]
    for process in both:
        with process:
            assert process.wait() == 0, process.stdout.read()
    runs = list((tmp_path / "runs").iterdir())
    assert len(runs) == 2
    assert [len(records(run)) for run in runs] == [1, 1]
