"""Progress bars, lines, tables and the greeting."""

import io
import math

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from jaxseg.base import terminal
from jaxseg.base.terminal import clock, epoch_line, result_table
from jaxseg.inference import progress as inference_progress
from jaxseg.learn import metrics
from jaxseg.training import progress as training_progress
from jaxseg.training.progress import Bar


@pytest.fixture
def screen(monkeypatch):
    """Replaces the console; `screen(True)` is a terminal. Returns the file that it writes to."""

    def make(is_terminal: bool) -> io.StringIO:
        file = io.StringIO()
        console = Console(file=file, force_terminal=is_terminal, width=80, highlight=False, soft_wrap=True, _environ={})
        for module in (terminal, training_progress, inference_progress):
            monkeypatch.setattr(module, "console", console)
        return file

    return make


class Clock:
    now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def time(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(training_progress, "time", clock)
    monkeypatch.setattr(inference_progress, "time", clock)
    return clock


def steps(first, count):
    return [{"step": first + i, "loss": 0.25, "learning_rate": 0.001, "waited": 0.125} for i in range(count)]


# progress


def test_speed_excludes_compilation_and_time_between_epochs(screen, time):
    screen(False)
    bar = Bar(total=20, done=0, batch_size=8, samples=80)
    bar.start_epoch()
    time.now += 60  # compiles
    bar.update(1, steps(0, 1))
    assert math.isnan(bar.images_per_second)
    time.now += 2
    bar.update(1, steps(1, 4))
    assert bar.images_per_second == 4 * 8 / 2
    time.now += 3
    bar.update(1, steps(5, 5))
    assert bar.images_per_second == 9 * 8 / 5
    time.now += 1000  # evaluates
    bar.start_epoch()
    time.now += 4
    bar.update(2, steps(10, 2))
    assert bar.images_per_second == 2 * 8 / 4


def test_speed_counts_images_and_not_padding(screen, time):
    screen(False)
    for size, samples, images in ((8, 12, 4 + 8 + 4), (48, 6, 3 * 6), (3, 3, 9)):
        bar = Bar(total=4, done=0, batch_size=size, samples=samples)
        bar.update(1, steps(0, 1))
        time.now += 2
        bar.update(1, steps(1, 3))
        assert bar.images_per_second == images / 2


def test_waited_share_is_per_epoch_and_excludes_compilation(screen, time):
    screen(False)
    bar = Bar(total=20, done=0, batch_size=8, samples=80)
    bar.start_epoch()
    time.now += 60
    bar.update(1, steps(0, 1))
    assert math.isnan(bar.waited)
    time.now += 2
    bar.update(1, steps(1, 4))
    assert bar.waited == 4 * 0.125 / 2
    bar.start_epoch()
    time.now += 4
    bar.update(2, steps(5, 8))
    assert bar.waited == 8 * 0.125 / 4


def test_bar_shows_loss_rate_speed_and_time_left(screen, time):
    written = screen(True)
    with Bar(total=20, done=0, batch_size=8, samples=80) as bar:
        bar.start_epoch()
        bar.update(1, steps(0, 1))
        time.now += 10
        bar.update(1, steps(1, 4))
        bar._progress.refresh()
    line = written.getvalue()
    for part in ("epoch 1", "5/20", "loss 0.2500", "lr 1.0e-03", "3.2 images/s", "0:38 left"):  # 15 steps of 2.5 s
        assert part in line


def test_resumed_bar_starts_at_the_finished_steps(screen, time):
    written = screen(True)
    with Bar(total=20, done=12, batch_size=8, samples=80) as bar:
        bar._progress.refresh()
        assert "12/20" in written.getvalue()
        bar.update(2, steps(12, 1))
        time.now += 1
        bar.update(2, steps(13, 1))
        bar._progress.refresh()
    assert "14/20" in written.getvalue()
    assert "0:06 left" in written.getvalue()


def test_bar_writes_nothing_off_a_terminal(screen, time):
    written = screen(False)
    with Bar(total=20, done=0, batch_size=8, samples=80) as bar:
        for i in range(20):
            time.now += 1
            bar.update(1, steps(i, 1))
    assert written.getvalue() == ""


@given(seconds=st.floats(0, 10**6))
def test_clock_shows_whole_seconds(seconds):
    parts = clock(seconds).split(":")
    assert sum(int(part) * 60**i for i, part in enumerate(reversed(parts))) == round(seconds)
    assert all(len(part) == 2 for part in parts[1:])
    assert len(parts) == (3 if round(seconds) >= 3600 else 2)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "0:00"), (59.6, "1:00"), (75.2, "1:15"), (3599.5, "1:00:00"), (36061.0, "10:01:01")]
)
def test_clock_formats_examples(seconds, text):
    assert clock(seconds) == text


