"""The two checkpoints of a run."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


class BestCheckpoint(ModelCheckpoint):
    """Keeps `best.ckpt`, by the task's own metric, and `last.ckpt` in the run's folder."""

    def __init__(self, folder: str | Path) -> None:
        super().__init__(dirpath=folder, filename="best", mode="max", save_last=True, auto_insert_metric_name=False)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the metric from the model's task."""
        self.monitor = pl_module.monitor  # type: ignore[assignment]
        super().setup(trainer, pl_module, stage)
