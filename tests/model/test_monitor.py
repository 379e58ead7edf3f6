from pathlib import Path

import pytest

from lora_pl import LoRAClassifier, Run, SentenceDataModule
from lora_pl.data.tasks import CUSTOM_TASK, get_task
from lora_pl.errors import UserError
from lora_pl.model.monitor import mode_of, reported
from lora_pl.storage.checkpoint import read_checkpoint


def test_what_is_reported_of_a_task():
    assert reported(CUSTOM_TASK) == ["accuracy", "macro_f1", "loss"]
    assert reported(get_task("mnli")) == ["accuracy", "loss", "accuracy_mismatched", "loss_mismatched"]
    assert reported(get_task("mnli"), 1) == ["accuracy", "loss"]


def test_losses_are_minimized():
    assert [mode_of(name) for name in ("loss", "val/loss_mismatched")] == ["min", "min"]
    assert [mode_of(name) for name in ("accuracy", "val/macro_f1")] == ["max", "max"]


def test_an_unknown_metric_names_those_there_are(tiny_encoder):
    with pytest.raises(UserError, match="^model.monitor: .*accuracy, f1, loss; got 'macro_f1'"):
        LoRAClassifier(encoder=tiny_encoder(), task="mrpc", monitor="macro_f1")


def fit(tiny_encoder, glue_folder, epochs: int, monitor: str | None = "loss", rate: float = 3e-2, **changes) -> Run:
    data = SentenceDataModule(source=str(glue_folder), encoder=tiny_encoder(), batch_size=8)
    run = Run("mine", **changes)
    model = LoRAClassifier.for_data(data, monitor=monitor, learning_rate=rate)
    run.fit(model, data, max_epochs=epochs, num_sanity_val_steps=0)
    return run


def test_a_split_that_own_files_lack_is_refused(tiny_encoder):
    Path("own.csv").write_text("premise,hypothesis,label\na film,a plot,neutral\n")
    data = SentenceDataModule("mnli", train_file="own.csv", validation_file="own.csv", encoder=tiny_encoder())
    model = LoRAClassifier.for_data(data, monitor="loss_mismatched")
    with pytest.raises(UserError, match="accuracy, loss; got 'loss_mismatched'"):
        Run("mine").fit(model, data, max_steps=1)


def test_the_best_checkpoint_follows_the_monitor(tiny_encoder, glue_folder, capsys):
    """At this rate the loss soon rises again; stopped and resumed, the best is still the least."""
    fit(tiny_encoder, glue_folder, 2, rate=0.1)
    run = fit(tiny_encoder, glue_folder, 4, rate=0.1, resume=True)
    best, last = (read_checkpoint(path) for path in (run.best_checkpoint, run.last_checkpoint))
    state = next(state for key, state in last["callbacks"].items() if key.startswith("BestCheckpoint"))
    assert state["best_model_score"] < last["lora_pl_resume"]["metrics"]["val/loss"]
    assert best["global_step"] < last["global_step"]
    assert f"best loss {state['best_model_score']:.4f} on validation" in capsys.readouterr().err


@pytest.mark.parametrize("configured", [True, False])
def test_a_resumed_run_keeps_its_monitor(configured, tiny_encoder, glue_folder):
    run = fit(tiny_encoder, glue_folder, 1)
    if not configured:
        (run.folder / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"loss, now (None|val/accuracy)") as error:
        fit(tiny_encoder, glue_folder, 2, monitor=None, resume=True)
    assert error.value.key == "resume"
