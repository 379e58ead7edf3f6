"""What a run saves, and when: between two steps, where nothing is in flight."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

from lora_pl.errors import UserError
from lora_pl.storage.checkpoint import BEST, LAST, PREVIOUS, SUFFIX
from lora_pl.storage.write_whole import remove_unfinished
from lora_pl.training.resume.stop_signals import RunStopped, StopSignals, requeue

SAVE = 1  # no signal that stops a run has this number


class BestCheckpoint(ModelCheckpoint):
    """Keeps `best.ckpt` of a run, by the task's own metric.

    It notes a new best after validation; `write` saves it, between two steps, so that it can be resumed exactly.
    """

    def __init__(self, folder: str | Path) -> None:
        # no version counter: what lies there is from the same run, before it was killed
        super().__init__(
            dirpath=folder, filename=BEST, mode="max", auto_insert_metric_name=False, enable_version_counter=False
        )
        self._noted: str | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the metric from the model's task."""
        self.monitor = pl_module.monitor  # type: ignore[assignment]
        super().setup(trainer, pl_module, stage)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the best score, in whichever folder the run lies now."""
        path = str(Path(str(self.dirpath)) / f"{BEST}{SUFFIX}")
        scores = list(state_dict["best_k_models"].values())
        self.current_score = state_dict.get("current_score")
        super().load_state_dict(
            {
                **state_dict,
                "dirpath": self.dirpath,
                "best_model_path": path if scores else "",
                "kth_best_model_path": path if scores else "",
                "best_k_models": {path: scores[0]} if scores else {},
            }
        )

    def write(self, trainer: Trainer) -> None:
        """Save the best that was noted since the last call."""
        if self._noted is not None:
            path, self._noted = self._noted, None
            super()._save_checkpoint(trainer, path)

    @property
    def is_noted(self) -> bool:
        """Whether `write` has something to save."""
        return self._noted is not None

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        self._noted = filepath
        self._last_global_step_saved = trainer.global_step


class LastCheckpoint(Checkpoint):
    """Keeps `last.ckpt`, and the one before it as `previous.ckpt` until the run ends.

    A class of its own, because ModelCheckpoint's `save_last` writes only where the best is written too, and
    a run without a new best would resume from long ago.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).resolve()
        self.last_model_path = ""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remove what a killed run left half-written."""
        self.folder = Path(trainer.strategy.broadcast(str(self.folder)))
        if trainer.is_global_zero:
            for name in (BEST, LAST, PREVIOUS):
                remove_unfinished(self.folder / f"{name}{SUFFIX}")

    def write(self, trainer: Trainer) -> None:
        """Save."""
        path = self.folder / f"{LAST}{SUFFIX}"
        trainer.save_checkpoint(path, storage_options={"keep": str(self._previous)})
        self.last_model_path = str(path)

    def tidy(self, trainer: Trainer) -> None:
        """A run that is done keeps its last and its best."""
        if trainer.is_global_zero:
            self._previous.unlink(missing_ok=True)

    @property
    def _previous(self) -> Path:
        return self.folder / f"{PREVIOUS}{SUFFIX}"


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
                raise UserError(f"save_{name}", f"expected more than 0, got {value}")
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
            f"by {signal.Signals(signum).name} after step {trainer.global_step}, saved in "
            f"{self.last.last_model_path}; to resume: lora_pl fit --run_name {self.last.folder.name} --resume",
        )


def _agreed(trainer: Trainer, pl_module: LightningModule, due: int) -> int:
    """The most that any process asks for: they save and stop together."""
    if trainer.world_size == 1:
        return due
    most = torch.tensor(due, device=pl_module.device)
    torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
    return int(most)
