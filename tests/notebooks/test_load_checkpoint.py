"""The notebook, cell by cell, on a checkpoint of these tests."""

import shutil
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "load_checkpoint.ipynb"


def test_every_cell_runs_twice(checkpoint, tmp_path, monkeypatch):
    shutil.copy(checkpoint, tmp_path / "best.ckpt")
    monkeypatch.setenv("LORA_PL_CHECKPOINT", str(tmp_path / "best.ckpt"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    # all cells, then all cells again in the same process
    twice = [cell for _ in range(2) for cell in notebook.cells if cell.cell_type == "code"]
    notebook.cells = [nbformat.from_dict({**cell, "id": f"cell{index}"}) for index, cell in enumerate(twice)]
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.outputs]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    printed = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    assert len(pictures) == 2
    assert printed.count("0 of 48 predictions flipped") == 2
    assert {path.name for path in tmp_path.iterdir()} == {"best.ckpt", "from_notebook"}


def test_without_a_checkpoint_it_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.delenv("LORA_PL_CHECKPOINT", raising=False)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    loads = next(cell.source for cell in notebook.cells if "load_from_checkpoint" in cell.source)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="train one first: lora_pl fit --config configs/demo.yaml"):
        exec(loads, {})
