"""What goes wrong around a run: one or two lines that say what to do, and nothing lost."""

import os
from pathlib import Path

import pytest
import torch

from lora_pl.cli.main import main
from lora_pl.model.classifier import LoRAClassifier
from lora_pl.model.finite_steps import FiniteSteps


@pytest.fixture
def fit(tiny_encoder, glue_folder):
    return ["fit", "--model.encoder", tiny_encoder(), "--data.source", str(glue_folder), "--data.batch_size", "8",
            "--run_name", "run", "--trainer.max_epochs", "2", "--trainer.precision", "32-true"]  # fmt: skip


def fails(capsys, *arguments: str) -> str:
    assert main(list(arguments)) == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


def steps(name: str = "last.ckpt") -> int:
    return torch.load(f"checkpoints/run/{name}", weights_only=True)["global_step"]


@pytest.mark.parametrize("kind", [OSError(28, "No space left on device"), OSError(30, "Read-only file system")])
def test_a_disk_that_refuses_leaves_the_earlier_checkpoint(kind, fit, capsys, monkeypatch):
    replace = os.replace

    def refuse(source, target):
        if str(target).endswith("last.ckpt") and Path(target).exists():
            raise kind
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        assert "could not be written" in fails(capsys, *fit, "--save_every_steps", "2")
    assert steps() == 2
    assert main([*fit, "--save_every_steps", "2", "--resume"]) == 0
    assert steps() == 12


def test_a_folder_that_cannot_be_made(fit, capsys):
    Path("checkpoints").write_text("a file where the folder should be")
    assert "checkpoints" in fails(capsys, *fit)


def test_a_data_file_that_vanished(fit, capsys, tmp_path, glue_folder):
    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / name).write_text((glue_folder / name).read_text())
    here = [*fit, "--data.source", str(tmp_path)]
    assert main([*here, "--trainer.max_epochs", "1"]) == 0
    (tmp_path / "train.tsv").unlink()
    assert "train.tsv: no such file" in fails(capsys, *here, "--resume")
    (tmp_path / "train.tsv").write_text((glue_folder / "train.tsv").read_text())
    assert main([*here, "--resume"]) == 0
    assert steps() == 12


def test_a_gradient_that_is_no_number(fit, capsys, monkeypatch):
    """Stopped before a checkpoint has a spoilt weight; skipped where the model skips."""
    look = FiniteSteps.on_before_optimizer_step

    def spoil(self, trainer, pl_module, optimizer):
        if trainer.global_step == 9 or (pl_module.hparams["nonfinite_loss"] == "skip" and trainer.current_epoch == 1):
            pl_module.head.weight.grad[0, 0] = torch.nan
        look(self, trainer, pl_module, optimizer)

    monkeypatch.setattr(FiniteSteps, "on_before_optimizer_step", spoil)
    assert "trainer.gradients: the gradient of head.weight" in fails(capsys, *fit)
    assert steps() == 6
    skipping = [*fit[:-6], "--run_name", "skipped", *fit[-4:], "--model.nonfinite_loss", "skip"]
    assert main(skipping) == 0
    one, two = (torch.load(f"checkpoints/{run}/last.ckpt", weights_only=True) for run in ("run", "skipped"))
    assert all(torch.equal(one["state_dict"][name], value) for name, value in two["state_dict"].items())


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError(),
                                   RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")])  # fmt: skip
def test_a_batch_that_does_not_fit(error, fit, capsys, monkeypatch):
    step = LoRAClassifier.training_step

    def full(self, batch, batch_idx):
        if self.global_step == 8:
            raise error
        return step(self, batch, batch_idx)

    monkeypatch.setattr(LoRAClassifier, "training_step", full)
    said = fails(capsys, *fit)
    assert "out of memory at step 8; halve --data.batch_size" in said
    assert "--trainer.accumulate_grad_batches 2" in said


def test_validation_beyond_the_epoch(fit, capsys):
    assert "trainer.val_check_interval:" in fails(capsys, *fit, "--trainer.val_check_interval", "500")
