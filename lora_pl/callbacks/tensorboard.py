"""TensorBoard among a trainer's loggers."""

from __future__ import annotations

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger


def tensorboard_loggers(trainer: Trainer) -> list[TensorBoardLogger]:
    """Those of the trainer's loggers that write for TensorBoard, first or not."""
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
