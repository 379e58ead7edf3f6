"""Sentences and tokens per second."""

from __future__ import annotations

import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lora_pl.model.logged import is_logged


class Throughput(Callback):
    """Logs `throughput/sentences_per_second` and `.../tokens_per_second` over the steps between two logs.

    Padding does not count; processes add up. The time is that of the steps alone, without batches, validation and
    checkpoints.
    """

    def __init__(self) -> None:
        self._seconds = self._started = 0.0
        self._sentences = self._tokens = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the step's clock."""
        self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop it, and log where Lightning does."""
        self._sentences += len(batch)
        self._tokens += batch.tokens
        logs = is_logged(trainer)
        if logs and pl_module.device.type == "cuda":
            torch.cuda.synchronize()  # kernels may still be running
        self._seconds += time.perf_counter() - self._started
        if logs:
            self._log(trainer)

    def _log(self, trainer: Trainer) -> None:
        rate = trainer.world_size / self._seconds
        figures = {"sentences_per_second": self._sentences * rate, "tokens_per_second": self._tokens * rate}
        for logger in trainer.loggers:
            named = {f"throughput/{name}": value for name, value in figures.items()}
            # the step of Lightning's own points of this batch
            logger.log_metrics(named, step=trainer.fit_loop.epoch_loop._batches_that_stepped)
        self._seconds, self._sentences, self._tokens = 0.0, 0, 0
