"""Progress for log files and pipes."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer

from lora_pl.reporting import say


class EpochLines(Callback):
    """Prints a line of metrics after each epoch's validation, where no terminal shows a progress bar."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the epoch's metrics."""
        # the epoch's other training metrics are logged after this hook
        metrics = {n: v for n, v in trainer.progress_bar_metrics.items() if n == "train/loss" or n.startswith("val/")}
        shown = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        say(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  step {trainer.global_step}  {shown}")
