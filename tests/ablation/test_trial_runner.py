"""A study's configuration and a trial become a model, data and a run."""

import os
import pickle
import signal
from collections import Counter

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping

from lora_pl.ablation.grid import Trial
from lora_pl.ablation.joint import JointTrials
from lora_pl.ablation.record import EpochRecord
from lora_pl.ablation.study import auto_size, units_of
from lora_pl.ablation.trial_runner import TrialRunner, instantiated
from lora_pl.data.datamodule import SentenceDataModule
from lora_pl.lora.int8 import int8_is_fast
from lora_pl.storage.checkpoint import read_checkpoint
from lora_pl.training.resume.stop_signals import RunStopped
from tests.support import TIMES

LR = "model.learning_rate"


def lora(rank: int, seed: int = 0, **options) -> Trial:
    own = {"model.lora.r": rank, "model.lora.target_modules": ["query"], **options}
    return Trial("LoRA", seed, {"model.lora.r": rank}, own)


TRIALS = [Trial("head alone", 0, {}, {"model.method": "head", LR: 1e-2}, alone=True), *map(lora, (1, 2, 4, 8, 16))]


def test_lora_trials_go_together_and_others_alone():
    units = units_of(TRIALS, 2)
    assert [len(unit) for unit in units] == [1, 2, 2, 1]
    assert [trial for unit in units for trial in unit] == TRIALS


def test_only_trials_of_the_same_forward_pass_and_data_go_together():
    """Learning rates, LoRA and seeds may differ."""
    others = [lora(4, **own) for own in ({"model.dropout": 0.5}, {"data.task": "rte"})]
    trials = [lora(4), lora(4, 1), lora(8, **{LR: 1.0}), *others]
    assert [len(unit) for unit in units_of(trials, 8)] == [3, 1, 1]


@pytest.mark.parametrize(("workers", "size"), [(1, 4), (2, 3), (5, 1), (9, 1)])
def test_no_worker_goes_without(workers, size):
    assert auto_size(TRIALS, workers) == size


def test_classes_in_a_configuration_are_made_anew_for_each_trial():
    value = {"callbacks": [{"class_path": "lightning.pytorch.callbacks.EarlyStopping",
                            "init_args": {"monitor": "val/loss", "patience": 7}}], "max_epochs": 2}  # fmt: skip
    one, other = instantiated(value), instantiated(value)
    assert one["max_epochs"] == 2
    assert isinstance(one["callbacks"][0], EarlyStopping)
    assert one["callbacks"][0].patience == 7
    assert one["callbacks"][0] is not other["callbacks"][0]


def test_a_trial_trains_in_another_process_and_with_the_studys_callbacks(config, tmp_path):
    stops = {"monitor": "val/accuracy", "mode": "max", "stopping_threshold": 0.0}
    config["trainer"]["callbacks"] = [{"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": stops}]
    config |= {"model": {**config["model"], "lora": {"lora_dropout": 0.1}}, "save_every_steps": 4}
    runner = pickle.loads(pickle.dumps(TrialRunner(config, tmp_path)))
    result = runner.train(TRIALS[1])
    assert [row["epoch"] for row in result.epochs] == [1]
    assert result.epochs[0]["trainable_lora"] == 2 * 32
    assert {path.name for path in (tmp_path / TRIALS[1].name).iterdir()} >= {"last.ckpt", "best.ckpt", "config.yaml"}


@pytest.fixture
def config(tiny_encoder, glue_folder):
    return {
        "trainer": {"max_epochs": 2, "accelerator": "cpu", "precision": "32-true"},
        "model": {"encoder": tiny_encoder(), "learning_rate": 1e-2},
        "data": {"source": str(glue_folder), "batch_size": 8},
    }


def test_the_curve_of_accumulated_batches_is_of_whole_losses(config, tmp_path, monkeypatch):
    """As that of joint trials; Lightning's own losses are shares of a step's."""
    monkeypatch.setattr("lora_pl.ablation.record.CURVE_STEPS", 1)
    config["model"]["dropout"] = 0.0
    curves = []
    for number in (1, 2):
        config["trainer"] |= {"accumulate_grad_batches": number, "max_steps": 1}
        curves.append(TrialRunner(config, tmp_path / str(number)).train(TRIALS[0]).curve)
    assert curves[1][0][1] == pytest.approx(curves[0][0][1])


@pytest.fixture
def stop_at(monkeypatch):
    """Sends SIGTERM at the given of the steps that it counts."""
    steps, begin = [], EpochRecord.on_train_batch_start

    def watched(self, trainer, module, batch, batch_idx):
        steps.append(trainer.global_step)
        if len(steps) == at.get("step"):
            os.kill(os.getpid(), signal.SIGTERM)
        begin(self, trainer, module, batch, batch_idx)

    at: dict[str, int] = {}
    monkeypatch.setattr(EpochRecord, "on_train_batch_start", watched)
    return lambda step: steps.clear() or at.update(step=step) or steps


def rows_of(outcomes) -> list[dict]:
    return [
        {key: value for key, value in row.items() if key not in TIMES} for outcome in outcomes for row in outcome.rows()
    ]


def test_a_seed_of_the_data_leaves_each_trial_its_own_model(config, tmp_path):
    config["trainer"] |= {"max_epochs": 1, "limit_train_batches": 1}
    runner = TrialRunner(config, tmp_path, data_seed=0)
    losses = [runner.train(lora(2, seed)).epochs[0]["train_loss"] for seed in (0, 1)]
    assert losses[0] != losses[1]


