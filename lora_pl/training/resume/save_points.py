"""When a run saves: between two steps, where nothing is in flight."""

from __future__ import annotations

import signal
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lora_pl.errors import UserError
from lora_pl.training.resume.run_checkpoints import BestCheckpoint, LastCheckpoint
from lora_pl.training.resume.stop_signals import RunStopped, StopSignals, requeue

SAVE = 1  # no signal that stops a run has this number


class SavePoints(Callback):
    """Saves after each validation, every so many steps or minutes, before a stop, and at the end.

    SIGTERM and Ctrl-C let the step (the whole window of accumulated gradients) and its validation finish, save, and
    end the run with `RunStopped`; so does SIGUSR1 under SLURM, which also puts the job back into the queue.

    Args:
        best: Written where validation noted a new best.
        last: Written at every save point.
        every_steps: Optimizer steps between saves; by default as `every_minutes` says alone.
        every_minutes: Minutes between saves, by the first process's clock.
    """

    def __init__(
        self, best: BestCheckpoint, last: LastCheckpoint, every_steps: int | None, every_minutes: float | None
    ) -> None:
        for name, value in (("every_steps", every_steps), ("every_minutes", every_minutes)):
            if value is not None and value <= 0:
                raise UserError(f"save_{name}: expected more than 0, got {value}")
        self.best, self.last = best, last
        self.every_steps, self.every_minutes = every_steps, every_minutes
        self.signals = StopSignals()
        self._validated = False
        self._saved_step = 0
        self._saved_at = 0.0

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen, from here on: Lightning has just installed its own handlers."""
        self.signals.install()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen, and start the clock."""
        self.signals.install()
        self._saved_step, self._saved_at = trainer.global_step, time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember to save."""
        self._validated = not trainer.sanity_checking

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Save what is due, before the step."""
        if batch_idx % trainer.accumulate_grad_batches:
            return
        due = _agreed(trainer, pl_module, self.signals.received or SAVE * self._is_due(trainer))
        if due:
            self._save(trainer)
        if due > SAVE:
            self._stop(trainer, due)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save for the last time."""
        self.best.write(trainer)
        self.last.write(trainer)
        self.signals.remove()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tidy up; here, because a run that was killed at its very end has no training left to end."""
        self.last.tidy(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Listen no more."""
        self.signals.remove()

    def _is_due(self, trainer: Trainer) -> bool:
        if self._validated or self.best.is_noted:
            return True
        if trainer.global_step == self._saved_step:
            return False
        n = self.every_steps
        if n is not None and trainer.global_step // n > self._saved_step // n:
            return True
        waited = time.monotonic() - self._saved_at
        return trainer.is_global_zero and self.every_minutes is not None and waited >= 60 * self.every_minutes

    def _save(self, trainer: Trainer) -> None:
        for logger in trainer.loggers:
            logger.save()  # what was logged up to here is on the disk before the checkpoint is
        self.best.write(trainer)
        self.last.write(trainer)
        self._validated = False
        self._saved_step, self._saved_at = trainer.global_step, time.monotonic()

    def _stop(self, trainer: Trainer, signum: int) -> None:
        if signum == signal.SIGUSR1 and trainer.is_global_zero:
            requeue()
        raise RunStopped(
            signum,
            f"stopped by {signal.Signals(signum).name} after step {trainer.global_step}, saved in "
            f"{self.last.last_model_path}; to go on: lora_pl fit --run_name {self.last.folder.name} --resume",
        )


def _agreed(trainer: Trainer, pl_module: LightningModule, due: int) -> int:
    """The most that any process asks for: they save and stop together."""
    if trainer.world_size == 1:
        return due
    most = torch.tensor(due, device=pl_module.device)
    torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
    return int(most)
