"""Trackers beside TensorBoard: they get what it gets, and nothing that goes wrong there reaches the run."""

import contextlib
import importlib.util
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from test_tracker import epoch, events, log, scalars, step

from jaxseg import train
from jaxseg.base import extra
from jaxseg.base.errors import Stopped
from jaxseg.runs.services import libraries, link, worker
from jaxseg.runs.tracker import Tracker

pytestmark = pytest.mark.usefixtures("undrawn")
SETTINGS = {"run": {"seed": 0, "out": None}, "model": {"widths": [4, 8]}}
IMAGES, MASKS = np.full((1, 32, 32, 3), 7, np.uint8), np.zeros((1, 32, 32), int)


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """Puts the stand-in for wandb first on the path of modules. Returns the list of calls that it noted."""
    monkeypatch.syspath_prepend(Path(__file__).parent / "services")
    monkeypatch.setenv("FAKE_CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("WANDB_API_KEY", "a-secret")
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return lambda: [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]


def logged(run: Path) -> None:
    """Logs a picture, steps, two epochs and scores; a score is not a number."""
    with Tracker(run, services=["wandb"], settings=SETTINGS) as tracker:
        tracker.pictures("batch", 0, IMAGES, MASKS)
        for number in range(2):
            tracker.steps([step(10 * number + i) for i in (8, 9)])
            tracker.epoch(epoch(number))
        tracker.scores(epoch(0, validation={"loss": 0.75, "accuracy": 0.5, "miou": float("nan"), "iou": [0.25]}))


def test_a_tracker_gets_what_tensorboard_gets_under_the_names_and_steps(tmp_path, calls, capfd):
    run = tmp_path / "a run"
    with Tracker(run, services=["wandb", "wandb"], settings=SETTINGS) as tracker:
        (sent,) = tracker._links
        began = time.monotonic()
        while not (run / "trackers/wandb.json").exists() and time.monotonic() < began + 60:
            time.sleep(0.01)
        if os.name != "nt":
            sent._process.send_signal(signal.SIGINT)  # from a terminal it reaches all processes
            sent._process.send_signal(signal.SIGTERM)
        tracker.pictures("batch", 0, IMAGES, MASKS)
        tracker.steps([step(8), step(9) | {"grad_norm": np.float32("inf")}])
        tracker.epoch(epoch(0))
        tracker.scores(epoch(0))
    first, second, *rows, best, last = calls()
    assert first == ["init", "jaxseg", "a run", None, "allow", None]
    assert second == ["update", SETTINGS]
    assert last == ["finish", 0]
    assert best[1] == {
        **{"best/epoch": 1, "best/loss": 0.75, "best/accuracy": 0.5, "best/miou": 0.375},
        **{"best/iou/class_0": 0.25, "best/iou/class_1": 0.5},
    }
    values = [(row[1].pop("global_step"), row[1]) for row in rows]
    found = {}
    for at, row in values:
        for tag, value in row.items():
            found.setdefault(tag, {})[at] = value
    (height, width, _, total) = found.pop("samples/batch")[0][1:]
    (shown,) = [v.image for e in events(run) for v in e.summary.value if v.WhichOneof("value") == "image"]
    assert (height, width, total > 0) == (shown.height, shown.width, True)
    assert found == scalars(run)
    said = capfd.readouterr()
    assert said.err == "note: --log wandb: https://tracker/abc\n"
    assert "nobody wants" not in said.out


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("raises in init", "no; the run goes on without it"),
        ("exits in log", "1; parts of the log are missing there"),
        ("dies in log", "its process ended with status 7; the run goes on without it"),
        ("hangs in init", "did not finish in time; what it had not sent is missing there"),
    ],
)
def test_a_fault_of_the_tracker_is_told_once_and_the_run_goes_on(tmp_path, calls, capfd, monkeypatch, fault, says):
    monkeypatch.setenv("FAKE_FAULT", fault)
    monkeypatch.setitem(link.PATIENCE, "finished", 0.5 if "hangs" in fault else 60.0)
    began = time.monotonic()
    logged(tmp_path / "run")
    assert time.monotonic() - began < 30
    assert log(tmp_path / "run") == [epoch(0), epoch(1)]
    said = capfd.readouterr().err.splitlines()
    assert [line for line in said if "note" not in line] == [f"warning: --log wandb: {says}"]


def test_a_tracker_that_is_too_slow_loses_messages_and_no_time(tmp_path, calls, capfd, monkeypatch):
    monkeypatch.setenv("FAKE_FAULT", "hangs in init")
    monkeypatch.setattr(link, "MOST", 4)
    monkeypatch.setitem(link.PATIENCE, "stopped", 0.3)
    began = time.monotonic()
    picture = np.zeros((500, 500, 3), np.uint8)  # more than a pipe holds
    sent = link.Link("wandb", tmp_path, SETTINGS)
    for number in range(10):
        sent.image("a", picture, number)
    sent.end("stopped")
    sent.join()
    assert time.monotonic() - began < 20
    assert capfd.readouterr().err.splitlines() == [
        "warning: --log wandb: is too slow; parts of the log are missing there",
        "warning: --log wandb: did not finish in time; what it had not sent is missing there",
    ]


