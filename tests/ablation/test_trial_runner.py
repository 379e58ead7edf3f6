"""A study's configuration and a trial become a model, data and a run."""

import pickle

import pytest
from lightning.pytorch.callbacks import EarlyStopping

from lora_pl.ablation.grid import Trial
from lora_pl.ablation.study import auto_size, units_of
from lora_pl.ablation.trial_runner import TrialRunner, instantiated

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
    trials = [
        lora(4),
        lora(4, 1),
        lora(8, **{LR: 1.0}),
        lora(4, **{"model.dropout": 0.5}),
        lora(4, **{"data.task": "rte"}),
    ]
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


def test_a_trial_trains_in_another_process_and_with_the_studys_callbacks(tiny_encoder, glue_folder, tmp_path):
    config = {
        "trainer": {"max_epochs": 3, "accelerator": "cpu", "precision": "32-true", "callbacks": [
            {"class_path": "lightning.pytorch.callbacks.EarlyStopping",
             "init_args": {"monitor": "val/accuracy", "mode": "max", "stopping_threshold": 0.0}}]},
        "model": {"encoder": tiny_encoder(), "lora": {"lora_dropout": 0.1}},
        "data": {"source": str(glue_folder), "batch_size": 8},
        "save_every_steps": 4,
    }  # fmt: skip
    runner = pickle.loads(pickle.dumps(TrialRunner(config, tmp_path)))
    result = runner.train(TRIALS[1])
    assert [row["epoch"] for row in result.epochs] == [1]
    assert result.epochs[0]["trainable_lora"] == 2 * 32
    assert {path.name for path in (tmp_path / TRIALS[1].name).iterdir()} >= {"last.ckpt", "best.ckpt", "config.yaml"}
