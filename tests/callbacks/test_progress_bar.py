"""The bar in a terminal, as its reader sees it."""

import os
import termios
import threading
from types import SimpleNamespace

import pytest
from lightning.pytorch.callbacks import Callback, RichProgressBar, TQDMProgressBar
from lightning.pytorch.callbacks import ProgressBar as lightning_bar

from lora_pl import LoRAClassifier, Run, SentenceDataModule
from lora_pl.callbacks.epoch_lines import EpochLines
from lora_pl.errors import UserError
from lora_pl.training.trainer import shows_bar
from tests.support import run_in_process


def on_a_terminal(monkeypatch, function) -> list[str]:
    """The lines that a pseudo-terminal shows of what the function prints: a return goes back to the line's start."""
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    read = bytearray()
    reader = threading.Thread(target=lambda: [read.extend(chunk) for chunk in iter(lambda: _read(ours), b"")])
    reader.start()
    with monkeypatch.context() as patch, os.fdopen(theirs, "w", buffering=1) as stream:
        patch.setattr("sys.stdout", stream)
        patch.setattr("sys.stderr", stream)
        function()
    reader.join()
    os.close(ours)
    return [_overwritten(line.rstrip("\r")) for line in read.decode().split("\n")]


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 4096)
    except OSError:  # nobody writes any more
        return b""


def _overwritten(line: str) -> str:
    shown = ""
    for part in line.split("\r"):
        shown = part + shown[len(part) :]
    return shown.rstrip()


class Seen(Callback):
    """The losses, the bar's and the steps'."""

    def __init__(self):
        self.shown, self.losses = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, *given):
        self.losses.append(float(outputs["loss"]))

    def on_train_batch_start(self, trainer, pl_module, *given):
        self.shown.append(trainer.progress_bar_callback.get_metrics(trainer, pl_module).get("loss"))


def test_the_bar_shows_the_loss_that_was_logged_last(monkeypatch, tiny_encoder, glue_folder):
    """Which is the only one that is read from the device."""
    data = SentenceDataModule(source=str(glue_folder), encoder=tiny_encoder(), batch_size=8)
    model, seen = LoRAClassifier.for_data(data), Seen()
    options = {"accelerator": "cpu", "precision": "32-true", "log_every_n_steps": 2, "callbacks": [seen]}
    on_a_terminal(monkeypatch, lambda: Run("bar").fit(model, data, max_steps=5, **options))
    _, second, _, fourth, _ = seen.losses
    assert seen.shown == [None, None, second, second, fourth]


def test_it_reads_the_loss_of_no_other_batch_of_an_accumulated_step(monkeypatch, tiny_encoder, glue_folder):
    data = SentenceDataModule(source=str(glue_folder), encoder=tiny_encoder(), batch_size=8)
    model, seen = LoRAClassifier.for_data(data), Seen()
    options = {"accelerator": "cpu", "precision": "32-true", "log_every_n_steps": 2, "callbacks": [seen]}
    on_a_terminal(monkeypatch, lambda: Run("bar").fit(model, data, max_steps=3, accumulate_grad_batches=2, **options))
    assert seen.shown == [None] * 4 + [pytest.approx(2 * seen.losses[3])] * 2, "Lightning divides the losses by 2"


def test_each_epoch_leaves_a_line_above_the_bar(monkeypatch, tiny_encoder, glue_folder):
    data = SentenceDataModule(source=str(glue_folder), encoder=tiny_encoder())
    model, options = LoRAClassifier.for_data(data), {"accelerator": "cpu", "precision": "32-true"}
    lines = on_a_terminal(monkeypatch, lambda: Run("bar").fit(model, data, max_epochs=3, **options))
    for epoch in (1, 2, 3):
        assert [line for line in lines if line.startswith(f"epoch {epoch}/3  step ") and "val/accuracy 0." in line]
    bars = [line for line in lines if "it/s" in line]
    assert bars[-1].startswith("epoch 3/3: 100%")
    assert "accuracy=" in bars[-1]
    assert not [line for line in lines if "Epoch" in line]


@pytest.mark.parametrize("bar", [TQDMProgressBar, RichProgressBar])
@pytest.mark.parametrize("options", [{}, {"enable_progress_bar": True}])
@pytest.mark.parametrize("reports", [True, False])
def test_a_bar_of_the_users_replaces_the_runs(bar, options, reports, monkeypatch):
    def start() -> None:
        own = bar()
        trainer = Run("mine", reports=reports).trainer(callbacks=[own], accelerator="cpu", logger=False, **options)
        assert [c for c in trainer.callbacks if isinstance(c, lightning_bar | EpochLines)] == [own]

    start()
    on_a_terminal(monkeypatch, start)


def test_so_does_one_of_a_verb(checkpoint, tmp_path):
    given = ["--ckpt_path", str(checkpoint), "--trainer.callbacks", "TQDMProgressBar"]
    run_in_process(["validate", *given], tmp_path, check=True)


def test_a_bar_that_is_disabled_is_refused():
    with pytest.raises(UserError, match="^trainer: "):
        Run("mine").trainer(callbacks=TQDMProgressBar(), enable_progress_bar=False, accelerator="cpu", logger=False)


def test_output_that_goes_elsewhere_has_no_bar(monkeypatch):
    streams = {name: SimpleNamespace(isatty=lambda: True) for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(f"lora_pl.training.trainer.sys.{name}", stream)
    assert shows_bar({})
    for stream in streams.values():
        with monkeypatch.context() as patch:
            patch.setattr(stream, "isatty", lambda: False)
            assert not shows_bar({})
    assert not shows_bar({"enable_progress_bar": False})
