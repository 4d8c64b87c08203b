"""The notebook, run as a reader runs it, for few steps."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "finetune.ipynb"
SHORTER = {
    "num_train_epochs: 1": "max_steps: 2",
    "generated_rows: 64": "generated_rows: 2",
    "max_new_tokens: 72": "max_new_tokens: 8",
    "max_new_tokens=72": "max_new_tokens=8",
    'write_demo_data("data")': 'write_demo_data("data", train=16, held_out=4)',
}


def test_the_notebook_has_no_outputs():
    cells = [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    assert cells and not any(cell.outputs or cell.execution_count for cell in cells)


@pytest.mark.slow
def test_the_notebook_runs_through(tmp_path: Path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    changed = set()
    for cell in notebook.cells:
        for words, fewer in SHORTER.items():
            if words in cell.source:
                cell.source, changed = cell.source.replace(words, fewer), changed | {words}
    assert changed == set(SHORTER)
    nbformat.write(notebook, tmp_path / "short.ipynb")
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    command = [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", "short.ipynb", "--output", "done"]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PATH": beside}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    cells = [cell for cell in nbformat.read(tmp_path / "done.ipynb", as_version=4).cells if cell.cell_type == "code"]
    outputs = ["".join(str(output) for output in cell.outputs) for cell in cells]
    assert (tmp_path / "runs" / "emails" / "report.html").is_file()
    assert sum("image/png" in output for output in outputs) == 2  # both figures are drawn
    for words in ("16 rows, such as", "step 2/2", "field_accuracy", "reference:", "<iframe srcdoc=", "tuned:"):
        assert any(words in output for output in outputs), words
