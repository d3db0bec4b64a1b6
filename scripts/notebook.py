"""Run the example notebook and keep in it what it prints and draws, without what a machine says on the side.

python scripts/notebook.py
"""

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parents[1] / "examples" / "locate_and_edit.ipynb"


def main() -> None:
    """Run every cell; drop progress bars and warnings, which name a machine's folders."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    with TemporaryDirectory() as folder:
        os.environ["IPYTHONDIR"] = folder
        NotebookClient(notebook, timeout=None, record_timing=False, resources={"metadata": {"path": folder}}).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if shows(output)]
    nbformat.write(notebook, NOTEBOOK)


def shows(output: Any) -> bool:
    """Say whether an output is what the cell says, and no warning and no progress bar that is over."""
    over = output.get("output_type") == "display_data" and not any(output.get("data", {}).values())
    return output.get("name") != "stderr" and not over


if __name__ == "__main__":
    main()
