"""What a run saves, and when: between two steps, where no step is in flight."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any, Required

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from torch import Tensor
from typing_extensions import TypedDict

from lora_pl.errors import UserError
from lora_pl.model.monitor import mode_of
from lora_pl.storage.checkpoint import BEST, LAST, PREVIOUS, SUFFIX
from lora_pl.storage.schema import require_values
from lora_pl.storage.write_whole import remove_unfinished
from lora_pl.training.resume.stop_signals import RunStopped, StopSignals, requeue

SAVE = 1  # below every signal that stops a run


class BestState(TypedDict, total=False):
    """What is read of the state of a `BestCheckpoint`."""

    best_k_models: Required[dict[str, Tensor]]
    best_model_score: Tensor | None
    current_score: Tensor | None
    kth_value: Tensor


class BestCheckpoint(ModelCheckpoint):
    """Keeps `best.ckpt` of a run, by the model's `monitor`.

    It notes a new best after validation; `write` saves it between two steps, from where a run can resume exactly.
    A metric that is NaN is never the best.
    """

    def __init__(self, folder: str | Path) -> None:
        # no version counter: an existing file is from the same run, before it was killed
        super().__init__(
            dirpath=folder, filename=BEST, mode="max", auto_insert_metric_name=False, enable_version_counter=False
        )
        self.noted: str | None = None
        """Where to save a new best; None if there is none."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the metric, and which of its values are better, from the model."""
        self.monitor = str(pl_module.monitor)
        self.mode = mode_of(self.monitor)
        super().setup(trainer, pl_module, stage)

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """Whether the metric is a new best; Lightning's own takes the first one whatever it is."""
        return current is not None and not current.isnan() and super().check_monitor_top_k(trainer, current)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score, also if the run's folder was moved."""
        require_values(state_dict, BestState, "checkpoint.state", "the best score: ")
        path = str(Path(str(self.dirpath)) / f"{BEST}{SUFFIX}")
        scores = list(state_dict["best_k_models"].values())
        self.current_score = state_dict.get("current_score")
        paths = dict.fromkeys(("best_model_path", "kth_best_model_path"), path if scores else "")
        models = {path: scores[0]} if scores else {}
        super().load_state_dict({**state_dict, **paths, "dirpath": self.dirpath, "best_k_models": models})

    def write(self, trainer: Trainer) -> None:
        """Save a best that was noted since the last call."""
        if self.noted is not None:
            path, self.noted = self.noted, None
            super()._save_checkpoint(trainer, path)

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        self.noted = filepath
        self._last_global_step_saved = trainer.global_step


class LastCheckpoint(Checkpoint):
    """Keeps `last.ckpt`, and the one before it as `previous.ckpt` until the run ends.

    ModelCheckpoint's `save_last` saves only with a new best, so that a run without one would resume from long ago.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).resolve()
        self.last_model_path = ""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remove partial files of a killed run."""
        self.folder = Path(trainer.strategy.broadcast(str(self.folder)))
        if trainer.is_global_zero:
            for name in (BEST, LAST, PREVIOUS):
                remove_unfinished(self.folder / f"{name}{SUFFIX}")

    def write(self, trainer: Trainer) -> None:
        """Save."""
        path = self.folder / f"{LAST}{SUFFIX}"
        trainer.save_checkpoint(path, storage_options={"keep": str(self._previous)})
        self.last_model_path = str(path)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove `previous.ckpt`; not in `on_train_end`, which a run that was killed at its very end does not reach."""
        if trainer.is_global_zero:
            self._previous.unlink(missing_ok=True)

    @property
    def _previous(self) -> Path:
        return self.folder / f"{PREVIOUS}{SUFFIX}"


class SavePoints(Callback):
    """Saves after each validation, every so many steps or minutes, before a stop, and at the end.

    After SIGTERM or Ctrl-C the step (with its whole window of accumulated gradients) and its validation finish, the run
    saves and ends with `RunStopped`; so it does after SIGUSR1 under SLURM, which also requeues the job.

    Args:
        best: Saved if there is a new best; None if none is kept.
        last: Saved at every save point.
        every_steps: Optimizer steps between saves.
        every_minutes: Minutes between saves, by the first process's clock.

    Raises:
        UserError: `save_every_steps`, `save_every_minutes`, not above 0.
    """

    def __init__(
        self, best: BestCheckpoint | None, last: LastCheckpoint, every_steps: int | None, every_minutes: float | None
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
        """Listen from here on: Lightning has just installed its own handlers."""
        self.signals.install()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen, and start the clock."""
        self.signals.install()
        self._saved_step, self._saved_at = trainer.global_step, time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember to save."""
        self._validated = not trainer.sanity_checking

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Before the step, save if it is due, and stop if a signal came."""
        if batch_idx % trainer.accumulate_grad_batches:
            return
        due = _agreed(trainer, pl_module, self.signals.received or SAVE * self._is_due(trainer))
        if due:
            self._save(trainer)
        if due > SAVE:
            self._stop(trainer, due)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save for the last time."""
        self._write(trainer)
        self.signals.remove()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Listen no more."""
        self.signals.remove()

    def _is_due(self, trainer: Trainer) -> bool:
        if self._validated or (self.best is not None and self.best.noted is not None):
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
            logger.save()  # log points reach the disk before their checkpoint
        self._write(trainer)
        self._validated = False
        self._saved_step, self._saved_at = trainer.global_step, time.monotonic()

    def _write(self, trainer: Trainer) -> None:
        if self.best is not None:
            self.best.write(trainer)
        self.last.write(trainer)

    def _stop(self, trainer: Trainer, signum: int) -> None:
        if signum == signal.SIGUSR1 and trainer.is_global_zero:
            requeue()
        raise RunStopped(
            signum,
            f"by {signal.Signals(signum).name} after step {trainer.global_step}, saved in "
            f"{self.last.last_model_path}; to resume: lora_pl fit --run_name {self.last.folder.name} --resume",
        )


def _agreed(trainer: Trainer, pl_module: LightningModule, due: int) -> int:
    """The maximum over processes, which save and stop together."""
    if trainer.world_size == 1:
        return due
    most = torch.tensor(due, device=pl_module.device)
    torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
    return int(most)
