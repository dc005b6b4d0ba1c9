"""The notebook plots the study that it is given."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.sample_pages import write_study

nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed (requirements-docs.txt)")
nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed (requirements-docs.txt)")
pytest.importorskip("ipykernel", reason="ipykernel is not installed (requirements-docs.txt)")
NOTEBOOK = Path(__file__).resolve().parents[2] / "examples" / "read_study.ipynb"
MAX_LINES = 40


@pytest.mark.slow
def test_the_notebook_draws_a_study(tmp_path, monkeypatch):
    monkeypatch.setenv("STUDY", str(write_study(tmp_path)))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert outputs[0].text.startswith("made_up: 4 trials, best trial_")
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert [output for output in outputs if output.output_type == "stream" and output.name == "stderr"] == []


def test_the_notebook_is_short_and_has_no_outputs():
    cells = [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    assert sum(len(cell.source.splitlines()) for cell in cells) <= MAX_LINES
    assert [cell for cell in cells if cell.outputs or cell.execution_count] == []
