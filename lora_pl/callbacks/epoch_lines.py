"""Progress for log files and pipes."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lora_pl.reporting import say


class EpochLines(Callback):
    """Prints a line of metrics after each epoch's validation, where no terminal shows a progress bar."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the epoch's metrics."""
        say(epoch_line(trainer))


def epoch_name(trainer: Trainer) -> str:
    """`epoch 1/4`; `epoch 1` in a run without a last epoch."""
    last = f"/{trainer.max_epochs}" if (trainer.max_epochs or -1) > 0 else ""
    return f"epoch {trainer.current_epoch + 1}{last}"


def epoch_line(trainer: Trainer) -> str:
    """The epoch that has ended, with its loss and the metrics of its validation."""
    # the epoch's other training metrics are logged after the callbacks' hook
    metrics: dict[str, Any] = {n: v for n, v in trainer.callback_metrics.items() if n == "train/loss"}
    metrics |= {n: v for n, v in trainer.progress_bar_metrics.items() if n.startswith("val/")}
    shown = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
    return f"{epoch_name(trainer)}  step {trainer.global_step}  {shown}"
