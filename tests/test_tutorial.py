"""The tutorial: the notebook is made from the script, clean, and runs."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"
SOURCE = (SCRIPTS / "tutorial.py").read_text(encoding="utf-8")
TEXT = (SCRIPTS / "tutorial.ipynb").read_text(encoding="utf-8")
CELLS = json.loads(TEXT)["cells"]


def cells_of(script: str) -> list[tuple[str, str]]:
    """Type and source of the cells of a script in jupytext's percent format."""
    found = []
    for part in re.split(r"^# %%", script, flags=re.MULTILINE)[1:]:
        mark, _, text = part.partition("\n")
        text = text.strip("\n")
        if "[markdown]" in mark:
            text = re.sub(r"^# ?", "", text, flags=re.MULTILINE)
        found.append(("markdown" if "[markdown]" in mark else "code", text))
    return found


def test_notebook_has_the_cells_of_the_script():
    assert [(cell["cell_type"], "".join(cell["source"])) for cell in CELLS] == cells_of(SOURCE)


def test_notebook_is_executed_in_order_without_warnings_or_errors():
    code = [cell for cell in CELLS if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert {output.get("name", output["output_type"]) for output in outputs} == {"stdout", "display_data"}
    assert all(cell["metadata"] == {} for cell in CELLS)


def test_notebook_is_small_and_names_no_machine():
    assert len(TEXT) < 1.5e6
    texts = [text for cell in CELLS for output in cell.get("outputs", []) for text in output.get("text", [])]
    assert not [text for text in texts if re.search(r"(?<![\w.])/\w+/\w+/|[A-Z]:\\\\|\bwarning:", text)]


def test_every_paragraph_is_in_both_languages():
    for cell in CELLS:
        if cell["cell_type"] == "markdown":
            text = "".join(cell["source"])
            assert re.search("[\u4e00-\u9fff]", text), text
            assert re.search("[a-z]{3}", text), text


@pytest.mark.full
def test_notebook_runs(tmp_path):
    if importlib.util.find_spec("nbmake") is None:
        pytest.skip("nbmake is not installed: pip install -e '.[tutorial]'")
    options = ["-o", "addopts=", "-o", "filterwarnings=", "-p", "no:cacheprovider", "--nbmake", "--nbmake-timeout=900"]
    command = [sys.executable, "-m", "pytest", "-q", *options, str(SCRIPTS / "tutorial.ipynb")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout[-5000:]
