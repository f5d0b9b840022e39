"""The command that draws a schedule: what it prints, writes and refuses."""

import os
import subprocess
import sys

import cv2
import numpy as np
import pytest

from jaxseg.base.config import Optimization
from jaxseg.learn import draw_schedule, schedules
from jaxseg.learn.draw_schedule import Curve, curve, figure, is_logarithmic, main, spread, title

EXTRA = {
    "piecewise_constant": ["--milestones", "2", "5", "--rates", "0.1", "0.2", "0.05"],
    "multi_factor": ["--milestones", "2", "5"],
}


def run(out, *argv) -> int:
    return main([*argv, "--out", str(out)])


def refused(capsys, out, *argv) -> str:
    assert run(out, *argv) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    return message


@pytest.mark.parametrize("name", schedules.SCHEDULES)
def test_every_schedule_is_drawn_and_listed(name, tmp_path, capsys):
    out = tmp_path / "drawn.png"
    argv = ["--schedule", name, "-e", "8", "-l", "0.2", "--steps-per-epoch", "5", *EXTRA.get(name, [])]
    assert run(out, *argv) == 0
    picture = cv2.imread(str(out))
    assert picture.std() > 10
    assert picture.shape[1] >= 900
    printed = capsys.readouterr().out
    assert f"--schedule {name}" in printed
    assert str(out) in printed
    schedule = schedules.schedule_from(options(name), 5)
    lines = [line.replace("│", " ").split() for line in printed.splitlines() if line.startswith("│")]
    assert [line[0] for line in lines] == ["0", "1", "2", "3", "4", "5", "6", "7", "7.8"]
    for epoch, step, rate, *_ in lines:
        assert int(step) == pytest.approx(5 * float(epoch))
        assert float(rate) == pytest.approx(float(schedule(int(step))), rel=1e-3)


def test_an_epoch_has_100_steps_unless_told_otherwise(tmp_path, capsys):
    assert run(tmp_path / "drawn.png", "-e", "2") == 0
    assert "--epochs 2 --steps-per-epoch 100" in " ".join(capsys.readouterr().out.split())


def options(name) -> Optimization:
    given = {"piecewise_constant": {"milestones": (2.0, 5.0), "rates": (0.1, 0.2, 0.05)}}
    given["multi_factor"] = {"milestones": (2.0, 5.0)}
    return Optimization(schedule=name, epochs=8, learning_rate=0.2, **given.get(name, {}))


def test_existing_picture_is_replaced_only_with_overwrite(tmp_path, capsys):
    out = tmp_path / "mine.png"
    out.write_bytes(b"mine")
    assert f"--out {out}: exists; give --overwrite to replace it" in refused(capsys, out)
    assert out.read_bytes() == b"mine"
    assert run(out, "--overwrite") == 0
    assert cv2.imread(str(out)) is not None


@pytest.mark.parametrize(("suffix", "begins"), [(".svg", b"<?xml"), (".pdf", b"%PDF")])
def test_picture_may_be_svg_or_pdf(suffix, begins, tmp_path):
    out = tmp_path / f"drawn{suffix}"
    assert run(out, "--steps-per-epoch", "2") == 0
    assert out.read_bytes().startswith(begins)


def test_all_wrong_options_are_reported_at_once(tmp_path, capsys):
    message = refused(capsys, tmp_path / "none" / "a.gif", "--epochs", "0", "--steps-per-epoch", "0")
    for part in (
        "--epochs is 0",
        "--steps-per-epoch is 0; expected 1 or more",
        ".png, .svg, .pdf",
        "there is no folder",
    ):
        assert part in message
    assert "not a file" in refused(capsys, tmp_path, "--overwrite")


def test_schedule_error_is_reported_with_exit_status_2(tmp_path, capsys):
    out = tmp_path / "a.png"
    message = refused(capsys, out, "--schedule", "one_cycle", "--epochs", "1", "--steps-per-epoch", "2")
    assert "--schedule is one_cycle, with 2 steps (2 an epoch) after the warm-up: `total` is 2" in message
    assert not out.exists()


def test_python_m_jaxseg_schedules_runs_the_command():
    """And `-h` answers without matplotlib."""
    code = "import sys, runpy; sys.argv = ['x', '-h']; runpy.run_module('jaxseg.schedules', run_name='__main__')"
    code = f"try:\n    {code}\nexcept SystemExit as end:\n    print(end.code, 'matplotlib' in sys.modules)"
    environment = os.environ | {"PYTHONIOENCODING": "utf-8"}
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", env=environment)
    assert "--steps-per-epoch" in shown.stdout
    assert shown.stdout.splitlines()[-1] == "0 False"


def test_title_has_only_the_flags_that_shape_the_curve():
    o = Optimization(schedule="multi_factor", milestones=(2.0, 3.5), gamma=0.5, warmup_epochs=1.0, power=3.0, steps=70)
    expected = "--schedule multi_factor --learning-rate 0.002 --gamma 0.5 --milestones 2 3.5 --warmup-epochs 1"
    assert title(o, 10) == f"{expected} --begin-lr 1e-09 --schedule-per step --steps 70 --steps-per-epoch 10"
    assert set(draw_schedule.SHOWN) == set(schedules.SCHEDULES)


def test_axis_is_logarithmic_if_much_of_the_run_is_far_below_the_peak():
    def logarithmic(name, **more):
        o = Optimization(schedule=name, **more)
        return is_logarithmic(curve(o, schedules.schedule_from(o, 10), 10, spread(400, 400)))

    assert logarithmic("article")
    assert logarithmic("factor")
    assert logarithmic("plateau")
    assert not logarithmic("warmup_cosine")
    assert not logarithmic("exponential")
    assert not logarithmic("constant", learning_rate=0.0)
    assert not is_logarithmic(Curve(np.arange(4), np.zeros(4)))


def test_each_step_holds_its_rate_until_the_next():
    o = Optimization(schedule="linear", epochs=2, learning_rate=1.0)
    (line,) = figure(curve(o, schedules.schedule_from(o, 2), 2, np.arange(4)), o, 2).axes[0].lines
    np.testing.assert_allclose(line.get_xdata(), [0, 0.5, 1, 1.5, 2])
    np.testing.assert_allclose(line.get_ydata(), [1, 0.75, 0.5, 0.25, 0.25], rtol=1e-6)
    assert line.get_drawstyle() == "steps-post"


def test_plateau_is_drawn_with_its_fastest_fall():
    o = Optimization(schedule="plateau", epochs=8, learning_rate=1.0, patience=1, gamma=0.5)
    found = curve(o, schedules.schedule_from(o, 2), 2, np.arange(16))
    np.testing.assert_array_equal(found.rates, 1)
    # the first epoch is the best, the second is borne, after the third it falls
    np.testing.assert_allclose(found.lowest, np.repeat([1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.125], 2))


def test_curve_of_a_long_run_is_thinned():
    assert spread(10**7, 100).size == 100
    assert spread(10**7, 100)[[0, -1]].tolist() == [0, 10**7 - 1]
    assert spread(3, 9).tolist() == [0, 1, 2]
    assert spread(1, 9).tolist() == [0]
