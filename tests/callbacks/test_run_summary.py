import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lora_pl.callbacks.run_summary import RunSummary, _lines, _say_if_nothing_was_learned
from lora_pl.data.datamodule import SentenceDataModule
from lora_pl.data.tasks import get_task


@pytest.mark.parametrize("name", ["sst2", "mrpc"])
def test_the_last_line_asks_about_an_example_of_the_task(name):
    module = SimpleNamespace(task=get_task(name))
    trainer = SimpleNamespace(callbacks=[], loggers=[], lightning_module=module, datamodule=None)
    *_, last = _lines(trainer, "elsewhere/last.ckpt")
    assert last.endswith(get_task(name).example_command("elsewhere/last.ckpt"))


@pytest.mark.parametrize(
    ("monitor", "best", "said"),
    [
        ("val/accuracy", 0.7, ""),
        ("val/accuracy", 0.5, "than the most frequent label, 60.0% of the sentences"),
        ("val/accuracy", float(np.float32(0.6)), "than the most frequent label"),
        ("val/pearson", 0.1, ""),
        ("val/pearson", -0.1, "than one answer for all sentences"),
        ("val/matthews", math.nan, "than one answer for all sentences"),
        ("val/macro_f1", 0.1, ""),
    ],
)
def test_a_run_that_learned_nothing_says_so(monitor, best, said, capsys):
    data = SentenceDataModule(source="sample")
    data._tokens["validation"] = SimpleNamespace(labels=np.array([0, 1, 1, 1, 0], np.float32))
    _say_if_nothing_was_learned(SimpleNamespace(datamodule=data), monitor, best)
    assert bool(said) == bool(found := " ".join(capsys.readouterr().err.split()))
    assert said in found


def test_another_metrics_best_is_not_the_monitors(tmp_path, capsys):
    keeper = ModelCheckpoint(tmp_path, monitor="train/loss")
    keeper.best_model_path, keeper.best_model_score = str(tmp_path / "own.ckpt"), torch.tensor(0.31)
    module = SimpleNamespace(monitor="val/accuracy", task=get_task("sst2"))
    trainer = SimpleNamespace(
        callbacks=[keeper], checkpoint_callbacks=[keeper], loggers=[], datamodule=None, lightning_module=module,
        callback_metrics={}, global_step=30,
    )  # fmt: skip
    summary = RunSummary()
    summary.on_fit_start(trainer, module)
    summary.on_train_start(trainer, module)
    summary.on_fit_end(trainer, module)
    said = capsys.readouterr().err
    assert "own.ckpt" in said
    assert "30 steps without validation" in said
    assert "0.31" not in said


def test_a_run_without_a_step_says_so(capsys):
    summary, trainer = RunSummary(), SimpleNamespace(callbacks=[], checkpoint_callbacks=[], global_step=30)
    summary.on_fit_start(trainer, None)
    summary.on_fit_end(trainer, None)
    assert "the run ends at step 30" in capsys.readouterr().err
    summary.on_train_start(trainer, None)
    summary.on_fit_end(trainer, None)
    assert not capsys.readouterr().err
