"""The two checkpoints of a run."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


class BestCheckpoint(ModelCheckpoint):
    """Keeps `best.ckpt` of a run, by the task's own metric."""

    def __init__(self, folder: str | Path) -> None:
        super().__init__(dirpath=folder, filename="best", mode="max", auto_insert_metric_name=False)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the metric from the model's task."""
        self.monitor = pl_module.monitor  # type: ignore[assignment]
        super().setup(trainer, pl_module, stage)


class LastCheckpoint(ModelCheckpoint):
    """Keeps `last.ckpt` after every validation.

    Apart from `BestCheckpoint`, because ModelCheckpoint's `save_last` writes only where the best is written too, and
    a run without a new best would resume from long ago.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__(dirpath=folder, filename="last", auto_insert_metric_name=False, enable_version_counter=False)
