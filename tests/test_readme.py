"""The README's Python runs as it stands."""

import re
from pathlib import Path

import numpy as np
import pytest

from jaxseg.base import extra
from jaxseg.export.__main__ import main

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


def test_train_load_predict_and_export_run(ran, tmp_path):
    names = ran(BLOCKS[1])
    assert (names["run"] / "checkpoints" / "best").is_dir()
    assert names["classes"].shape == (32, 32)
    assert names["classes"].dtype == np.uint8
    np.testing.assert_array_equal(names["probabilities"].argmax(-1), names["classes"])
    if extra.missing("export"):
        return
    assert main([str(names["run"]), "--to", "onnx", "--probabilities", "-o", str(tmp_path / "OUT")]) == 0
    np.testing.assert_array_equal(ran(BLOCKS[0])["classes"], names["classes"])
    tiled = ran(BLOCKS[0].replace("512, 128", "16, 4"))
    assert (tiled["classes"] == names["classes"]).mean() > 0.7  # of a network that sees further than a tile
    assert tiled["total"].min() > 0
    assert (tmp_path / "classes.png").is_file()


def test_the_bare_training_step_learns(ran):
    code = BLOCKS[2].replace("range(2)", "range(6)").replace("print(epoch, ", "seen.append(")
    assert code.count("seen.append(") == 1
    seen = ran("seen = []\n" + code)["seen"]
    assert len(seen) == 6
    assert seen[-1] < seen[0]


def test_there_is_no_other_python_in_the_readme():
    assert len(BLOCKS) == 3
