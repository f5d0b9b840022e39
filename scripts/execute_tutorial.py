"""Makes `tutorial.ipynb` from `tutorial.py`: `python scripts/execute_tutorial.py`, 3 minutes on 2 CPU cores.

Runs all cells and keeps what they print and draw, without times, names of machines and absolute paths, so that a
second run makes the same file but for rounding. Exits with 1, and writes nothing, if a cell fails or warns.
"""

import os
import sys
from pathlib import Path

try:
    import jupytext
    import nbformat
    from nbclient import NotebookClient
except ModuleNotFoundError as error:
    sys.exit(f"{error.name} is missing; pip install -e '.[tutorial]'")

SOURCE = Path(__file__).with_name("tutorial.py")


def main() -> None:
    notebook = jupytext.read(SOURCE)
    kernelspec = notebook.metadata["kernelspec"]
    root = str(SOURCE.resolve().parents[1])
    os.environ["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    options = {"timeout": 900, "record_timing": False, "coalesce_streams": True}
    NotebookClient(notebook, **options, resources={"metadata": {"path": root}}).execute()
    notebook.metadata = {"kernelspec": kernelspec, "language_info": {"name": "python"}}
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number:02}", {}
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr":
                sys.exit(f"cell {number} warns: {output.text}")
    nbformat.validate(notebook)
    nbformat.write(notebook, SOURCE.with_suffix(".ipynb"))


if __name__ == "__main__":
    main()
