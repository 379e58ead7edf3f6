"""Which callback keeps a run's best checkpoint."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


def best_keeper(trainer: Trainer, pl_module: LightningModule) -> ModelCheckpoint | None:
    """The first that follows the model's monitor."""
    keepers = (callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint))
    return next((keeper for keeper in keepers if keeper.monitor == pl_module.monitor), None)
