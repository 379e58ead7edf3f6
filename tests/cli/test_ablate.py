"""`lora_pl ablate` as a user types it, on a tiny encoder."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import yaml

from lora_pl import LoRAClassifier
from lora_pl.ablation.grid import ALPHA_RULE, told
from lora_pl.ablation.study import NOT_VALIDATED
from lora_pl.ablation.table import COLUMNS, ResultTable
from lora_pl.cli.main import main
from lora_pl.cli.study_options import SHORT_NAMES, ShortName
from lora_pl.storage.checkpoint import read_checkpoint
from lora_pl.storage.flat import flatten
from tests.cli.mistakes import error_of, fails
from tests.processes import command, start
from tests.support import TIMES, run_in_process

RANKS, SEEDS = (1, 4), 2
ONE_STEP = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1"]
"""For trials whose numbers are not looked at."""


@pytest.fixture(scope="session")
def flags(tiny_encoder, glue_folder):
    given = ["ablate", "--model.encoder", tiny_encoder(), "--data.source", str(glue_folder), "--data.batch_size", "8"]
    given += ["--model.learning_rate", "3e-2", "--trainer.max_epochs", "2", "--ranks", "1", "4", "--seeds", str(SEEDS)]
    return [*given, "--output", "study", "--pack", "1"]


@pytest.fixture(scope="session")
def study(flags, tmp_path_factory) -> Path:
    """A finished study with references."""
    folder = tmp_path_factory.mktemp("study")
    run_in_process([*flags, "--head_rate", "1e-1", "--full_rate", "1e-3"], folder, check=True)
    return folder / "study"


def rows_of(folder: Path, times: bool = False) -> list[dict]:
    rows = ResultTable(folder).rows
    return rows if times else [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def test_the_table_has_a_row_per_trial_and_epoch(study):
    rows = rows_of(study, times=True)
    assert len(rows) == 2 * SEEDS * (len(RANKS) + 2)
    columns = pq.read_schema(study / "table.parquet").names
    assert columns == [*COLUMNS, "model.learning_rate", "model.lora.r"]
    by_rank = {row.get("model.lora.r"): row["trainable_lora"] for row in rows}
    assert by_rank == {None: 0, "1": 4 * 32, "4": 4 * 4 * 32}
    for trial in {row["trial"] for row in rows}:
        own = [row for row in rows if row["trial"] == trial]
        assert [row["epoch"] for row in own] == [1, 2]
        assert {row["best"] for row in own} == {max(row["validation"] for row in own)}
        assert {row["last"] for row in own} == {own[-1]["validation"]}
        assert all(row["seconds"] > 0 and row["sentences_per_second"] > 0 and row["status"] == "ok" for row in own)
    with (study / "table.csv").open() as file:
        read = list(csv.DictReader(file))
    assert [row["trial"] for row in read] == [row["trial"] for row in rows]
    assert [float(row["validation"]) for row in read] == [row["validation"] for row in rows]


@pytest.fixture
def no_report(monkeypatch):
    """For tests of the table: a report takes as long as a tiny trial, though its figures are empty."""
    monkeypatch.setattr("lora_pl.cli.ablate.write_report", lambda folder: folder)


@pytest.fixture
def planned(monkeypatch):
    """The trials of a study that is not run."""
    found: list = []
    monkeypatch.setattr("lora_pl.cli.ablate.AblateCLI._run_trials", lambda self, trials, folder: found.extend(trials))
    return found


def test_arms_and_tasks_of_a_configuration(planned, flags, glue_folder, tmp_path, monkeypatch):
    """A task's own file gives way to what is given, and to an arm's."""
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(
        "model: {lora: {target_modules: all-linear, r: 16}, learning_rate: 5e-4}\ntrainer: {max_epochs: 5}"
    )
    for task, epochs in (("rte", 80), ("mrpc", 30)):
        Path(f"{task}.yaml").write_text(
            f"trainer: {{max_epochs: {epochs}}}\nmodel: {{dropout: 0.2, weight_decay: 0.5}}"
        )
    Path("study.yaml").write_text(
        "seeds: 1\ntask_config: '{task}.yaml'\nvary: {data.task: [rte, mrpc], model.weight_decay: [0.1]}\n"
        "data: {source: 'glue/{folder}'}\nmodel: {dropout: 0.3}\narms:\n"
        "  seed: {model.lora.r: 4, vary: {model.learning_rate: [1e-3, 1e-2]}}\n  recipe: {config: recipe.yaml}\n"
        "  full: {model: {method: full}, trainer.max_epochs: 7}"
    )
    assert main(["ablate", "--config", "study.yaml"]) == 0
    of = {(trial.arm, trial.options["data.task"]): trial.options for trial in planned}
    assert len(planned) == 2 * (2 + 1 + 1)
    assert {options["data.source"] for options in of.values()} == {"glue/RTE", "glue/MRPC"}
    assert {options["model.weight_decay"] for options in of.values()} == {0.1}
    assert not any("model.dropout" in options for options in of.values())
    assert [of[arm, "rte"]["trainer.max_epochs"] for arm in ("seed", "recipe", "full")] == [80, 5, 7]
    assert of["recipe", "mrpc"]["model.lora.target_modules"] == ["all-linear"]
    assert (of["recipe", "mrpc"]["model.lora.r"], of["seed", "mrpc"]["model.lora.r"]) == (16, 4)
    assert {trial.options["model.learning_rate"] for trial in planned if trial.arm == "seed"} == {1e-3, 1e-2}


def test_every_configuration_counts(planned, flags, tmp_path, monkeypatch):
    """What one of several files gives comes before a task's file, and `trainer` before an arm's."""
    monkeypatch.chdir(tmp_path)
    Path("first.yaml").write_text("model: {weight_decay: 0.1}\ntrainer: {gradient_clip_val: 2.0}")
    Path("second.yaml").write_text("arms: {recipe: {config: arm.yaml}}")
    Path("arm.yaml").write_text("trainer: {gradient_clip_val: 1.0}")
    Path("sst2.yaml").write_text("model: {weight_decay: 0.5}")
    files = ["--config", "first.yaml", "--config", "second.yaml", "--task_config", "{task}.yaml"]
    assert main([*flags, *files, "--ranks", "1"]) == 0
    assert not planned[0].options.keys() & {"model.weight_decay", "trainer.gradient_clip_val"}


def test_the_folder_may_be_in_ones_home(planned, flags, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main([*flags, "--output=~/mine/study"]) == 0
    assert (tmp_path / "mine").is_dir()
    assert not Path("~").exists()


def test_a_task_that_is_not_named_has_its_file(planned, flags, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("sst2.yaml").write_text("model: {weight_decay: 0.5}")
    assert main([*flags, "--task_config", "{task}.yaml", "--ranks", "1"]) == 0
    assert {trial.options.get("model.weight_decay") for trial in planned} == {0.5}


def test_the_studys_trainer_options_come_before_those_of_an_arms_file(planned, flags, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text("model: {learning_rate: 5e-4}\ntrainer: {max_epochs: 5, gradient_clip_val: 1.0}")
    Path("arms.yaml").write_text("arms:\n  recipe: {config: recipe.yaml}\n  long: {trainer.max_epochs: 7}")
    assert main([*flags, "--config", "arms.yaml", "--ranks", "1"]) == 0
    epochs = {trial.arm: trial.options.get("trainer.max_epochs") for trial in planned}
    assert epochs == {"recipe": None, "long": 7}, "flags has --trainer.max_epochs 2"
    assert planned[0].options["trainer.gradient_clip_val"] == 1.0
    assert planned[0].options["model.learning_rate"] == 5e-4


def test_short_names_are_axes(planned, flags):
    assert main([*flags, "--targets", "attention", "query,key", "--alpha_rules", "rslora", "--tasks", "rte"]) == 0
    axes = ["data.task", "model.lora.target_modules", "model.lora.r", "alpha_rule"]
    assert set(planned[0].axes) == set(axes)
    assert {tuple(trial.options["model.lora.target_modules"]) for trial in planned} == {
        ("attention",),
        ("query", "key"),
    }
    assert {trial.options["model.lora.scaling"] for trial in planned} == {"rslora"}


@pytest.fixture(scope="module")
def values(tmp_path_factory) -> dict:
    """One of each option of `fit`, and of the rule for alpha."""
    fit = ["fit", "--data.task", "rte", "--model.dropout", "0.5", "--print_config"]
    printed = run_in_process(fit, tmp_path_factory.mktemp("values"), check=True).stdout
    return {ALPHA_RULE: "fixed", **flatten(yaml.safe_load(printed))}


@pytest.mark.parametrize("name", [*SHORT_NAMES, "dropouts"])
def test_a_short_name_is_its_row_alone(name, values, planned, flags, monkeypatch):
    monkeypatch.setitem(SHORT_NAMES, "dropouts", ShortName("model.dropout", float, "Axis model.dropout."))
    key = SHORT_NAMES[name].key
    assert main([*flags, f"--{name}", told(values[key])]) == 0
    assert key in planned[0].axes


def test_a_study_that_names_an_axis_has_no_ranks_by_default(planned, flags):
    start = flags.index("--ranks")
    few = flags[:start] + flags[start + 3 :]
    assert main([*few, "--vary", "model.dropout", "null", "0.2", "--vary", "model.lora.r", "8"]) == 0
    assert [dict(trial.axes) for trial in planned[:2]] == [
        {"model.dropout": None, "model.lora.r": 8}, {"model.dropout": 0.2, "model.lora.r": 8}
    ]  # fmt: skip
    planned.clear()
    assert main(few) == 0
    assert [trial.axes["model.lora.r"] for trial in planned[:4]] == [1, 2, 4, 8]
    planned.clear()
    assert main([*few, "--vary", "early_stopping_patience", "null", "2"]) == 0
    assert [(dict(trial.axes), trial.alone) for trial in planned[:2]] == [
        ({"early_stopping_patience": None}, False), ({"early_stopping_patience": 2}, True)
    ]  # fmt: skip


def test_a_trial_is_what_fit_does_with_its_seed(study, tiny_encoder, glue_folder):
    row = next(row for row in rows_of(study) if (row.get("model.lora.r"), row["seed"], row["epoch"]) == ("4", 1, 2))
    flags = ["--model.encoder", tiny_encoder(), "--data.source", str(glue_folder), "--data.batch_size", "8"]
    flags += ["--model.learning_rate", "3e-2", "--trainer.max_epochs", "2", "--model.lora.r", "4"]
    assert main(["fit", *flags, "--seed_everything", "1", "--run_name", "alone"]) == 0
    alone = LoRAClassifier.load_from_checkpoint("checkpoints/alone/last.ckpt").state_dict()
    trial = LoRAClassifier.load_from_checkpoint(study / "trials" / row["trial"] / "last.ckpt").state_dict()
    assert all((trial[key] == tensor).all() for key, tensor in alone.items())


def test_every_trial_leaves_its_metrics_and_a_tensorboard_run(study):
    names = {row["trial"] for row in rows_of(study)}
    assert {path.name for path in (study / "trials").iterdir() if path.is_dir()} == names
    for name in names:
        metrics = json.loads((study / "trials" / name / "metrics.json").read_text())
        assert set(metrics["metrics"]) == {"epoch_1", "epoch_2"}
        assert set(metrics["metrics"]["epoch_1"]) == {"train_loss", "val_loss", "val_acc"}
        assert list((study / "trials" / name).glob("events.*"))
        assert (study / "trials" / name / "last.ckpt").is_file() == name.startswith("r")


@pytest.mark.usefixtures("no_report")
def test_a_finished_study_is_not_run_again_and_can_grow(study, flags, tmp_path, monkeypatch):
    from shutil import copytree

    copytree(study, tmp_path / "study")
    monkeypatch.chdir(tmp_path)
    before = rows_of(tmp_path / "study", times=True)
    assert main(flags) == 0
    assert rows_of(tmp_path / "study", times=True) == before
    assert main([*flags, "--ranks", "1", "2", "4"]) == 0
    after = rows_of(tmp_path / "study", times=True)
    assert [row for row in after if row.get("model.lora.r") != "2"] == before
    assert len(after) == len(before) + 2 * SEEDS


@pytest.mark.usefixtures("no_report")
def test_a_kill_and_a_second_start_give_the_table_of_an_undisturbed_run(study, flags, tmp_path):
    process = start(tmp_path, command, *flags)
    table = tmp_path / "study" / "table.parquet"
    deadline = time.monotonic() + 120
    while not table.is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.2)  # somewhere in a later trial
    process.kill()
    process.join()
    finished = len({row["trial"] for row in rows_of(table.parent)})
    assert 1 <= finished < SEEDS * len(RANKS)
    run_in_process(flags, tmp_path, check=True)
    assert rows_of(table.parent) == [row for row in rows_of(study) if row["method"] == "lora"]


@pytest.fixture
def stopped_in_the_ninth_step(monkeypatch):
    """Called, it lets SIGTERM come there; the list that it returns gets epoch and batch of every step."""
    from lora_pl.ablation.record import EpochRecord

    def arm() -> list[tuple[int, int]]:
        steps, begin = [], EpochRecord.on_train_batch_start

        def watched(self, trainer, module, batch, batch_idx):
            steps.append((trainer.current_epoch, batch_idx))
            if len(steps) == 9:
                os.kill(os.getpid(), signal.SIGTERM)
            begin(self, trainer, module, batch, batch_idx)

        monkeypatch.setattr(EpochRecord, "on_train_batch_start", watched)
        return steps

    return arm


@pytest.mark.usefixtures("no_report")
def test_a_stopped_trial_is_resumed_where_it_was(
    study, flags, tmp_path, monkeypatch, capsys, stopped_in_the_ninth_step
):
    """SIGTERM in the second epoch of the first trial."""
    monkeypatch.chdir(tmp_path)
    steps = stopped_in_the_ninth_step()
    assert main(flags) == 128 + signal.SIGTERM
    assert error_of(capsys.readouterr().err)[0] == "stopped"
    assert steps[-1] == (1, 2)
    assert not (tmp_path / "study" / "table.parquet").exists()
    assert main(flags) == 0
    assert steps[9] == (1, 3)
    assert len(steps) == 4 * 12
    assert rows_of(tmp_path / "study") == [row for row in rows_of(study) if row["method"] == "lora"]
    name = rows_of(study)[-1]["trial"]
    curves = [json.loads((folder / "trials" / name / "metrics.json").read_text())["loss_curve"]
              for folder in (study, tmp_path / "study")]  # fmt: skip
    assert curves[0] == curves[1]


@pytest.mark.usefixtures("no_report")
def test_stopped_joint_trials_are_resumed_where_they_were(
    flags, tmp_path, monkeypatch, capsys, stopped_in_the_ninth_step
):
    """SIGTERM in the second epoch of the first group; dropout is on."""
    monkeypatch.chdir(tmp_path)
    packed = [*flags, "--pack", "3"]
    assert main([*packed, "--output", "whole"]) == 0
    steps = stopped_in_the_ninth_step()
    assert main(packed) == 128 + signal.SIGTERM
    assert error_of(capsys.readouterr().err)[0] == "stopped"
    assert [path.name for path in Path("study/trials").glob("joint-*/last.ckpt")] == ["last.ckpt"]
    assert main(packed) == 0
    assert steps[8:10] == [(1, 2), (1, 3)]
    assert rows_of(Path("study")) == rows_of(Path("whole"))
    names = {row["trial"] for row in rows_of(Path("whole"))}
    assert {path.name for path in Path("study/trials").iterdir() if path.is_dir()} == names
    for name in names:
        one, other = (read_checkpoint(f"{study}/trials/{name}/last.ckpt") for study in ("whole", "study"))
        assert all(torch.equal(tensor, other["state_dict"][key]) for key, tensor in one["state_dict"].items())
        curves = [json.loads(Path(f"{study}/trials/{name}/metrics.json").read_text())["loss_curve"]
                  for study in ("whole", "study")]  # fmt: skip
        assert curves[0] == curves[1]


@pytest.mark.usefixtures("no_report")
def test_joint_trials_give_the_same_table_but_for_rounding(study, flags, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shared = ["--model.dropout", "0", "--trainer.precision", "32-true"]
    assert main([*flags, *shared, "--pack", "3"]) == 0
    assert main([*flags, *shared, "--output", "alone"]) == 0
    packed, alone = rows_of(tmp_path / "study"), rows_of(tmp_path / "alone")
    assert [row["trial"] for row in packed] == [row["trial"] for row in alone]
    assert {row["pack"] for row in packed} == {3, 1}
    for one, other in zip(packed, alone, strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], abs=1e-4)
        assert one["validation"] == other["validation"]
        assert one["trainable"] == other["trainable"]
    name = packed[0]["trial"]
    states = [LoRAClassifier.load_from_checkpoint(tmp_path / study / "trials" / name / "last.ckpt").state_dict()
              for study in ("study", "alone")]  # fmt: skip
    assert all((states[1][key] - tensor).abs().max() < 1e-4 for key, tensor in states[0].items())
    assert main(["validate", "--ckpt_path", f"study/trials/{name}/last.ckpt"]) == 0


@pytest.mark.usefixtures("no_report")
def test_a_study_keeps_how_many_trials_it_trains_jointly(flags, tmp_path, monkeypatch):
    """auto is as many as there are, up to four; without a number a study keeps its own; a number is for the rest."""
    monkeypatch.chdir(tmp_path)
    short = [*flags[: flags.index("--pack")], *ONE_STEP, "--ranks", "1", "2", "4"]
    assert main([*short, "--pack", "auto"]) == 0
    assert json.loads(Path("study/settings.json").read_text())["pack"] == 4
    assert {row["pack"] for row in rows_of(tmp_path / "study")} == {4, 2}
    assert main([*short, "--ranks", "1", "2", "4", "8"]) == 0
    assert json.loads(Path("study/settings.json").read_text())["pack"] == 4
    before = rows_of(tmp_path / "study")
    assert main([*short, "--ranks", "16", "--pack", "1"]) == 0
    after = rows_of(tmp_path / "study")
    assert [row["pack"] for row in after if row["model.lora.r"] == "16"] == [1] * SEEDS
    assert [row for row in after if row["model.lora.r"] != "16"] == before


@pytest.mark.usefixtures("empty_figures")
def test_trials_that_train_biases_and_norms(flags, tmp_path, monkeypatch, capsys):
    """One by one; references have none of their own."""
    monkeypatch.chdir(tmp_path)
    own = ["--model.train_biases", "all", "--model.train_norms", "true", "--ranks", "4", "--seeds", "1"]
    short = [*flags[: flags.index("--pack")], *own, *ONE_STEP, "--head_rate", "1e-1"]
    assert main([*short, "--pack", "2"]) == 0
    rows = rows_of(tmp_path / "study")
    assert {row["pack"] for row in rows} == {1}
    assert {row["method"]: row["trainable"] - row["trainable_lora"] - row["trainable_head"] for row in rows} == {
        "lora": 384, "head": 0}  # fmt: skip
    assert fails(capsys, *short, "--model.encoder", "x", "--output", "other") == "model.encoder"


@pytest.mark.usefixtures("empty_figures")
@pytest.mark.parametrize("pack", ["1", "2"])
def test_a_damaged_trial_is_marked_and_the_rest_goes_on(pack, flags, tmp_path, monkeypatch, capsys):
    """At the higher learning rate the loss is soon NaN; joint trials of the other rate finish all the same."""
    monkeypatch.chdir(tmp_path)
    given = [*flags, "--ranks", "4", "--learning_rates", "3e-2", "1e30", "--pack", pack]
    given += ["--trainer.limit_train_batches", "3"]
    assert main(given) == 1
    assert error_of(capsys.readouterr().err)[0] == "ablate.failed"
    rows = rows_of(tmp_path / "study")
    bad = [row for row in rows if row["status"] == "failed"]
    assert {row["model.learning_rate"] for row in bad} == {"1e+30"}
    assert all("UserError: model.nonfinite_loss: " in row["error"] for row in bad), bad
    assert len([row for row in rows if row["status"] == "ok"]) == 2 * 2
    assert "UserError: model.nonfinite_loss: " in (tmp_path / "study" / "report.html").read_text()
    before = [row for row in rows_of(tmp_path / "study", times=True) if row["status"] == "ok"]
    assert main(given) == 1  # the failed ones are tried again, the others are not
    assert [row for row in rows_of(tmp_path / "study", times=True) if row["status"] == "ok"] == before


@pytest.mark.usefixtures("empty_figures")
@pytest.mark.parametrize("pack", ["1", "2"])
def test_trials_that_end_before_their_first_validation_say_so(pack, flags, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*flags, "--ranks", "4", "--trainer.max_steps", "2", "--pack", pack]) == 1
    assert error_of(capsys.readouterr().err)[0] == "ablate.failed"
    assert {row["error"] for row in rows_of(tmp_path / "study")} == {NOT_VALIDATED}


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("pack", ["1", "2"])
def test_an_epoch_without_a_validation_has_no_row(pack, flags, tmp_path, monkeypatch):
    """Six steps an epoch: max_steps ends the second one before its validation."""
    monkeypatch.chdir(tmp_path)
    assert main([*flags, "--ranks", "4", "--trainer.max_steps", "8", "--pack", pack]) == 0
    assert [row["epoch"] for row in rows_of(tmp_path / "study")] == [1, 1]


@pytest.mark.parametrize(
    ("changes", "key", "code"),
    [
        (["--ranks", "0"], "r", 1),
        (["--ranks", "17"], "r", 1),
        (["--ranks", "four"], "ranks", 2),
        (["--run_name", "mine"], "run_name", 2),
        (["--resume"], "resume", 2),
        (["--rank", "4"], "usage", 2),
        (["--seeds", "0"], "seeds", 1),
        (["--targets", "query,valeu"], "target_modules", 1),
        (["--vary", "model.lora.r", "2"], "vary", 2),
        (["--vary", "model.lora.alhpa", "2"], "vary", 2),
        (["--vary", "model.dropout"], "vary", 2),
        (["--vary", "data.seed", "1"], "vary", 2),
        (["--vary", "model.dropout", "0.1", "--vary", "model.dropout", "0.2"], "vary", 2),
        (["--vary", "model.dropout", "a lot"], "model.dropout", 2),
        (["--vary", "model.dropout", "0.1", "0.10"], "vary", 1),
        (["--vary", "data.task", "rte", "sst3"], "task", 1),
        (["--full_rate", "fast"], "full_rate", 2),
        (["--trainer.devices", "2"], "trainer.devices", 1),
        (["--data.source", "nowhere"], "data.source", 1),
        (["--data.train_sentences", "1000"], "data.train_sentences", 1),
        (["--data.batching", "padded", "--pack", "2"], "pack", 1),
    ],
)
def test_mistakes_are_reported_before_the_first_trial(changes, key, code, flags, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert fails(capsys, *flags, *changes, code=code) == key


@pytest.mark.usefixtures("no_report")
def test_auto_is_one_where_batches_are_padded(flags, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lora_pl.cli.ablate.run_study", lambda folder, units, settings, *given: sizes.append(settings))
    sizes: list[dict] = []
    assert main([*flags, "--data.batching", "padded", "--pack", "auto"]) == 0
    assert sizes[0]["pack"] == 1


@pytest.mark.usefixtures("no_report")
def test_trials_in_16_mixed_run_alone_which_is_said(flags, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lora_pl.cli.ablate.run_study", lambda folder, units, *given: found.extend(units))
    found: list = []
    assert main([*flags, "--pack", "4", "--trainer.precision", "16-mixed"]) == 0
    assert [len(unit) for unit in found] == [1] * SEEDS * len(RANKS)
    assert "in 16-mixed trials run one by one" in capsys.readouterr().err


def test_a_study_of_other_settings_is_refused(study, flags, monkeypatch, capsys):
    monkeypatch.chdir(study.parent)
    before = (study / "table.parquet").read_bytes()
    for change in (["--data.batch_size", "16"], ["--vary", "model.dropout", "0.1"]):
        assert main([*flags, *change]) == 1
        assert error_of(capsys.readouterr().err)[0] == "output"
    assert (study / "table.parquet").read_bytes() == before


@pytest.mark.usefixtures("empty_figures")
def test_one_process_at_a_time_runs_a_study(flags, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    holds = "import sys; from filelock import FileLock as L; lock = L('.study.lock'); lock.acquire(); print(); input()"
    with subprocess.Popen([sys.executable, "-c", holds], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        assert main(flags) == 1
        assert "output: study is in use" in capsys.readouterr().err
        other.stdin.close()


@pytest.mark.usefixtures("no_report")
def test_a_full_disk_stops_the_study_and_leaves_its_table_whole(flags, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    from lora_pl.ablation.trial_runner import TrialRunner

    train, calls = TrialRunner.train, []

    def second_fails(*given):
        calls.append(given)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return train(*given)

    monkeypatch.setattr(TrialRunner, "train", second_fails)
    assert main([*flags, *ONE_STEP]) == 1
    assert error_of(capsys.readouterr().err)[0] == "file"
    assert {row["status"] for row in rows_of(tmp_path / "study")} == {"ok"}
    assert main([*flags, *ONE_STEP]) == 0


def test_the_report_holds_figures_tables_and_a_verdict(study):
    page = (study / "report.html").read_text()
    assert page.count('<img src="data:image/png;base64,') == 6
    assert "http" not in page.replace("http-equiv", "")
    for said in ("r = 1", "r = 4", "head alone", "full fine-tuning", "published", "noise", "95% interval"):
        assert said in page, said
    assert page.count("<td>") > 100
    names = {"by-arm", "by-r", "parameters_by_rank", "loss_curves", "subspace_similarity"}
    names.add("subspace_similarity_by_layer")
    assert {path.name for path in (study / "figures").iterdir()} == {f"{n}.{s}" for n in names for s in ("png", "svg")}
    summary = json.loads((study / "summary.json").read_text())
    assert {row["source"] for row in summary["measured"]} == {"measured"}
    assert [row["last"] for row in summary["published"]] == [0.9335, 0.9369, 0.9289, 0.9346]
    assert all("not measured here" in row["source"] for row in summary["published"])


@pytest.mark.usefixtures("empty_figures")
def test_a_study_on_own_files_is_not_compared_with_what_others_published_on_sst2(study, tmp_path):
    folder = Path(shutil.copytree(study, tmp_path / "own"))
    settings = json.loads((folder / "settings.json").read_text())
    of_files = {"data.task": None, "data.train_file": "mine/texts.csv", "trainer.limit_train_batches": 15}
    (folder / "settings.json").write_text(json.dumps(settings | of_files))
    assert main(["ablate", "report", str(folder)]) == 0
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["published"] == []
    assert {row["task"] for row in summary["measured"]} == {"custom"}
    page = (folder / "report.html").read_text()
    assert "r = 4, roberta-base, published" not in page
    assert "on texts.csv, all training sentences, 15 of the batches of an epoch" in page


def test_the_report_can_be_written_anew(study, capsys, tmp_path):
    before = (study / "report.html").read_text()
    assert main(["ablate", "report", str(study)]) == 0
    assert (study / "report.html").read_text() == before
    assert main(["ablate", "report", str(tmp_path)]) == 1
    assert error_of(capsys.readouterr().err)[0] == "report"


def test_a_runs_saved_configuration_is_taken(checkpoint, planned, tmp_path, monkeypatch, capsys):
    """As `fit` takes it; what names or continues that one run is left out, or refused where a user asks for it."""
    monkeypatch.chdir(tmp_path)
    saved = str(checkpoint.with_name("config.yaml"))
    assert main(["ablate", "--config", saved, "--ranks", "1", "--seeds", "1"]) == 0
    assert [trial.name for trial in planned] == ["r1-s0"]
    assert fails(capsys, "ablate", "--config", saved, "--ckpt_path", str(checkpoint), code=2) == "ckpt_path"
    assert fails(capsys, "ablate", "--config", saved, "--run_name", "x", code=2) == "run_name"


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ("arms: 3", "arms"),
        ("arms: {a: 3}", "arms"),
        ("arms: {a: {config: [x]}}", "arms"),
        ("arms: {a: {vary: 3}}", "vary"),
        ("arms: {a: {config: none.yaml}}", "config"),
        ("arms: {a: {model.lora.rr: 3}}", "vary"),
        ("arms: {a: {model: {lora: 3}}}", "vary"),
        ("vary: [model.lora.r]", "vary"),
        ("vary: {model.lora.r: 3}", "vary"),
        ("vary: {model.lora.r: []}", "vary"),
        ("vary: {model.task: [rte]}", "vary"),
        ("task_config: 'none/{task}.yaml'", "config"),
    ],
)
def test_mistakes_in_a_studys_configuration(content, key, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("study.yaml").write_text(content)
    assert main(["ablate", "--config", "study.yaml", "--data.task", "rte", "--data.source", "nowhere"]) != 0
    assert error_of(capsys.readouterr().err)[0] == key


@pytest.mark.usefixtures("no_report")
def test_a_saved_configuration_trains(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved = str(checkpoint.with_name("config.yaml"))
    assert main(["ablate", "--config", saved, "--ranks", "1", "--seeds", "1", *ONE_STEP]) == 0
    assert len(rows_of(tmp_path / "logs" / "ablation" / "config")) == 1


def test_the_study_of_the_recipe_parses(planned, tmp_path, monkeypatch):
    """From the repository's root, as its first lines say."""
    monkeypatch.chdir(Path(__file__).parents[2])
    given = [
        "--config",
        "configs/study.yaml",
        "--tasks",
        "mrpc",
        "rte",
        "--seeds",
        "1",
        "--output",
        str(tmp_path / "study"),
    ]
    assert main(["ablate", *given]) == 0
    assert len(planned) == 2 * (2 + 1 + 1 + 1 + 3 + 1)
