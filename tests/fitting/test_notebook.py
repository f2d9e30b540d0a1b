"""Test docs/notebook.ipynb: every cell runs, without an error and without a warning of a library."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs" / "notebook.ipynb"


def texts_of(notebook: object) -> str:
    """Return what the cells print and return, as text."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]  # type: ignore[attr-defined]
    return "\n".join(output.get("text", "") or output.get("data", {}).get("text/plain", "") for output in outputs)


@pytest.mark.slow
def test_the_notebook_trains_searches_and_exports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run it in a kernel of its own; an error in a cell fails it."""
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("SIMCSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("JAX_PLATFORMS", os.environ.get("JAX_PLATFORMS", "cpu"))
    notebook = nbformat.read(NOTEBOOK, 4)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=900, kernel_name="python3", resources=resources).execute()
    said = texts_of(notebook)
    assert "Warning" not in said
    assert "step 60 of 60" in said
    assert (tmp_path / "runs" / "notebook-model" / "model.safetensors").is_file()
    assert "music" in texts_of(type(notebook)(cells=notebook.cells[10:12]))