# lines and tables


def record(**changes):
    scores = {"loss": 0.5, "accuracy": 0.75, "miou": 0.625}
    found = {
        "epoch": 4,
        "train": scores,
        "validation": {"loss": 0.7, "accuracy": 0.65, "miou": 0.45, "predicted": [0.75, 0.25]},
    }
    return found | {"learning_rate": 3e-4, "images_per_second": 12.34} | changes


def test_epoch_line_shows_training_and_validation():
    line = epoch_line(record(), epochs=40, best=False)
    for part in (
        "epoch  5/40",
        "loss 0.5000 val 0.7000",
        "accuracy 0.7500 val 0.6500",
        "mIoU val 0.4500 ",
        "predicted foreground  25%",
        "3.0e-04",
        "12.3 images/s",
    ):
        assert part in line
    assert "*" not in line


def test_best_epoch_has_a_star_and_lines_stay_aligned():
    best, other = (epoch_line(record(), epochs=5, best=best) for best in (True, False))
    assert "mIoU val 0.4500*" in best
    assert len(best) == len(other)
    assert len(epoch_line(record(epoch=9), 100, True)) == len(epoch_line(record(epoch=99), 100, True))


def test_result_table_has_a_row_per_class_and_the_means(screen):
    scores = metrics.summary(np.array([[6, 2], [1, 3]]))
    written = screen(False)
    terminal.console.print(result_table(scores, ["soil", "wheat"], "validation"))
    rows = {row[0]: row[1:] for line in written.getvalue().splitlines() if (row := line.replace("│", " ").split())}
    assert rows["soil"] == ["0.6667", "0.8000", "0.8571", "0.7500"]  # 6/9, 12/15, 6/7, 6/8
    assert rows["wheat"] == ["0.5000", "0.6667", "0.6000", "0.7500"]  # 3/6, 6/9, 3/5, 3/4
    assert rows["mean"] == ["0.5833", "0.7333", "0.7286", "0.7500"]
    assert "validation" in written.getvalue()


def test_class_without_a_score_has_a_dash(screen):
    written = screen(False)
    scores = metrics.summary(np.array([[4, 0], [0, 0]]))
    terminal.console.print(result_table(scores, ["soil", "wheat"], "validation"))
    (row,) = [line for line in written.getvalue().splitlines() if "wheat" in line]
    assert row.replace("│", " ").split() == ["wheat", "-", "-", "-", "-"]


# greeting


def test_greeting_names_jax_and_its_devices(screen, monkeypatch):
    written = screen(False)
    monkeypatch.setattr(terminal.shutil, "which", lambda name: None)
    terminal.greet()
    assert f"jax {jax.__version__} on" in written.getvalue()
    assert "pip install" not in written.getvalue()


def test_greeting_warns_about_an_unused_gpu(screen, monkeypatch):
    if jax.default_backend() != "cpu":
        pytest.skip("JAX sees an accelerator here")
    written = screen(False)
    monkeypatch.setattr(terminal.shutil, "which", lambda name: f"/usr/bin/{name}")
    terminal.greet()
    assert "NVIDIA GPU" in written.getvalue()
    assert "pip install 'jaxseg[cuda12]'" in written.getvalue()
