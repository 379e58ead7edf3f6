"""What version 0.1.0 wrote still loads: checkpoints, adapter folders and configurations."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from lora_pl import LoRAClassifier
from lora_pl.cli.main import main
from lora_pl.errors import UserError
from lora_pl.formats.importing import ImportOptions, load_external
from lora_pl.formats.native import read_adapter_folder
from lora_pl.training.resume.exact_resume import RESUME_KEY
from tests.support import TINY_TERMS, assert_equal_to_rounding

BEFORE = Path(__file__).resolve().parents[1] / "fixtures" / "before"
ENCODER = str(BEFORE / "encoder")
SAID = json.loads((BEFORE / "logits.json").read_text(encoding="utf-8"))
"""Logits on three texts, by that version."""


def require_same(model: LoRAClassifier, what: str) -> None:
    assert_equal_to_rounding(model.logits(SAID["texts"]), torch.tensor(SAID[what]), TINY_TERMS)


@pytest.mark.parametrize("method", ["lora", "head", "full"])
def test_checkpoints(method):
    path = BEFORE / method / "last.ckpt"
    require_same(LoRAClassifier.load_from_checkpoint(path, encoder=ENCODER), method)


def test_adapter_folders():
    require_same(read_adapter_folder(BEFORE / "adapter", encoder=ENCODER), "adapter")
    require_same(load_external(BEFORE / "peft", ImportOptions(encoder=ENCODER)), "adapter")


@pytest.mark.parametrize("method", ["lora", "head", "full"])
def test_the_command_reads_checkpoints(method, capsys):
    """The adapters have a rank pattern, whose keys are dotted as options are."""
    Path("x.txt").write_text("\n".join(SAID["texts"]))
    arguments = ["--ckpt_path", str(BEFORE / method / "last.ckpt"), "--model.encoder", ENCODER, "--input", "x.txt"]
    assert main(["predict", *arguments, "--trainer.precision", "32-true"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found = torch.tensor([list(row["probabilities"].values()) for row in rows])
    assert_equal_to_rounding(found, torch.tensor(SAID[method]).softmax(-1), TINY_TERMS)


def test_an_adapter_folder_says_alpha_itself():
    with pytest.raises(UserError) as error:
        load_external(BEFORE / "adapter", ImportOptions(encoder=ENCODER, lora_alpha=8))
    assert error.value.key == "import.alpha"


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_run_is_resumed_with_its_configuration(method, glue_folder, capsys):
    folder = Path("checkpoints") / method
    shutil.copytree(BEFORE / method, folder)
    flags = ["--model.encoder", ENCODER, "--data.source", str(glue_folder), "--force", "--trainer.max_epochs", "5"]
    assert main(["fit", "--run_name", method, "--resume", *flags]) == 0
    checkpoint = torch.load(folder / "last.ckpt", weights_only=True)
    assert checkpoint["epoch"] == 4
    assert checkpoint["global_step"] == 30
    assert checkpoint["hyper_parameters"]["learning_rate"] == {"lora": 3e-2, "full": 3e-3}[method]
    resumed = checkpoint[RESUME_KEY]
    assert (resumed["order"], resumed["fills"]) == ("summed", False), "the sentences and the dropout that it began with"
