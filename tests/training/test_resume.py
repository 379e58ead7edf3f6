"""`--resume` as a user types it."""

import shutil
import warnings
from pathlib import Path

import pytest
import torch
import yaml

from lora_pl.cli.main import main
from lora_pl.training.run_folder import run_name
from tests.cli.mistakes import error_of
from tests.support import run_in_process


@pytest.fixture(scope="module")
def fit(tiny_encoder, glue_folder):
    return ["fit", "--model.encoder", tiny_encoder(), "--data.source", str(glue_folder), "--data.batch_size", "8",
            "--trainer.precision", "32-true", "--resume", "--run_name", "mine"]  # fmt: skip


@pytest.fixture(scope="module")
def one_epoch(fit, tmp_path_factory) -> Path:
    """The folder in which `fit` has trained an epoch."""
    folder = tmp_path_factory.mktemp("begun")
    run_in_process([*fit, *epochs(1)], folder, check=True)
    return folder


@pytest.fixture
def begun(one_epoch) -> None:
    """A copy of it to go on from."""
    shutil.copytree(one_epoch, ".", dirs_exist_ok=True)


def epochs(count: int) -> list[str]:
    return ["--trainer.max_epochs", str(count)]


def last(name: str = "mine") -> dict:
    return torch.load(f"checkpoints/{name}/last.ckpt", weights_only=True)


def fails(capsys, *arguments: str, code: int = 1) -> tuple[str, str]:
    assert main(list(arguments)) == code
    return error_of(capsys.readouterr().err)


def test_the_same_command_starts_resumes_and_ends(fit, capsys):
    assert main([*fit, *epochs(1)]) == 0
    assert main([*fit, *epochs(2)]) == 0
    assert "resume: checkpoints/mine/last.ckpt" in capsys.readouterr().err
    assert last()["global_step"] == 12
    assert main([*fit, *epochs(2)]) == 0
    assert last()["global_step"] == 12


def test_the_same_command_with_a_configuration(fit, capsys):
    Path("c.yaml").write_text(yaml.safe_dump({"data": {"batch_size": 8}, "model": {"learning_rate": 0.003}}))
    here = [*fit, "--config", "c.yaml"]
    assert main([*here, *epochs(1)]) == 0
    assert main([*here, *epochs(2)]) == 0
    assert last()["global_step"] == 12
    Path("other.yaml").write_text(yaml.safe_dump({"data": {"batch_size": 8}}))
    key, said = fails(capsys, *fit, *epochs(2), "--config", "other.yaml")
    assert key == "resume"
    assert "model.learning_rate" in said


def test_a_placement_is_the_same_however_it_is_spelled(fit, capsys):
    placed = ["--model.lora.target_modules", "all-linear", "--model.lora.exclude", "key", "--model.lora.lr_ratio", "4"]
    assert main([*fit, *placed, "--model.lora.layers", "0-1", *epochs(1)]) == 0
    assert main([*fit, *placed, "--model.lora.layers", "[1, 0]", *epochs(2)]) == 0
    assert last()["global_step"] == 12
    assert last()["hyper_parameters"]["lora"]["layers"] == [0, 1]
    assert [group["name"] for group in last()["optimizer_states"][0]["param_groups"]][:2] == ["adapters", "adapters_B"]
    key, said = fails(capsys, *fit, *placed[:-1], "3", "--model.lora.layers", "1", *epochs(3))
    assert key == "resume"
    assert "model.lora.layers" in said
    assert "model.lora.lr_ratio" in said
    assert fails(capsys, *fit, *placed[:-1], "1", "--model.lora.layers", "0-1", "--force")[0] == "checkpoint.state"


def test_what_would_change_the_mathematics_is_named(fit, begun, capsys):
    changed = [*fit, *epochs(2), "--data.batch_size", "4", "--model.learning_rate", "1e-2", "--data.num_workers", "1"]
    key, said = fails(capsys, *changed)
    assert key == "resume"
    assert "data.batch_size" in said
    assert "model.learning_rate" in said
    assert "num_workers" not in said
    stretched = [*fit, *epochs(3), "--model.schedule", "linear", "--force"]
    assert main([*changed, "--force"]) == 0
    assert "trainer.max_epochs" in fails(capsys, *stretched[:-1])[1]


def test_without_a_name_it_is_an_error(fit, capsys):
    assert fails(capsys, *fit[:-2], code=2)[0] == "resume"


def test_no_whole_checkpoint_is_an_error(fit, capsys):
    Path("checkpoints/mine").mkdir(parents=True)
    Path("checkpoints/mine/last.ckpt").write_bytes(b"PK half")
    assert fails(capsys, *fit)[0] == "checkpoint.damaged"


def test_a_moved_run_keeps_its_best(fit, begun):
    shutil.move("checkpoints/mine", "checkpoints/moved")
    assert main([*fit[:-1], "moved", *epochs(3)]) == 0
    assert {path.name for path in Path("checkpoints/moved").iterdir()} == {"best.ckpt", "last.ckpt", "config.yaml"}
    (state,) = (value for key, value in last("moved")["callbacks"].items() if key.startswith("BestCheckpoint"))
    assert Path(state["best_model_path"]) == Path("checkpoints/moved/best.ckpt").resolve()


def test_a_checkpoint_named_in_yaml_brings_its_settings(fit, capsys):
    assert main([*fit, *epochs(1), "--model.lora.r", "2"]) == 0
    Path("more.yaml").write_text(yaml.safe_dump({"ckpt_path": "checkpoints/mine/last.ckpt"}))
    assert main(["validate", "--config", "more.yaml"]) == 0
    Path("none.yaml").write_text("ckpt_path: none.ckpt\n")
    assert fails(capsys, "validate", "--config", "none.yaml")[0] == "checkpoint.missing"


def test_options_of_another_version_are_ignored_and_named(begun, capsys):
    stored = last()
    stored["datamodule_hyper_parameters"]["eval_batch_size"] = 64
    torch.save(stored, "old.ckpt")
    assert main(["validate", "--ckpt_path", "old.ckpt"]) == 0
    assert "data.eval_batch_size" in capsys.readouterr().err


def test_a_run_says_what_made_it(fit):
    assert main([*fit, *epochs(1), "--seed_everything", "5"]) == 0
    record = last()["lora_pl_run"]
    assert record["seed"] == 5
    assert {"lora_pl", "python", "torch", "lightning", "transformers"} <= record["versions"].keys()
    assert record["git"]
    text = Path("checkpoints/mine/config.yaml").read_text()
    assert f"# torch {torch.__version__}" in text
    assert yaml.safe_load(text) == yaml.safe_load(record["config"])
    assert yaml.safe_load(text)["seed_everything"] == 5


@pytest.mark.parametrize(("option", "value", "steps"), [("limit_val_batches", "0", 6), ("max_steps", "4", 4)])
def test_without_validation_the_summary_names_the_last_checkpoint(fit, capsys, option, value, steps):
    with warnings.catch_warnings(record=True) as warned:
        assert main([*fit, *epochs(1), f"--trainer.{option}", value]) == 0
    said = capsys.readouterr().err
    assert f"{steps} steps without validation" in said
    assert not warned
    assert "checkpoints/mine/last.ckpt" in said


def test_runs_of_the_same_second_have_names_of_their_own():
    names = [run_name(None, "demo.yaml", None) for _ in range(3)]
    assert len(set(names)) == 3
