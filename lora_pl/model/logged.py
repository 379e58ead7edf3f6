"""When a step is logged, and its loss."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor


def is_logged(trainer: Trainer) -> bool:
    """In `on_train_batch_end`: whether Lightning logs the step that the batch has ended, if it has ended one."""
    logs: bool = trainer._logger_connector.should_update_logs
    return logs and not trainer.fit_loop.epoch_loop._should_accumulate()


def loss_of(trainer: Trainer, outputs: Any) -> Tensor | None:
    """The batch's own, of which Lightning's outputs have the share in an accumulated step; None if it was skipped."""
    loss: Tensor | None = (outputs or {}).get("loss")
    return None if loss is None else loss.detach() * trainer.accumulate_grad_batches
