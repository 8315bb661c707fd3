"""The tutorial notebook runs from top to bottom on a fresh run, and is kept without outputs."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from llm4sbr_ray.artifacts import Run

pytestmark = pytest.mark.integration
NOTEBOOK = Path(__file__).parent.parent.parent / "notebooks" / "tutorial.ipynb"


def said(cell: nbformat.NotebookNode) -> str:
    return "".join(output.get("text", output.get("data", {}).get("text/plain", "")) for output in cell["outputs"])


def test_the_tutorial(pipeline_run: Run) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code)
    assert code[0]["source"].startswith('RUN = "../runs/demo"')
    code[0]["source"] = f"RUN = {pipeline_run.uri()!r}"
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    assert "export" in said(code[1])
    assert "the report says" in said(code[-3])
    assert "From the clicks alone" in said(code[-1])
