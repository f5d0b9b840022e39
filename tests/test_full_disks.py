"""Disks that fill up, and signals in every phase: long, and for root on Linux, who may mount small disks.

pytest -m full tests/test_full_disks.py
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import jaxseg

pytestmark = pytest.mark.full
SIZES = (60, 130, 200, 280, 360, 450, 560, 700, 900, 1100)  # KiB; a whole run takes about 1000
QUICK = ["--widths", "8", "16", "-b", "4", "--workers", "0", "--log-every", "2"]
TIMES = ("seconds", "images_per_second", "waited")


def train(*argv, before: str = "", wait: bool = True) -> subprocess.CompletedProcess | subprocess.Popen:
    """Trains in another process, after the statements `before`."""
    program = f"import sys, os, signal\n{before}\nfrom jaxseg import train\nsys.exit(train.main(sys.argv[1:]))"
    words = [sys.executable, "-c", program, *map(str, argv)]
    environment = os.environ | {"PYTHONPATH": str(Path(jaxseg.__file__).parents[1])}
    process = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return finish(process) if wait else process


def finish(process: subprocess.Popen) -> subprocess.CompletedProcess:
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def epochs(run: Path) -> list[dict]:
    lines = (run / "log.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in TIMES} for line in lines]


@pytest.fixture
def disk(tmp_path):
    """Mounts a disk of some KiB, or makes it another size."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root may mount a disk")
    place = tmp_path / "disk"
    place.mkdir()

    def sized(size: int) -> Path:
        remount = ",remount" if place.is_mount() else ""
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}K{remount}", "tmpfs", place], check=True)
        return place

    yield sized
    subprocess.run(["umount", place])


@pytest.fixture(scope="module")
def whole(tiles_root, tmp_path_factory) -> list[dict]:
    """Epochs of a run with room enough."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert train("--data", tiles_root, "--out", run, "-e", 3, *QUICK).returncode == 0
    return epochs(run)


@pytest.mark.parametrize("size", SIZES)
def test_run_on_a_disk_that_fills_up_says_so_and_goes_on_with_room(tiles_root, whole, disk, size):
    run = disk(size) / "run"
    done = train("--data", tiles_root, "--out", run, "-e", 3, *QUICK)
    assert done.returncode in (0, 2), done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == 0 or "No space left on device" in done.stderr
    assert done.stderr.count("\n") <= 3
    disk(20_000)
    if f"--resume {run}" in done.stderr:
        again = train("--resume", run)
        assert again.returncode == 0, again.stderr
        assert epochs(run) == whole


def test_disk_that_fills_within_an_epoch_does_not_hang_the_run(tiles_root, disk):
    place = disk(4_000)
    crops = ["--crop", "32", "--crops", "400", "-e", "1"]
    process = train("--data", tiles_root, "--out", place / "run", *crops, *QUICK, wait=False)
    while not (place / "run/samples/batch.png").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    with (place / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
        while True:
            filler.write(bytes(4096))
    done = finish(process)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "No space left on device" in done.stderr
    assert "--resume" in done.stderr


PHASES = {  # what is replaced, so that its second call sends the signal first
    "compiling": ("jaxseg.training.loop", "compile_eval_step", 1),
    "training": ("jaxseg.training.loop", "check_finite", 2),
    "validating": ("jaxseg.training.loop", "evaluate", 2),
    "saving": ("jaxseg.runs.checkpoint", "_arrays", 6),
    "drawing": ("jaxseg.runs.tracker", "draw_curves", 1),
}
SEND = """
import importlib
room, calls = importlib.import_module({module!r}), []
real = room.{name}
def sends(*args, **how):
    calls.append(1)
    if len(calls) == {at}: os.kill(os.getpid(), {number})
    return real(*args, **how)
room.{name} = sends
"""


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_signal_in_any_phase_leaves_a_run_that_goes_on_to_the_same_scores(tiles_root, whole, tmp_path, name, phase):
    module, function, at = PHASES[phase]
    number = int(getattr(signal, name))
    before = SEND.format(module=module, name=function, at=at, number=number)
    done = train("--data", tiles_root, "--out", tmp_path / "run", "-e", 3, *QUICK, before=before)
    assert "Traceback" not in done.stderr
    # before the first step nothing is to be saved, and the system ends the process
    assert done.returncode in (128 + number, -number), done.stderr
    if "stopped and saved" in done.stdout:
        assert train("--resume", tmp_path / "run").returncode == 0
        assert epochs(tmp_path / "run") == whole
    else:
        assert phase == "compiling"
