"""Two processes give the numbers of one."""

import json

import pytest
import torch

from tests.conftest import run_script

SCRIPT = """
import json, sys
from lightning.pytorch import Trainer, seed_everything
from lora_pl import GlueDataModule, LoRAClassifier
seed_everything(0)
encoder, source, devices = sys.argv[1], sys.argv[2], int(sys.argv[3])
trainer = Trainer(accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", logger=False,
                  enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, max_epochs=1)
data = GlueDataModule(source=source, encoder=encoder, eval_batch_tokens=24, batch_size=8 // devices)
model = LoRAClassifier(encoder=encoder)
measured = trainer.validate(model, data, verbose=False)[0]
trainer.fit(model, data)
if trainer.is_global_zero:
    print("RESULT", json.dumps({**measured, "steps": trainer.global_step}))
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch has no distributed package")
def test_metrics_are_exact_over_a_split_that_does_not_divide(tiny_encoder, glue_folder, tmp_path):
    """47 sentences over two processes: a sampler that repeats one would move the accuracy."""
    lines = (glue_folder / "dev.tsv").read_text().splitlines()
    (tmp_path / "train.tsv").write_text((glue_folder / "train.tsv").read_text())
    (tmp_path / "dev.tsv").write_text("\n".join(lines[:48]) + "\n")
    results = []
    for devices in (1, 2):
        done = run_script(SCRIPT, [tiny_encoder(), str(tmp_path), str(devices)], tmp_path)
        assert done.returncode == 0, done.stderr
        (line,) = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
        results.append(json.loads(line.removeprefix("RESULT")))
    one, two = results
    assert two["val/accuracy"] == pytest.approx(one["val/accuracy"], abs=1e-7)
    assert two["val/loss"] == pytest.approx(one["val/loss"], rel=1e-5)
    assert one["steps"] == two["steps"] == 6
