"""A progress bar that fits into 80 columns."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar


class ProgressBar(TQDMProgressBar):
    """Lightning's bar with short names: `loss` of training, and validation's metrics without `val/`."""

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """The metrics behind the speed."""
        metrics = super().get_metrics(trainer, pl_module)
        return {
            name.removeprefix("train/").removeprefix("val/"): value
            for name, value in metrics.items()
            if name != "v_num"
        }
