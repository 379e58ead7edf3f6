"""The page on Python: its blocks run, in its order, on a tiny encoder and two batches an epoch."""

import re
from pathlib import Path

import torch

PAGE = Path(__file__).resolve().parents[2] / "docs" / "python.md"


def test_the_page_runs_from_top_to_bottom(tiny_encoder, monkeypatch, capsys):
    for split in ("TRAIN", "VAL"):
        monkeypatch.setenv(f"PL_TRAINER_LIMIT_{split}_BATCHES", "2")
    names: dict = {}
    page = PAGE.read_text(encoding="utf-8").replace('source="sample"', f'source="sample", encoder="{tiny_encoder()}"')
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    for number, block in enumerate(blocks, 1):
        exec(compile(block, f"{PAGE.name}, block {number}", "exec"), names)
    printed = capsys.readouterr().out
    assert "checkpoints/first/best.ckpt" in printed
    assert re.search(r"^(negative|positive) \{'negative': ", printed, re.MULTILINE)
    assert "0 of 256 predictions flipped" in printed
    for written in ("checkpoints/own_file/best.ckpt", "metrics.json", "errors.csv", "imported.ckpt"):
        assert Path(written).is_file()
    assert names["logits"].shape == (1, 2)
    resumed = torch.load("own/last.ckpt", weights_only=True)
    assert (resumed["epoch"], resumed["global_step"]) == (1, 4)
