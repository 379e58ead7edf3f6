"""Sentences and tokens per second."""

from __future__ import annotations

import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class Throughput(Callback):
    """Logs `throughput/sentences_per_second` and `throughput/tokens_per_second` over the steps between two logs.

    Only real tokens count, no padding; all processes together. The time is that of the steps: making batches,
    validation and checkpoints are left out.
    """

    def __init__(self) -> None:
        self._seconds = 0.0
        self._sentences = self._tokens = self._batches = 0
        self._started = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the clock."""
        self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop the clock, and log at the trainer's interval."""
        self._sentences += len(batch)
        self._tokens += batch.tokens
        self._batches += 1
        logs = self._batches % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
        if logs and pl_module.device.type == "cuda":
            torch.cuda.synchronize()  # the steps so far are on their way, not done
        self._seconds += time.perf_counter() - self._started
        if logs:
            self._log(trainer)

    def _log(self, trainer: Trainer) -> None:
        rate = trainer.world_size / self._seconds
        rates = {"sentences": self._sentences * rate, "tokens": self._tokens * rate}
        for logger in trainer.loggers:
            named = {f"throughput/{unit}_per_second": value for unit, value in rates.items()}
            logger.log_metrics(named, step=trainer.global_step)
        self._seconds, self._sentences, self._tokens = 0.0, 0, 0
