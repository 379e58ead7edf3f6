"""configs/glue: the paper's settings of the nine tasks, parsed as they are and run on a tiny encoder."""

import functools
from pathlib import Path

import pytest
import torch
import yaml

from lora_pl.cli.main import main
from lora_pl.data.tasks import GLUE_TASKS
from lora_pl.storage.checkpoint import read_checkpoint
from lora_pl.storage.flat import flatten
from tests.support import run_in_process

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "glue"
PUBLISHED = {  # learning rate, epochs, effective batch
    "mnli": (5e-4, 30, 128), "sst2": (5e-4, 60, 128), "mrpc": (4e-4, 30, 128), "cola": (4e-4, 80, 64),
    "qnli": (4e-4, 25, 256), "qqp": (5e-4, 25, 128), "rte": (5e-4, 80, 256), "stsb": (4e-4, 40, 128),
    "wnli": (5e-4, 80, 256),
}  # fmt: skip


@pytest.fixture(scope="session")
def fit(tiny_encoder, glue_download):
    """Run `fit` with a task's configuration, cut to two steps."""

    def run(task: str, folder: Path, *flags: str) -> str:
        arguments = ["--config", str(CONFIGS / f"{task}.yaml"), "--model.encoder", tiny_encoder(), "--run_name", task]
        arguments += ["--data.source", str(glue_download), "--data.batch_size", "4", "--data.max_length", "16"]
        return run_in_process(["fit", *arguments, "--trainer.max_steps", "2", *flags], folder, check=True).stderr

    return run


@pytest.fixture(scope="session")
def dry_run(fit, tmp_path_factory):
    """The last checkpoint of a task's run."""

    @functools.cache
    def run(task: str) -> Path:
        folder = tmp_path_factory.mktemp(task)
        fit(task, folder)
        return folder / "checkpoints" / task / "last.ckpt"

    return run


def test_every_task_of_glue_has_a_configuration():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == PUBLISHED.keys() <= GLUE_TASKS.keys()


@pytest.fixture(scope="module")
def defaults(tmp_path_factory) -> dict:
    """Of `fit`, by full key."""
    printed = run_in_process(["fit", "--print_config"], tmp_path_factory.mktemp("x"), check=True).stdout
    return flatten(yaml.safe_load(printed))


@pytest.mark.parametrize("task", PUBLISHED)
def test_the_published_settings_and_nothing_else(task, defaults, capsys):
    path = CONFIGS / f"{task}.yaml"
    assert main(["fit", "--config", str(path), "--print_config"]) == 0
    found = yaml.safe_load(capsys.readouterr().out)
    given = flatten(yaml.safe_load(path.read_text(encoding="utf-8")))
    assert not [key for key, value in flatten(found).items() if (value != defaults[key]) != (key in given)]
    model, data = found["model"], found["data"]
    assert (float(model["learning_rate"]), found["trainer"]["max_epochs"], data["batch_size"]) == PUBLISHED[task]
    assert (model["encoder"], data["task"], data["max_length"]) == ("roberta-base", task, 512)
    assert (model["head"], model["schedule"], float(model["warmup_ratio"])) == ("architecture", "linear", 0.06)
    assert (model["lora"]["r"], float(model["lora"]["lora_alpha"]), float(model["weight_decay"])) == (8, 16, 0.1)
    assert model["lora"]["target_modules"] == ["query", "value"]


@pytest.mark.parametrize("task", PUBLISHED)
def test_a_dry_run(task, dry_run):
    stored = read_checkpoint(dry_run(task))
    assert stored["global_step"] == 2
    assert stored["hyper_parameters"]["task"] == task


STILL = ["--model.learning_rate", "1e-12", "--model.weight_decay", "0"]
"""Nothing moves, so that a run ends where it starts."""


def test_rte_starts_from_the_adapter_of_mnli(fit, dry_run, tmp_path):
    """Its head is the one that is drawn without a start."""
    mnli = dry_run("mnli")
    said = fit("rte", tmp_path, "--model.start_from", str(mnli), *STILL)
    assert f"start: adapter from {mnli}; the head is drawn" in said
    fit("rte", tmp_path, "--run_name", "drawn", *STILL)
    stored, drawn = (read_checkpoint(tmp_path / f"checkpoints/{name}/last.ckpt") for name in ("rte", "drawn"))
    start = read_checkpoint(mnli)["state_dict"]
    for name, tensor in stored["state_dict"].items():
        torch.testing.assert_close(tensor, (drawn["state_dict"] if name.startswith("head.") else start)[name])
    assert stored["hyper_parameters"]["start_from"] == stored["lora_pl_start"]["checkpoint"] == str(mnli)


def test_mrpc_starts_from_adapter_and_head_of_mrpc(fit, dry_run, tmp_path):
    start = dry_run("mrpc")
    said = fit("mrpc", tmp_path, "--model.start_from", str(start), "--run_name", "again", *STILL)
    assert f"start: adapter and head from {start}" in said
    again = read_checkpoint(tmp_path / "checkpoints" / "again" / "last.ckpt")["state_dict"]
    torch.testing.assert_close(again, read_checkpoint(start)["state_dict"])
