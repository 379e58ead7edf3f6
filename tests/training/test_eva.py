"""`--model.lora.init eva` as a user types it: one pass over data, at the start of a new run."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from lora_pl import LoRAClassifier, Run, SentenceDataModule
from lora_pl.cli.main import main
from lora_pl.storage.checkpoint import read_checkpoint
from tests.cli.mistakes import fails
from tests.training.test_resume import epochs

LAST = Path("checkpoints/mine/last.ckpt")
LORA = {"init": "eva", "eva_rho": 2.0, "r": 5, "target_modules": "all-linear"}


@pytest.fixture
def source(glue_folder) -> Path:
    """A copy that the test may remove."""
    return Path(shutil.copytree(glue_folder, "SST-2")).absolute()


@pytest.fixture
def fit(tiny_encoder, source):
    flags = [f"--model.lora.{name}={value}" for name, value in LORA.items()]
    return ["fit", "--model.encoder", tiny_encoder(), "--data.source", str(source), "--data.batch_size", "8", *flags,
            "--model.learning_rate", "1e-2", "--trainer.precision", "32-true", "--run_name", "mine"]  # fmt: skip


def same(one: str | Path, other: str | Path) -> bool:
    states = [read_checkpoint(path)["state_dict"] for path in (one, other)]
    return states[0].keys() == states[1].keys() and all(
        torch.equal(states[0][key], states[1][key]) for key in states[0]
    )


def test_only_a_new_run_needs_the_data(fit, source, capsys):
    """What it found is in the checkpoint, what was typed in the run's configuration."""
    assert main([*fit, *epochs(1)]) == 0
    assert capsys.readouterr().err.count("eva: ") == 1
    stored = read_checkpoint(LAST)["hyper_parameters"]["lora"]
    assert stored["rank_pattern"]
    assert (stored["init"], stored["eva_rho"]) == ("eva", 2.0)
    config = LAST.with_name("config.yaml")
    assert yaml.safe_load(config.read_text())["model"]["lora"]["rank_pattern"] == {}
    assert main(["fit", "--run_name", "mine", "--resume", *epochs(2)]) == 0
    assert main([*fit, *epochs(3), "--resume"]) == 0
    assert main([*fit, "--run_name", "other", *epochs(4), "--ckpt_path", str(LAST)]) == 0
    for own in ([], ["--config", str(config)]):
        assert main(["validate", "--ckpt_path", str(LAST), *own]) == 0
    (source / "train.tsv").unlink()
    Path("x.txt").write_text("the film is good\n")
    for own in ([], ["--config", str(config)]):
        assert main(["predict", "--ckpt_path", str(LAST), *own, "--input", "x.txt"]) == 0
    assert main(["predict", "--adapter", f"a={LAST}", "--input", "x.txt"]) == 0
    assert main(["export", "--ckpt_path", str(LAST), "--format", "adapter", "--output", "folder"]) == 0
    assert main(["import", "folder", "--output", "imported.ckpt"]) == 0
    assert "eva: " not in capsys.readouterr().err
    assert same(LAST, "imported.ckpt")
    assert read_checkpoint("imported.ckpt")["hyper_parameters"]["lora"] == stored


def test_resumed_it_ends_as_if_it_had_never_been_stopped(fit):
    """In bf16, too, where DoRA's norms are those of the weights before the cast; LoRA in fp32 below."""
    given = [*fit, "--model.lora.variant=dora", "--trainer.precision", "bf16-mixed", "--model.lora.lora_dropout=0.1"]
    assert main([*given, *epochs(2)]) == 0
    assert main([*given, "--run_name", "halves", *epochs(1)]) == 0
    assert main([*given, "--run_name", "halves", "--resume", *epochs(2)]) == 0
    assert same("checkpoints/mine/last.ckpt", "checkpoints/halves/last.ckpt")


def test_a_notebook_gives_what_the_command_gives(fit, source, tiny_encoder):
    assert main([*fit, *epochs(2)]) == 0
    run = Run("notebook", resume=True)
    for done in (1, 2):
        data = SentenceDataModule(source=str(source), encoder=tiny_encoder(), batch_size=8)
        model = LoRAClassifier.for_data(data, learning_rate=1e-2, lora=LORA)
        run.fit(model, data, precision="32-true", max_epochs=done)
    assert same(LAST, run.last_checkpoint)


def test_patterns_that_name_roles_stay_as_they_were_given(fit):
    """The command's saved configuration and the checkpoint agree, so the run is resumed."""
    given = [*fit, "--model.lora.rank_pattern={mlp_up: 3}", "--model.lora.alpha_pattern={value: 2.0}"]
    assert main([*given, *epochs(1)]) == 0
    stored = read_checkpoint(LAST)["hyper_parameters"]["lora"]
    assert (stored["rank_pattern"], stored["alpha_pattern"]) == ({"mlp_up": 3}, {"value": 2.0})
    assert main([*given, *epochs(2), "--resume"]) == 0


def test_too_few_tokens_are_one_line(fit, capsys):
    few = ["--model.lora.r", "16", "--model.lora.eva_rho", "1", "--model.lora.eva_batches", "1"]
    assert fails(capsys, *fit, *few, "--data.batch_size", "1") == "model.lora.eva_batches"
    assert fails(capsys, *fit, "--model.lora.eva_rho", "0.5") == "eva_rho"


def test_a_start_has_its_ranks(fit, capsys):
    assert main([*fit, *epochs(1)]) == 0
    capsys.readouterr()
    assert main([*fit, "--run_name", "next", *epochs(1), "--model.start_from", str(LAST)]) == 0
    assert "eva: " not in capsys.readouterr().err
    one, two = (
        read_checkpoint(f"checkpoints/{name}/last.ckpt")["hyper_parameters"]["lora"] for name in ("mine", "next")
    )
    assert one == two


def test_trials_with_eva_train_alone(fit, source, tiny_encoder, monkeypatch):
    monkeypatch.setattr("lora_pl.cli.ablate.write_report", lambda folder: folder)
    given = ["ablate", *fit[1:-2], "--model.lora.eva_rho=1", *epochs(1), "--seeds", "2", "--ranks", "2", "--pack", "2"]
    assert main([*given, "--output", "study"]) == 0
    assert main([*fit, "--model.lora.eva_rho=1", "--model.lora.r=2", "--seed_everything", "1", *epochs(1)]) == 0
    (own,) = Path("study/trials").glob("*-s1/last.ckpt")
    assert same(own, LAST)
    assert json.loads(own.with_name("metrics.json").read_text())["config"]["model.lora.r"] == 2
