import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping

from lora_pl import LoRAClassifier, Run, SentenceDataModule
from lora_pl.errors import UserError
from lora_pl.model.metrics import StageMetrics
from lora_pl.storage.checkpoint import read_checkpoint
from tests.attack.test_runs import Killed, KilledAt
from tests.training.test_exact_resume import assert_same_end


@pytest.fixture
def fit(tiny_encoder, glue_folder):
    """A run that never improves, and ends by its patience."""

    def run(name: str, patience: int | None = 2, callbacks=(), force: bool = False) -> Run:
        data = SentenceDataModule(source=str(glue_folder), encoder=tiny_encoder(), batch_size=48)
        made = Run(name, resume=True, force=force, save_every_steps=1, early_stopping_patience=patience)
        options = {"callbacks": [*callbacks], "accelerator": "cpu", "logger": False, "num_sanity_val_steps": 0}
        model = LoRAClassifier.for_data(data, learning_rate=1e-9)
        made.fit(model, data, max_epochs=7, precision="32-true", **options)
        return made

    return run


def epochs(run: Run) -> int:
    return read_checkpoint(run.last_checkpoint)["epoch"] + 1


def test_a_killed_run_ends_as_the_whole_one_and_stays_ended(fit, capsys):
    whole = fit("whole")
    assert epochs(whole) == 3
    assert "stopped early: Monitored metric val/accuracy did not improve in the last 2" in capsys.readouterr().err
    with pytest.raises(Killed):
        fit("killed", callbacks=[KilledAt(2)])
    resumed = fit("killed")
    assert_same_end(whole.folder, resumed.folder)
    assert epochs(fit("killed")) == 3
    assert "early stopping has ended this run" in capsys.readouterr().err
    for patience in (None, 3):
        with pytest.raises(UserError, match="early_stopping_patience") as error:
            fit("killed", patience)
        assert error.value.key == "resume"
    assert epochs(fit("killed", 4, force=True)) == 5


def test_the_models_direction_counts(fit, monkeypatch):
    monkeypatch.setattr(LoRAClassifier, "monitor", "val/loss")

    class Rising(Callback):
        def on_validation_end(self, trainer, pl_module):
            trainer.callback_metrics["val/loss"] = torch.tensor(float(trainer.current_epoch))

    assert epochs(fit("min", 1, [Rising()])) == 2


def test_a_metric_that_is_nan_is_no_new_best(fit, monkeypatch):
    """It is one validation of the patience's, and never in best.ckpt."""
    compute = StageMetrics.compute

    def broken(self, stage):
        values = compute(self, stage)
        if stage == "val" and left:
            left.pop()
            values = {name: value * torch.nan for name, value in values.items()}
        return values

    monkeypatch.setattr(StageMetrics, "compute", broken)
    left = [None]
    run = fit("first")
    assert epochs(run) == 4
    assert read_checkpoint(run.best_checkpoint)["epoch"] == 1
    left = [None] * 2
    run = fit("all")
    assert epochs(run) == 2
    assert not run.best_checkpoint.exists()


def test_what_is_refused(fit):
    for patience, callbacks in ((0, []), (1, [EarlyStopping("val/loss")])):
        with pytest.raises(UserError, match="^early_stopping_patience: "):
            fit("refused", patience, callbacks)
