"""Log of a run: TensorBoard events, log.jsonl, curves and pictures."""

import errno
import json
import struct
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from jaxseg.base.errors import UserError
from jaxseg.runs import tensorboard
from jaxseg.runs import tracker as tracking
from jaxseg.runs.tracker import Tracker, gap


def epoch(number, **changes):
    return {
        "epoch": number,
        "step": 10 * (number + 1),
        "train": {"loss": 0.5, "accuracy": 0.75, "miou": 0.625},
        "validation": {"loss": 0.75, "accuracy": 0.5, "miou": 0.375, "iou": [0.25, 0.5]},
        "learning_rate": 0.25,
        "images_per_second": 40.0,
        "seconds": 2.0,
    } | changes


def step(number):
    return {"step": number, "loss": np.float32(0.5), "learning_rate": 0.25, "grad_norm": 2.0}


def events(run):
    """All events of the run, in TensorBoard's order of files. A record is uint64 length, CRC, message, CRC."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted((run / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            found.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def scalars(run):
    """{tag: {step: value}} as TensorBoard shows it: the start of a session purges earlier events from its step on."""
    shown = {}
    for event in events(run):
        if event.HasField("session_log"):
            for values in shown.values():
                for late in [at for at in values if at >= event.step]:
                    del values[late]
        for value in event.summary.value:
            if value.WhichOneof("value") == "simple_value":
                assert event.step not in shown.setdefault(value.tag, {})
                shown[value.tag][event.step] = value.simple_value
    return shown


def log(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_training_validation_and_gap_are_logged(tmp_path):
    with Tracker(tmp_path) as tracker:
        tracker.steps([step(8), step(9)])
        tracker.epoch(epoch(0))
        assert log(tmp_path) == [epoch(0)]  # before the end
    shown = scalars(tmp_path)
    assert shown["loss/train"] == {10: 0.5}
    assert shown["loss/validation"] == {10: 0.75}
    assert shown["loss/gap"] == {10: 0.25}
    assert shown["accuracy/gap"] == {10: 0.25}
    assert shown["miou/gap"] == {10: 0.25}
    assert shown["iou/class_1"] == {10: 0.5}
    assert shown["step/loss"] == {9: 0.5, 10: 0.5}
    assert shown["step/learning_rate"] == {9: 0.25, 10: 0.25}
    assert shown["step/grad_norm"] == {9: 2.0, 10: 2.0}


def test_custom_chart_overlays_training_and_validation(tmp_path):
    Tracker(tmp_path).close()
    from tensorboardX.proto.layout_pb2 import Layout

    (value,) = [value for event in events(tmp_path) for value in event.summary.value if "custom_scalars" in value.tag]
    charts = Layout.FromString(value.tensor.string_val[0]).category[0].chart
    tags = {chart.title: list(chart.multiline.tag) for chart in charts}
    assert tags["loss"] == ["loss/train", "loss/validation"]
    assert tags["gaps"] == ["loss/gap", "accuracy/gap", "miou/gap"]


def test_gap_grows_with_overfitting_for_loss_and_scores():
    worse = epoch(0, validation={"loss": 0.9, "accuracy": 0.4, "miou": 0.3})
    assert all(gap(worse, name) > gap(epoch(0), name) for name in ("loss", "accuracy", "miou"))


def test_values_that_are_not_finite_are_logged_as_null(tmp_path):
    with Tracker(tmp_path) as tracker:
        validation = {"loss": np.float32("nan"), "accuracy": 0.5, "miou": 0.5, "iou": np.array([0.5, np.nan])}
        tracker.steps([step(1) | {"grad_norm": np.float32("inf")}])
        tracker.epoch(epoch(0, validation=validation, seconds=np.float32(2)))
    (record,) = log(tmp_path)
    assert record["validation"] == {"loss": None, "accuracy": 0.5, "miou": 0.5, "iou": [0.5, None]}
    assert record["seconds"] == 2.0
    shown = scalars(tmp_path)
    assert "loss/train" in shown
    assert not {"loss/validation", "loss/gap", "iou/class_1", "step/grad_norm"} & set(shown)


def test_resume_removes_entries_after_the_checkpoint(tmp_path):
    with Tracker(tmp_path) as tracker:
        for number in range(3):
            tracker.steps([step(10 * number + i) for i in range(10)])
            tracker.epoch(epoch(number))
    with Tracker(tmp_path, resume_step=15, resume_epoch=1) as tracker:  # in the middle of the second epoch
        assert tracker.epochs == [epoch(0)]
        tracker.steps([step(i) for i in range(15, 20)])
        tracker.epoch(epoch(1, seconds=9.0))
    assert log(tmp_path) == [epoch(0), epoch(1, seconds=9.0)]
    shown = scalars(tmp_path)
    assert sorted(shown["step/loss"]) == list(range(1, 21))
    assert sorted(shown["loss/gap"]) == [10, 20]


def test_two_sessions_in_one_second_keep_their_events(tmp_path, monkeypatch):
    monkeypatch.setattr("time.time", lambda: 1e9)
    for resume_step in (None, 1):
        Tracker(tmp_path, resume_step=resume_step).close()
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2


def test_truncated_last_line_is_dropped_and_a_broken_earlier_line_is_refused(tmp_path):
    with Tracker(tmp_path) as tracker:
        tracker.epoch(epoch(0))
    path = tmp_path / "log.jsonl"
    path.write_text(path.read_text() + '{"epoch": 1, "st')
    Tracker(tmp_path, resume_step=10, resume_epoch=1).close()
    assert log(tmp_path) == [epoch(0)]
    path.write_text("x\n" + path.read_text())
    with pytest.raises(UserError, match=r"log\.jsonl, line 1: expected the JSON of an epoch, found 'x'"):
        Tracker(tmp_path, resume_step=10, resume_epoch=1)


def test_new_run_refuses_the_log_of_an_earlier_one(tmp_path):
    with Tracker(tmp_path) as tracker:
        tracker.epoch(epoch(0))
    with pytest.raises(UserError, match="log of an earlier run"):
        Tracker(tmp_path)
    assert log(tmp_path) == [epoch(0)]


def test_log_survives_a_failed_rewrite(tmp_path, monkeypatch):
    with Tracker(tmp_path) as tracker:
        tracker.epoch(epoch(0))
        tracker.epoch(epoch(1))

    def crash(*_):
        raise OSError("crash")

    monkeypatch.setattr("os.replace", crash)
    with pytest.raises(OSError, match="crash"):
        Tracker(tmp_path, resume_step=10, resume_epoch=1)
    assert log(tmp_path) == [epoch(0), epoch(1)]


def test_curves_are_drawn_at_first_and_last_epoch_and_between_for_a_share_of_the_time(tmp_path, monkeypatch):
    clock, drawn = SimpleNamespace(now=5.0), []

    def draw(epochs, names):
        drawn.append(len(epochs))
        clock.now += 0.6
        return np.zeros((9, 9, 3), np.uint8)

    monkeypatch.setattr(tracking, "draw_curves", draw)
    monkeypatch.setattr(tracking, "time", SimpleNamespace(monotonic=lambda: clock.now, time_ns=time.time_ns))
    with Tracker(tmp_path) as tracker:
        tracker.epoch(epoch(0))
        assert cv2.imread(str(tmp_path / "curves.png")).shape == (9, 9, 3)
        for number, at in enumerate((10, 25.5, 25.7, 30, 46.5), 1):
            clock.now = at
            tracker.epoch(epoch(number))
    assert drawn == [1, 4, 6]
    tracker.close()  # again does nothing
    assert drawn == [1, 4, 6]


def test_outdated_curves_are_drawn_at_the_end(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        tracking, "draw_curves", lambda epochs, names: drawn.append(len(epochs)) or np.zeros((9, 9, 3), np.uint8)
    )
    with Tracker(tmp_path) as tracker:
        tracker.epoch(epoch(0))
        tracker._next_drawing = float("inf")
        tracker.epoch(epoch(1))
    assert drawn == [1, 2]


def test_pictures_are_written_as_file_and_to_tensorboard(tmp_path):
    rng = np.random.default_rng(0)
    images, masks = rng.integers(0, 256, (2, 32, 32, 3), np.uint8), rng.integers(0, 2, (2, 32, 32))
    with Tracker(tmp_path) as tracker:
        path = tracker.pictures("predictions", 7, images, masks, masks)
    assert path == tmp_path / "samples" / "predictions.png"
    picture = cv2.imread(str(path))
    (found,) = [(e.step, v) for e in events(tmp_path) for v in e.summary.value if v.WhichOneof("value") == "image"]
    assert found[0] == 7
    assert found[1].tag == "samples/predictions"
    shown = cv2.imdecode(np.frombuffer(found[1].image.encoded_image_string, np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(shown, picture)
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["predictions.png"]


# disks that are full


def no_room(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def full_device(_):
    return open("/dev/full", "wb")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("opened", [no_room, full_device])
def test_events_that_cannot_be_written_are_told_once_and_left_out(tmp_path, undrawn, monkeypatch, capsys, opened):
    from tensorboardX import record_writer

    monkeypatch.setattr(record_writer, "open_file", opened)
    with Tracker(tmp_path) as tracker:
        for number in range(3):
            tracker.steps([step(i) for i in range(20)])  # more than tensorboardX's queue holds
            tracker.epoch(epoch(number))
    assert log(tmp_path) == [epoch(number) for number in range(3)]
    said = capsys.readouterr().out
    assert said.count("TensorBoard events cannot be written (No space left on device); the run goes on") == 1


def test_events_are_on_the_disk_half_a_minute_later(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(tensorboard.time, "monotonic", lambda: now[0])
    events_ = tensorboard.Events(tmp_path / "tensorboard")
    events_.scalars([(1, {"a": 1.0})])
    assert [value.tag for event in events(tmp_path) for value in event.summary.value] == []
    now[0] = 31.0
    events_.scalars([(1, {"b": 1.0})])
    assert [value.tag for event in events(tmp_path) for value in event.summary.value] == ["a", "b"]
    events_.close()


def test_pictures_that_cannot_be_written_are_told_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tracking, "write_png", no_room)
    monkeypatch.setattr(tracking, "draw_curves", lambda *_: np.zeros((9, 9, 3), np.uint8))
    with Tracker(tmp_path) as tracker:
        for number in range(2):
            tracker._next_drawing = 0.0
            tracker.epoch(epoch(number))
    said = capsys.readouterr().out
    assert said.count("curves.png: cannot be written (No space left on device); the run goes on") == 1


def test_log_that_cannot_be_written_is_an_error_with_its_name(tmp_path, monkeypatch):
    with Tracker(tmp_path) as tracker:
        monkeypatch.setattr("pathlib.Path.open", no_room)
        with pytest.raises(OSError, match=r"log\.jsonl"):
            tracker.epoch(epoch(0))


def test_tracker_does_not_import_torch(tmp_path):
    program = "import sys; from jaxseg.runs.tracker import Tracker; Tracker(sys.argv[1]).close(); "
    program += "sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-W", "error", "-c", program, str(tmp_path)], check=True)