def test_a_tracker_whose_process_cannot_be_started_is_told_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no python"))
    logged(tmp_path / "run")
    assert capsys.readouterr().err.count("--log wandb: cannot be started") == 1
    assert len(log(tmp_path / "run")) == 2


# the process of a tracker, without the process


def served(monkeypatch, tmp_path: Path, *messages: tuple, name: str = "wandb") -> str:
    """What `worker.serve` says on a run and these messages."""
    stream, said = io.BytesIO(), io.StringIO()
    for message in (("open", name, tmp_path / "run", SETTINGS), *messages):
        pickle.dump(message, stream)
    stream.seek(0)
    (tmp_path / "run").mkdir(exist_ok=True)
    monkeypatch.setitem(sys.modules, "wandb", None)  # afterwards as it was before
    del sys.modules["wandb"]
    monkeypatch.setattr("builtins.input", lambda: None)
    worker.serve(stream, said)
    return said.getvalue()


@pytest.mark.parametrize(("how", "code"), [("finished", 0), ("stopped", 1), ("failed", 1), (None, 1)])
def test_a_tracker_is_told_how_the_run_ended_also_by_kill(calls, tmp_path, monkeypatch, how, code):
    served(monkeypatch, tmp_path, *([("close", how)] if how else []))
    assert calls()[-1] == ["finish", code]


def test_a_resumed_run_goes_on_in_the_run_of_the_tracker(calls, tmp_path, monkeypatch):
    for _ in range(2):
        served(monkeypatch, tmp_path, ("close", "finished"))
    assert [call[3] for call in calls() if call[0] == "init"] == [None, "abc"]
    (tmp_path / "run/trackers/wandb.json").write_text("{}")
    said = served(monkeypatch, tmp_path)
    assert said.startswith("warning: --log wandb: 'id'; the run goes on without it (or delete ")


def test_no_secret_is_written_into_the_run(calls, tmp_path, monkeypatch):
    served(monkeypatch, tmp_path, ("close", "finished"))
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert [path.read_bytes() for path in files] == [b'{"id": "abc"}\n']


