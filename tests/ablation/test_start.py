"""Trials that start from a checkpoint, alone and jointly."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import seed_everything

from lora_pl import LoRAClassifier
from lora_pl.ablation.grid import Trial
from lora_pl.ablation.joint import JointTrials
from lora_pl.cli.main import main
from lora_pl.errors import UserError
from lora_pl.storage.checkpoint import read_checkpoint
from tests.cli.mistakes import fails

LORA = {"model.learning_rate": 1e-2, "model.lora.r": 4}
TRIALS = [Trial("LoRA", seed, options=LORA) for seed in (0, 1)]


@pytest.mark.parametrize("task", ["sst2", "cola"])
def test_joint_trials_start_as_they_start_alone(task, checkpoint, tiny_encoder):
    """Bit for bit; with the head of SST-2 for SST-2, and heads of their own for CoLA."""
    settings = {"encoder": tiny_encoder(), "task": task, "start_from": checkpoint}
    joint = JointTrials(LoRAClassifier(**settings), TRIALS)
    for index, trial in enumerate(TRIALS):
        seed_everything(trial.seed, verbose=False)
        alone = LoRAClassifier(**settings).state_dict()
        found = joint.trial_state(index)
        assert found.keys() == alone.keys()
        assert all(torch.equal(tensor, alone[name]) for name, tensor in found.items())
    assert joint.trial_checkpoint(0, {})["lora_pl_start"]["checkpoint"] == str(checkpoint)


def test_a_joint_trial_of_another_alpha_is_refused(checkpoint, tiny_encoder):
    other = Trial("LoRA", 0, options={**LORA, "model.lora.lora_alpha": 8.0})
    with pytest.raises(UserError, match=r"^model\.start_from: "):
        JointTrials(LoRAClassifier(encoder=tiny_encoder(), start_from=checkpoint), [TRIALS[0], other])


@pytest.fixture
def flags(tiny_encoder, glue_folder, checkpoint, monkeypatch):
    monkeypatch.setattr("lora_pl.cli.ablate.write_report", lambda folder: folder)
    given = ["ablate", "--model.encoder", tiny_encoder(), "--data.source", str(glue_folder), "--data.batch_size", "8"]
    return [*given, "--trainer.max_epochs", "1", "--seeds", "2", "--model.start_from", str(checkpoint)]


@pytest.mark.parametrize("pack", ["1", "2"])
def test_a_study(pack, flags, checkpoint):
    assert main([*flags, "--ranks", "4", "--pack", pack, "--output", "study"]) == 0
    found = [read_checkpoint(path) for path in Path("study/trials").glob("*/last.ckpt")]
    assert [each["lora_pl_start"]["checkpoint"] for each in found] == [str(checkpoint)] * 2
    assert [each["hyper_parameters"]["start_from"] for each in found] == [str(checkpoint)] * 2


@pytest.mark.parametrize("axis", [["--ranks", "4", "8"], ["--ranks", "4", "--head_rate", "0.1"],
                                  ["--ranks", "4", "--alpha_rules", "fixed", "rslora"],
                                  ["--ranks", "4", "--targets", "query"]])  # fmt: skip
def test_a_study_in_which_some_trial_cannot_start(axis, flags, capsys):
    assert fails(capsys, *flags, *axis, "--output", "study") == "model.start_from"
    assert not Path("study/trials").exists()