def test_options_of_one_joint_trial_are_not_those_of_another(config, tmp_path):
    config["trainer"] |= {"max_epochs": 1, "limit_train_batches": 2}
    plain = Trial("plain", 1)
    unit = (Trial("changed", 0, {}, {LR: 1e-4, "model.lora.variant": "dora", "model.lora.lr_ratio": 4.0}), plain)
    joint, alone = (TrialRunner(config, tmp_path / name) for name in ("joint", "alone"))
    assert {row["pack"] for row in rows_of(joint(unit))} == {2}
    alone.train(plain)
    settings, expected = (
        read_checkpoint(tmp_path / name / plain.name / "last.ckpt")["hyper_parameters"] for name in ("joint", "alone")
    )
    assert settings == expected


@pytest.mark.parametrize(
    "dtype",
    ["bfloat16", pytest.param("int8", marks=pytest.mark.skipif(not int8_is_fast(), reason="needs AVX512_VNNI"))],
)
def test_joint_trials_of_dora_start_from_the_norms_of_the_weights_before_the_cast(dtype, config, tmp_path):
    """At a rate too small to change anything, they end with the magnitudes that each has alone."""
    config["trainer"] |= {"max_epochs": 1, "limit_train_batches": 1}
    config["model"] |= {"base_dtype": dtype, "learning_rate": 1e-12, "lora": {"variant": "dora"}}
    unit = (lora(2), lora(4))
    joint, alone = (TrialRunner(config, tmp_path / name) for name in ("joint", "alone"))
    assert {row["pack"] for row in rows_of(joint(unit))} == {2}
    alone.train(unit[1])
    found, expected = (read_checkpoint(tmp_path / name / unit[1].name / "last.ckpt") for name in ("joint", "alone"))
    assert found["hyper_parameters"] == expected["hyper_parameters"]
    magnitudes = [key for key in expected["state_dict"] if key.endswith("lora_magnitude_vector")]
    assert len(magnitudes) == 2
    assert all(torch.equal(found["state_dict"][key], expected["state_dict"][key]) for key in magnitudes)


@pytest.mark.parametrize(("sentences", "training"), [(None, 1), (40, 3)])
def test_joint_trials_read_once_what_no_seed_draws(sentences, training, config, tmp_path, monkeypatch):
    read, splits = SentenceDataModule.read, []
    monkeypatch.setattr(SentenceDataModule, "read", lambda self, split: splits.append(split) or read(self, split))
    config["trainer"] |= {"max_epochs": 1, "limit_train_batches": 1}
    config["data"]["train_sentences"] = sentences
    TrialRunner(config, tmp_path)((lora(2), lora(2, 1), lora(4)))
    assert Counter(splits) == {"train": training, "validation": 1}


def test_joint_trials_that_stop_after_their_epochs_validation_are_resumed(config, stop_at, tmp_path):
    """Six steps an epoch, validated after the fourth, stopped after the fifth."""
    config["trainer"]["val_check_interval"] = 4
    unit = (lora(2), lora(2, 1))
    whole = TrialRunner(config, tmp_path / "whole")(unit)
    steps, runner = stop_at(5), TrialRunner(config, tmp_path / "stopped")
    with pytest.raises(RunStopped):
        runner(unit)
    resumed = runner(unit)
    assert len(steps) == 12
    assert rows_of(resumed) == rows_of(whole)
    assert {row["pack"] for row in rows_of(resumed)} == {2}
    assert [outcome.result.curve for outcome in resumed] == [outcome.result.curve for outcome in whole]


def test_a_stopped_trial_whose_options_have_changed_starts_over(config, stop_at, tmp_path, capsys):
    steps, runner = stop_at(8), TrialRunner(config, tmp_path)
    with pytest.raises(RunStopped):
        runner((lora(2),))
    (outcome,) = runner((lora(2, **{LR: 1e-4}),))
    assert len(steps) == 8 + 12
    assert [row["epoch"] for row in outcome.rows()] == [1, 2]
    said = capsys.readouterr().err
    assert (
        f"r2-s0: training starts over: these options differ from the saved run: {LR} (was 0.01, now 0.0001)\n" in said
    )


def test_a_trial_that_early_stopping_has_ended_stays_ended(config, stop_at, tmp_path):
    config |= {"early_stopping_patience": 1, "trainer": {**config["trainer"], "max_epochs": 9}}
    config["model"]["learning_rate"] = 1e-9
    steps, runner = stop_at(0), TrialRunner(config, tmp_path)
    first, again = (rows_of(runner((lora(2),))) for _ in range(2))
    assert len(steps) == 2 * 6
    assert first == again


def test_a_unit_that_runs_one_by_one_is_resumed_so(config, stop_at, tmp_path, monkeypatch):
    """Its joint trials have failed; the first has ended, the second is stopped. Nothing of groups stays."""
    step = JointTrials.training_step

    def broken(self, batches, batch_idx):
        if self.global_step == 3:
            raise RuntimeError("NaN")
        return step(self, batches, batch_idx)

    monkeypatch.setattr(JointTrials, "training_step", broken)
    unit, runner = (lora(2), lora(2, 1)), TrialRunner(config, tmp_path)
    steps = stop_at(4 + 12 + 8)
    with pytest.raises(RunStopped):
        runner(unit)
    assert {row["pack"] for row in rows_of(runner(unit))} == {1}
    assert len(steps) == 4 + 2 * 12
    (tmp_path / "joint-0123456789abcdef").mkdir()
    runner.remove_groups()
    assert not [path.name for path in tmp_path.iterdir() if "joint" in path.name]


def test_an_optimizer_step_of_the_loss_curve_is_one_of_several_batches(config, tmp_path):
    config["trainer"] |= {"accumulate_grad_batches": 2, "max_epochs": 4}
    assert [step for step, _ in TrialRunner(config, tmp_path).train(lora(2)).curve] == [5, 10]
