"""The notebook runs from the first cell to the last and shows the expected outputs."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY, read_events

NOTEBOOK = REPOSITORY / "notebooks/colab_sanity_test.ipynb"


def test_the_notebook_is_stored_without_outputs() -> None:
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        assert cell.get("outputs", []) == []
        assert cell.get("execution_count") is None


def shown(notebook: Any, kind: str) -> list[str]:
    """Return all outputs of a MIME type such as "image/png", or "text" for printed output."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    if kind == "text":
        return [output["text"] for output in outputs if output.output_type == "stream"]
    return [output["data"][kind] for output in outputs if kind in output.get("data", {})]


@pytest.mark.nightly
def test_the_notebook_runs(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.setenv("REBAR_NOTEBOOK_TREE", str(images))
    monkeypatch.setenv("REBAR_NOTEBOOK_DIR", str(tmp_path / "work"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(NOTEBOOK.parent)}})
    client.execute()

    printed = "".join(shown(notebook, "text"))
    assert "train: 320 files in 10 classes" in printed
    assert "a batch: torch.uint8 (24, 64, 64, 3) and labels (24,)" in printed
    assert "peak host memory" in printed
    assert "9_ankle-boot" in printed  # accuracy per class
    assert len(shown(notebook, "image/png")) == 3  # the batch, one image in five epochs, the confusion matrix
    (report,) = (page for page in shown(notebook, "text/html") if "<iframe" in page)
    assert "&lt;!doctype html&gt;" in report
    assert len(read_events(tmp_path / "work/run", "epoch")) == 2
