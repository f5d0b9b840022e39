"""The README's Python runs as it stands."""

import re
from pathlib import Path

import numpy as np
import pytest

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture
def ran(tiles_root, tmp_path, monkeypatch, undrawn):
    """Runs a block on made-up fields, and returns its variables."""
    monkeypatch.chdir(tmp_path)
    name = next((tiles_root / "val").glob("*.png")).stem

    def run(code: str) -> dict:
        names: dict = {}
        exec(code.replace("FOLDER", tiles_root.as_posix()).replace("NAME", name), names)
        return names

    return run


def test_train_load_and_predict_run(ran):
    names = ran(BLOCKS[0])
    assert (names["run"] / "checkpoints" / "best").is_dir()
    assert names["classes"].shape == (32, 32)
    assert names["classes"].dtype == np.uint8
    np.testing.assert_array_equal(names["probabilities"].argmax(-1), names["classes"])


def test_the_bare_training_step_learns(ran):
    code = BLOCKS[1].replace("range(2)", "range(6)").replace("print(epoch, ", "seen.append(")
    assert code.count("seen.append(") == 1
    seen = ran("seen = []\n" + code)["seen"]
    assert len(seen) == 6
    assert seen[-1] < seen[0]


def test_there_is_no_other_python_in_the_readme():
    assert len(BLOCKS) == 2
