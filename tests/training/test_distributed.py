"""Two processes give the numbers of one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lora_pl.storage.checkpoint import read_checkpoint
from tests.support import TINY_TERMS, rounding, run_cli, run_script

SCRIPT = """
import json, sys
from lightning.pytorch import Trainer, seed_everything
from lora_pl import SentenceDataModule, LoRAClassifier
seed_everything(0)
encoder, source, devices = sys.argv[1], sys.argv[2], int(sys.argv[3])
trainer = Trainer(accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", logger=False,
                  enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, max_epochs=1)
data = SentenceDataModule(source=source, encoder=encoder, eval_batch_tokens=24, batch_size=8 // devices)
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
    assert two["val/loss"] == pytest.approx(one["val/loss"], abs=rounding(TINY_TERMS))
    assert one["steps"] == two["steps"] == 6


FITS = """
import os, sys
import torch
from lightning.pytorch import seed_everything
import lora_pl.storage.checkpoint
from lora_pl import LoRAClassifier, Run, SentenceDataModule

torch.set_num_threads(1)
encoder, source, devices = sys.argv[1], sys.argv[2], int(sys.argv[3])
save, saved = lora_pl.storage.checkpoint._save, []
lora_pl.storage.checkpoint._save = lambda content, path: (saved.append(path), save(content, path))


def fit(name, accumulate=1, resume=None, dropout=0.0, steps=50):
    seed_everything(0)
    data = SentenceDataModule(source=source, encoder=encoder, batch_size=8 // accumulate // devices)
    model = LoRAClassifier(encoder=encoder, learning_rate=1e-3, dropout=dropout)
    Run(name, save_every_steps=4, save_every_minutes=None, checkpoints=".", ckpt_path=resume).fit(
        model, data, accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", logger=False,
        precision="32-true", max_epochs=100, max_steps=steps, accumulate_grad_batches=accumulate,
    )


fit("plain")
fit("accumulated", accumulate=2)
fit("whole", dropout=0.1, steps=20)
fit("part", dropout=0.1, steps=10)
fit("rest", dropout=0.1, steps=20, resume="part/last.ckpt")
print(f"RESULT {os.environ.get('RANK', '0')} {len(saved)}\\n", end="", flush=True)
"""


def torchrun(script: str, arguments: list[str], cwd: Path, processes: int) -> str:
    path = cwd / "script.py"
    path.write_text(script, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    launcher = command if processes > 1 else [sys.executable]
    done = subprocess.run([*launcher, str(path), *arguments], cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def fits(tiny_encoder, glue_folder, tmp_path_factory) -> dict[int, tuple[Path, str]]:
    """The same fits by one process and by two: folder and output."""
    made = {}
    for processes in (1, 2):
        folder = tmp_path_factory.mktemp(f"by{processes}")
        arguments = [tiny_encoder(), str(glue_folder), str(processes)]
        made[processes] = folder, torchrun(FITS, arguments, folder, processes)
    return made


@pytest.mark.parametrize("name", ["plain", "accumulated"])
def test_two_processes_train_what_one_does_with_the_same_global_batch(name, fits):
    """Packed batches, 50 optimizer steps, no dropout (its masks are drawn per process)."""
    one, two = (read_checkpoint(fits[n][0] / name / "last.ckpt") for n in (1, 2))
    assert one["global_step"] == two["global_step"] == 50
    for key, tensor in one["state_dict"].items():
        # a step of AdamW moves a weight by its learning rate at most
        close = rounding(2 * TINY_TERMS, scale=50 * 1e-3)
        torch.testing.assert_close(two["state_dict"][key], tensor, rtol=0, atol=close)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_resumed_run_of_several_processes_is_bit_identical(processes, fits):
    whole, rest = (read_checkpoint(fits[processes][0] / name / "last.ckpt") for name in ("whole", "rest"))
    assert rest["global_step"] == whole["global_step"] == 20
    assert all(torch.equal(rest["state_dict"][key], tensor) for key, tensor in whole["state_dict"].items())
    assert len(rest["lora_pl_resume"]["processes"]) == processes


def test_one_process_writes(fits):
    folder, said = fits[2]
    saved = {rank: int(count) for _, rank, count in (line.split() for line in said.splitlines() if "RESULT" in line)}
    assert saved["0"] > 10
    assert saved["1"] == 0
    assert {path.name for path in (folder / "whole").iterdir()} == {"best.ckpt", "last.ckpt", "config.yaml"}


def test_the_command_line_on_two_devices(tiny_encoder, glue_folder, tmp_path):
    """fit and predict: no text twice, none left out, in the order of the input."""
    two = ["--trainer.accelerator", "cpu", "--trainer.strategy", "ddp", "--trainer.devices", "2"]
    arguments = ["fit", "--model.encoder", tiny_encoder(), "--data.source", str(glue_folder), "--run_name", "two"]
    run_cli([*arguments, "--data.batch_size", "4", "--trainer.max_epochs", "2", *two], tmp_path, check=True)
    checkpoint = tmp_path / "checkpoints" / "two" / "last.ckpt"
    assert read_checkpoint(checkpoint)["global_step"] == 12
    texts = [f"the film {number} is good" for number in range(70_001)]
    (tmp_path / "x.txt").write_text("\n".join(texts) + "\n")
    predict = ["predict", "--ckpt_path", str(checkpoint), "--input", "x.txt", "--output", "y.jsonl"]
    run_cli([*predict, *two], tmp_path, check=True)
    with (tmp_path / "y.jsonl").open() as rows:
        assert [json.loads(row)["text"] for row in rows] == texts
    assert not (tmp_path / "y.jsonl.parts").exists()


@pytest.mark.faults
def test_872_sentences_over_three_processes(tiny_encoder, glue_folder, tmp_path):
    """The size of SST-2's validation split: every process count measures the same."""
    lines = (glue_folder / "dev.tsv").read_text().splitlines()
    rows = [lines[1 + number % (len(lines) - 1)] for number in range(872)]
    (tmp_path / "train.tsv").write_text((glue_folder / "train.tsv").read_text())
    (tmp_path / "dev.tsv").write_text("\n".join([lines[0], *rows]) + "\n")
    measured = []
    for processes in (1, 3):
        out = torchrun(SCRIPT, [tiny_encoder(), str(tmp_path), str(processes)], tmp_path, processes)
        (line,) = [line for line in out.splitlines() if line.startswith("RESULT")]
        measured.append(json.loads(line.removeprefix("RESULT")))
    assert measured[0]["val/accuracy"] == pytest.approx(measured[1]["val/accuracy"], abs=1e-7)
    assert measured[0]["val/accuracy"] * 872 == pytest.approx(round(measured[0]["val/accuracy"] * 872), abs=1e-3)
