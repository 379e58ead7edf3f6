"""A progress bar that fits into 80 columns."""

from __future__ import annotations

import sys
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from tqdm import tqdm

from lora_pl.callbacks.epoch_lines import epoch_line, epoch_name
from lora_pl.model.logged import is_logged, loss_of
from lora_pl.reporting import say


class ProgressBar(TQDMProgressBar):
    """Lightning's bar with short names: the `loss` that was logged last, and validation's metrics without `val/`.

    Each epoch leaves a line above it, that of `EpochLines`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.logged_loss: float | None = None
        """Read at logs alone, since a read waits for the device."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take the loss if it is logged."""
        if is_logged(trainer) and (loss := loss_of(trainer, outputs)) is not None:
            self.logged_loss = float(loss)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_train_epoch_start(self, trainer: Trainer, *args: Any) -> None:
        """Count epochs from 1, as the lines do."""
        super().on_train_epoch_start(trainer, *args)
        self.train_progress_bar.set_description(epoch_name(trainer))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the epoch's metrics above the bar."""
        super().on_train_epoch_end(trainer, pl_module)
        with tqdm.external_write_mode(file=sys.stderr):
            say(epoch_line(trainer))

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """The metrics behind the speed."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        loss = {} if self.logged_loss is None else {"loss": self.logged_loss}
        return {**loss, **{name.removeprefix("val/"): value for name, value in metrics.items()}}