def test_messages_after_one_that_failed_are_logged(calls, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_FAULT", "raises in update")
    said = served(monkeypatch, tmp_path, ("scores", {"miou": 0.5}, 1), ("close", "finished"))
    assert said == "warning: --log wandb: no; the run goes on without it\n"  # of the settings
    monkeypatch.setenv("FAKE_FAULT", "raises in log")
    rows = [(1, {"a": 1.0})]
    said = served(monkeypatch, tmp_path, ("scalars", rows), ("scalars", rows), ("close", "finished"))
    assert said.splitlines()[1:] == ["warning: --log wandb: no; parts of the log are missing there"]
    assert calls()[-3:] == [["log", {"a": 1.0, "global_step": 1}]] * 2 + [["finish", 0]]


@pytest.mark.parametrize(
    ("error", "how"),
    [(None, "finished"), (Stopped(15), "stopped"), (KeyboardInterrupt(), "stopped"), (ValueError(), "failed")],
)
def test_the_end_of_the_run_is_passed_on(tmp_path, monkeypatch, error, how):
    ends = []
    close = Tracker.close
    monkeypatch.setattr(Tracker, "close", lambda self, how: ends.append(how) or close(self))
    with contextlib.suppress(BaseException), Tracker(tmp_path):
        if error:
            raise error
    assert ends == [how]


# the command


def test_a_missing_extra_is_named_before_data_are_read(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(extra, "find_spec", lambda name: None)
    argv = ["--data", str(tmp_path / "none"), "--out", str(tmp_path / "run"), "--log", "wandb", "mlflow"]
    assert train.main(argv) == 2
    assert capsys.readouterr().err == (
        "error: --log wandb needs wandb: pip install 'jaxseg[wandb]'\n"
        "--log mlflow needs mlflow: pip install 'jaxseg[mlflow]'\n"
    )
    assert not (tmp_path / "run").exists()


def test_a_folder_with_the_name_of_a_module_is_not_taken_for_it(tmp_path, monkeypatch):
    (tmp_path / "surely_no_module").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert importlib.util.find_spec("surely_no_module") is not None
    assert not extra.is_there("surely_no_module")
    assert extra.is_there("numpy")


def test_trackers_are_imported_in_their_process_alone():
    program = "import sys; from jaxseg.runs.services import link, worker; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not {"jax", "wandb", "mlflow", "aim"} & set(loaded)
    assert set(libraries.LIBRARIES) == {"wandb", "mlflow", "aim"}


# the real libraries, where they are installed

READ = {
    "mlflow": """
import mlflow
client = mlflow.MlflowClient()
(run,) = client.search_runs([client.get_experiment_by_name("jaxseg").experiment_id])
tags = ["loss/train", "step/loss", "best/miou"]
scalars = {tag: {m.step: m.value for m in client.get_metric_history(run.info.run_id, tag)} for tag in tags}
images = [path.path for path in client.list_artifacts(run.info.run_id, "images")]
settings, status = run.data.params, run.info.status
print(json.dumps([run.info.run_id, run.info.run_name, settings["model.widths"], status, scalars, len(images) // 2]))
""",
    "aim": """
import aim
from aim.storage.context import Context
repo = aim.Repo.from_path(".")
(identity,) = repo.list_all_runs()
run = aim.Run(identity, repo=repo, system_tracking_interval=None, capture_terminal_logs=False)
series = {found.name: found.data for found in run.metrics()}
tags = ["loss/train", "step/loss"]
scalars = {tag: dict(zip(series[tag].indices_list(), series[tag].values_list()[0])) for tag in tags}
scalars["best/miou"] = {run["best"]["step"]: run["best"]["miou"]}
images = run.get_image_sequence("samples/batch", Context({})).values.sparse_list()[0]
print(json.dumps([run.hash, run.name, str(run["settings"]["model"]["widths"]), run["ended"], scalars, len(images)]))
""",
    "wandb": """
import glob, struct
from wandb.proto.wandb_internal_pb2 import Record
scalars, images, names = {"loss/train": {}, "step/loss": {}, "best/miou": {}}, 0, set()
for path in sorted(glob.glob("wandb/offline-run-*/run-*.wandb")):
    data, record, at = open(path, "rb").read(), b"", 7
    while at + 7 <= len(data):  # records of LevelDB's log: CRC, length, type
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        if kind == 0:
            break
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        at += (-at % 32768) * (-at % 32768 < 7)
        if kind not in (1, 4):
            continue
        found, record = Record.FromString(record), b""
        row = {item.nested_key[0]: json.loads(item.value_json) for item in found.history.item}
        for tag in ("loss/train", "step/loss"):
            if tag in row:
                scalars[tag][row["global_step"]] = row[tag]
        images += "samples/batch" in row
        for item in found.summary.update:
            if item.key == "best/miou":
                scalars["best/miou"][10] = json.loads(item.value_json)
        for item in found.config.update:
            if item.key == "model":
                settings = json.loads(item.value_json)
        if found.HasField("run"):
            names.add((found.run.run_id, found.run.display_name))
        if found.HasField("exit"):
            status = found.exit.exit_code
((identity, name),) = names
print(json.dumps([identity, name, str(settings["widths"]), status, scalars, images]))
""",
}
"""Programs that read back what a library has kept. They run apart, for their imports warn."""


@pytest.mark.full
@pytest.mark.parametrize(("name", "ended"), [("wandb", 0), ("mlflow", "FINISHED"), ("aim", "finished")])
def test_a_real_tracker_keeps_the_run_offline_and_goes_on_with_it(tmp_path, monkeypatch, capfd, name, ended):
    if not extra.is_there(name):
        pytest.skip(f"needs the extra {name}")
    monkeypatch.chdir(tmp_path)
    for key, value in {
        **{"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false", "WANDB_DISABLE_GIT": "true"},
        **{"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}", "MLFLOW_DISABLE_TELEMETRY": "true"},
        **{"DO_NOT_TRACK": "true", "WANDB_CONFIG_DIR": str(tmp_path), "WANDB_CACHE_DIR": str(tmp_path)},
    }.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setitem(link.PATIENCE, "finished", 300.0)
    for number, resumed in enumerate([{}, {"resume_step": 10, "resume_epoch": 1}]):
        with Tracker(tmp_path / "a run", services=[name], settings=SETTINGS, **resumed) as tracker:
            if not number:
                tracker.pictures("batch", 0, IMAGES, MASKS)
            tracker.steps([step(10 * number + i) for i in (8, 9)])
            tracker.epoch(epoch(number))
            tracker.scores(epoch(0))
    said = capfd.readouterr().err.splitlines()
    assert [line.split(": ")[:2] for line in said] == [["note", f"--log {name}"]] * 2
    program = "import json\n" + READ[name]
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    identity, run, widths, status, kept, images = json.loads((found.stdout.splitlines() or [found.stderr])[-1])
    assert identity == json.loads((tmp_path / f"a run/trackers/{name}.json").read_text())["id"]
    assert (run, widths, status, images) == ("a run", "[4, 8]", ended, 1)
    assert {tag: {int(at): x for at, x in values.items()} for tag, values in kept.items()} == {
        "loss/train": {10: 0.5, 20: 0.5},
        "step/loss": {9: 0.5, 10: 0.5, 19: 0.5, 20: 0.5},
        "best/miou": {10: 0.375},
    }
