"""What the epochs of joint trials came to, and each trial's TensorBoard run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from lora_pl.ablation.grid import Trial
from lora_pl.ablation.joint import JointData, JointTrials
from lora_pl.ablation.record import EpochRecord
from lora_pl.ablation.table import Row
from lora_pl.callbacks.hparams_record import write_hparams
from lora_pl.storage.checkpoint import LAST, SUFFIX, WholeFileCheckpointIO


class JointRecord(EpochRecord):
    """As `TrialRecord`, for joint trials; writes each trial's log and, at the end, its `last.ckpt`.

    Args:
        folder: Where the trials have their folders.
        trials: The joint trials.
        logs: Whether to write TensorBoard runs.
        checkpoints: Whether to write checkpoints.
    """

    def __init__(self, folder: Path, trials: Sequence[Trial], logs: bool = True, checkpoints: bool = True) -> None:
        super().__init__(len(trials))
        self.folder, self.trials, self.checkpoints = folder, trials, checkpoints
        named = [trial.name for trial in trials] if logs else []
        self._loggers = [TensorBoardLogger(folder, name=name, version="", default_hp_metric=False) for name in named]

    def of_step(self, pl_module: LightningModule, outputs: Any, batch: Any) -> list[tuple[int, Tensor | None]]:
        """The losses that the joint step has kept."""
        assert isinstance(pl_module, JointTrials)
        return [(len(own), loss) for own, loss in zip(batch, pl_module.step_losses, strict=True)]

    def of_epoch(self, trainer: Trainer, pl_module: LightningModule, index: int) -> Row:
        """A trial's own; also written to its log."""
        assert isinstance(pl_module, JointTrials)
        metric = pl_module.monitor.removeprefix("val/")
        lora = sum(parameter.numel() for parameter in pl_module.bank.parameters(pl_module.bank.names[index]))
        head = sum(parameter.numel() for parameter in pl_module.heads[index].parameters())
        train, val = (pl_module.epoch_metrics(index, stage) for stage in ("train", "val"))
        if self._loggers:
            named = {f"train/{name}": value for name, value in train.items()}
            named |= {f"val/{name}": value for name, value in val.items()}
            self._loggers[index].log_metrics(named, step=trainer.global_step)
        return {
            "trainable_lora": lora,
            "trainable_head": head,
            "trainable": lora + head,
            "train_loss": train["loss"],
            "validation_loss": val["loss"],
            "metric": metric,
            "validation": val[metric],
        }

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log every trial's settings."""
        assert isinstance(pl_module, JointTrials)
        for logger, settings, data in zip(self._loggers, pl_module.settings, _data(trainer), strict=False):
            write_hparams(logger, {"model": settings, "data": data}, pl_module.monitor)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the logs and write the checkpoints."""
        assert isinstance(pl_module, JointTrials)
        for logger in self._loggers:
            logger.finalize("success")
        for index, (trial, data) in enumerate(zip(self.trials, _data(trainer), strict=True)):
            if self.checkpoints:
                path = self.folder / trial.name / f"{LAST}{SUFFIX}"
                WholeFileCheckpointIO().save_checkpoint(pl_module.trial_checkpoint(index, data), path)


def _data(trainer: Trainer) -> list[dict[str, Any]]:
    data: JointData = trainer.datamodule  # type: ignore[attr-defined]
    return [dict(own.hparams) for own in data.trials_data]
