"""`--model.start_from` as a user types it: runs that start from a checkpoint, resumed and used without it."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from lora_pl import LoRAClassifier, Run, SentenceDataModule
from lora_pl.cli.main import main
from lora_pl.errors import UserError
from lora_pl.formats.importing import checkpoint_of
from lora_pl.storage.checkpoint import read_checkpoint
from tests.cli.mistakes import fails
from tests.training.test_resume import epochs

LAST = Path("checkpoints/mine/last.ckpt")


@pytest.fixture
def fit(tiny_encoder, glue_folder):
    return ["fit", "--model.encoder", tiny_encoder(), "--data.source", str(glue_folder), "--data.batch_size", "8",
            "--trainer.precision", "32-true", "--run_name", "mine"]  # fmt: skip


@pytest.fixture
def start(checkpoint) -> Path:
    """A copy that the test may remove."""
    path = Path("start.ckpt").absolute()
    path.write_bytes(checkpoint.read_bytes())
    return path


def test_nothing_but_a_new_run_reads_the_start(fit, start, tiny_encoder, capsys):
    assert main([*fit, *epochs(1), "--model.start_from", start.name]) == 0
    start.unlink()
    capsys.readouterr()
    assert main(["fit", "--run_name", "mine", "--resume", *epochs(2)]) == 0
    assert main([*fit, *epochs(3), "--resume", "--model.start_from", start.name]) == 0
    assert main([*fit, "--run_name", "other", *epochs(4), "--ckpt_path", str(LAST)]) == 0
    assert "start: " not in capsys.readouterr().err
    for name, done in (("mine", 18), ("other", 24)):
        stored = read_checkpoint(LAST.parents[1] / name / "last.ckpt")
        assert stored["global_step"] == done
        assert stored["hyper_parameters"]["start_from"] == stored["lora_pl_start"]["checkpoint"] == str(start)
    config = yaml.safe_load(LAST.with_name("config.yaml").read_text())
    assert config["model"]["start_from"] == start.name
    Path("x.txt").write_text("the film is good\n")
    own = ["--ckpt_path", str(LAST), "--config", str(LAST.with_name("config.yaml"))]
    assert main(["validate", *own]) == 0
    assert main(["test", *own[:2]]) == 0
    assert main(["predict", *own[:2], "--input", "x.txt"]) == 0
    assert main(["predict", "--adapter", f"a={LAST}", "--input", "x.txt"]) == 0
    assert main(["export", "--ckpt_path", str(LAST), "--format", "adapter", "--output", "folder"]) == 0
    assert main(["import", "folder", "--output", "imported.ckpt"]) == 0
    named = f"{start.parent.name}/{start.name}"  # no private path
    assert f"| started from | {named} (SHA-256 " in Path("folder/README.md").read_text().replace("\\", "")
    assert json.loads(Path("folder/lora_pl.json").read_text())["hyper_parameters"]["start_from"] == named


def test_resumed_it_ends_as_if_it_had_never_been_stopped(fit, start):
    given = [*fit, "--model.start_from", str(start)]
    assert main([*given, *epochs(2)]) == 0
    assert main([*given, "--run_name", "halves", *epochs(1)]) == 0
    start.unlink()
    assert main([*given, "--run_name", "halves", "--resume", *epochs(2)]) == 0
    whole, halves = (read_checkpoint(f"checkpoints/{name}/last.ckpt")["state_dict"] for name in ("mine", "halves"))
    assert all(torch.equal(tensor, halves[name]) for name, tensor in whole.items())


def test_resumed_in_python_it_needs_no_start_either(start, tiny_encoder, glue_folder):
    data = SentenceDataModule(source=str(glue_folder), encoder=tiny_encoder(), batch_size=8)

    def fit(name: str, epochs: int) -> dict:
        model = LoRAClassifier.for_data(data, start_from=start)
        Run(name, resume=True).fit(model, data, max_epochs=epochs, precision="32-true", accelerator="cpu")
        return model.state_dict()

    whole = fit("mine", 2)
    fit("halves", 1)
    start.unlink()
    assert all(torch.equal(tensor, whole[name]) for name, tensor in fit("halves", 2).items())
    with pytest.raises(UserError, match=r"^model\.start_from: "):
        fit("new", 1)
    assert not LAST.parents[1].joinpath("new").exists()


def test_a_model_whose_start_is_missing_is_not_used(tiny_encoder, checkpoint):
    model = LoRAClassifier(encoder=tiny_encoder(), start_from="missing.ckpt")
    for use in (lambda: model.predict(["good"]), lambda: checkpoint_of(model)):
        with pytest.raises(UserError, match=r"^model\.start_from: "):
            use()
    model.load_state_dict(read_checkpoint(checkpoint)["state_dict"])
    assert model.predict(["good"])


def test_another_start_is_another_run(fit, start, checkpoint, capsys):
    assert main([*fit, *epochs(1), "--model.start_from", str(start)]) == 0
    capsys.readouterr()
    assert fails(capsys, *fit, *epochs(2), "--resume", "--model.start_from", str(checkpoint)) == "resume"


def test_a_run_without_a_start_has_none_later(fit, start, capsys):
    """A run of an earlier version too, which did not know the option."""
    assert main([*fit, *epochs(1)]) == 0
    saved = LAST.with_name("config.yaml")
    saved.write_text(saved.read_text().replace("  start_from: null\n", ""))
    assert "start_from" not in saved.read_text()
    capsys.readouterr()
    assert fails(capsys, *fit, *epochs(2), "--resume", "--model.start_from", str(start)) == "resume"


@pytest.mark.parametrize("verb", ["fit", "validate", "test", "predict"])
def test_a_checkpoint_and_a_start_are_one_too_many(verb, start, capsys):
    given = [verb, "--ckpt_path", str(start), "--model.start_from", str(start)]
    assert fails(capsys, *given, code=2) == "model.start_from"


@pytest.mark.parametrize(
    "wrong", [["--model.lora.r", "8"], ["--model.lora.lora_alpha", "8"], ["--model.method", "full"]]
)
def test_what_does_not_fit_is_one_line(wrong, fit, start, capsys):
    assert fails(capsys, *fit, *wrong, "--model.start_from", str(start)) == "model.start_from"
    assert not LAST.exists()


def test_a_missing_start_is_one_line(fit, capsys):
    assert fails(capsys, *fit, "--model.start_from", "missing.ckpt") == "model.start_from"
