"""The tutorials: their cells run, on a tiny encoder, and the outputs that they keep are a run's."""

from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("matplotlib")

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
LEFT = {
    "train": {"checkpoints/tutorial/best.ckpt", "logs/tutorial"},
    "compare_ranks": {"study/report.html", "study/figures/by-r.png"},
    "hand_over": {"merged/model.safetensors", "adapter/adapter.safetensors"},
}
"""What each one leaves in its folder."""


def code_of(name: str) -> list:
    return [cell for cell in nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4).cells if cell.cell_type == "code"]


@pytest.mark.parametrize("name", LEFT)
def test_every_cell_runs(name, tiny_encoder, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    tiny = {
        'source="sample"': f'source="sample", encoder="{tiny_encoder()}"',
        "--data.source sample": f"--data.source sample --model.encoder {tiny_encoder()}",
        "--ranks 1 4 16 --seeds 3": "--ranks 1 4 --seeds 2 --trainer.limit_train_batches 2",
        "train_sentences=1024": "train_sentences=256",
        "train_sentences=512": "train_sentences=64",
    }
    names: dict = {}
    for cell in code_of(name):
        for given, smaller in tiny.items():
            cell.source = cell.source.replace(given, smaller)
        exec(compile(cell.source, name, "exec"), names)
    assert not [path for path in LEFT[name] if not Path(path).exists()]


@pytest.mark.parametrize("path", [*NOTEBOOKS.glob("*.ipynb")], ids=lambda path: path.stem)
def test_the_stored_outputs_are_small_and_of_no_machine(path):
    """Those of one run from top to bottom, without the cells' metadata."""
    text, code = path.read_text(encoding="utf-8"), code_of(path.stem)
    assert len(text) < 150_000
    assert [cell.execution_count for cell in code] == [*range(1, len(code) + 1)]
    assert not any(cell.metadata or "stderr" in [output.get("name") for output in cell.outputs] for cell in code)
    assert "image/png" in text
    assert not [place for place in ("site-packages", "/tmp", "/work", "/root") if f"{place}/" in text]
