"""What the epochs of packed trials came to, and each trial's TensorBoard run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from lora_pl.ablation.joint import JointData, JointTrials
from lora_pl.ablation.record import LossCurve, TrialResult
from lora_pl.ablation.table import Row
from lora_pl.callbacks.hparams_record import write_hparams
from lora_pl.storage.checkpoint import WholeFileCheckpointIO


class PackRecord(Callback):
    """As `TrialRecord`, for every trial of a pack; writes each trial's log and, at the end, its `last.ckpt`.

    Args:
        folder: Where the trials have their folders.
        logs: Whether to write TensorBoard runs.
        checkpoints: Whether to write checkpoints.
    """

    def __init__(self, folder: Path, logs: bool = True, checkpoints: bool = True) -> None:
        self.folder, self.logs, self.checkpoints = folder, logs, checkpoints
        self.results: list[TrialResult] = []
        self._losses: list[LossCurve] = []
        self._loggers: list[TensorBoardLogger] = []
        self._started = self._step_started = self._step_seconds = 0.0
        self._sentences: list[int] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the logs."""
        assert isinstance(pl_module, JointTrials)
        self._losses = [LossCurve() for _ in pl_module.trials]
        self.results = [TrialResult(curve=losses.points) for losses in self._losses]
        for trial, settings, data in zip(pl_module.trials, pl_module.settings, _data(trainer), strict=True):
            if self.logs:
                logger = TensorBoardLogger(self.folder, name=trial.name, version="", default_hp_metric=False)
                write_hparams(logger, {"model": settings, "data": data}, pl_module.monitor)
                self._loggers.append(logger)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the epoch's clock."""
        self._started, self._step_seconds = time.perf_counter(), 0.0
        self._sentences = [0] * len(self.results)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the step's clock."""
        self._step_started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop it."""
        self._step_seconds += time.perf_counter() - self._step_started
        self._sentences = [seen + len(own) for seen, own in zip(self._sentences, batch, strict=True)]
        assert isinstance(pl_module, JointTrials)
        for losses, loss in zip(self._losses, pl_module.step_losses, strict=True):
            losses.add(loss)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the epoch; its validation is over by now."""
        assert isinstance(pl_module, JointTrials)
        for index, result in enumerate(self.results):
            train, val = (pl_module.epoch_metrics(index, stage) for stage in ("train", "val"))
            result.epochs.append(self._row(trainer, pl_module, index, train, val))
        for index, logger in enumerate(self._loggers):
            train, val = (pl_module.epoch_metrics(index, stage) for stage in ("train", "val"))
            named = {f"train/{name}": value for name, value in train.items()}
            named |= {f"val/{name}": value for name, value in val.items()}
            logger.log_metrics(named, step=trainer.global_step)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the logs and write the checkpoints."""
        assert isinstance(pl_module, JointTrials)
        for logger in self._loggers:
            logger.finalize("success")
        for index, (trial, data) in enumerate(zip(pl_module.trials, _data(trainer), strict=True)):
            if self.checkpoints:
                checkpoint = pl_module.trial_checkpoint(index, data)
                WholeFileCheckpointIO().save_checkpoint(checkpoint, self.folder / trial.name / "last.ckpt")

    def _row(
        self, trainer: Trainer, module: JointTrials, index: int, train: dict[str, float], val: dict[str, float]
    ) -> Row:
        metric = module.monitor.removeprefix("val/")
        lora = sum(parameter.numel() for parameter in module.bank.parameters(module.bank.names[index]))
        head = sum(parameter.numel() for parameter in module.heads[index].parameters())
        return {
            "epoch": trainer.current_epoch + 1,
            "trainable_lora": lora,
            "trainable_head": head,
            "trainable": lora + head,
            "train_loss": train["loss"],
            "validation_loss": val["loss"],
            "metric": metric,
            "validation": val[metric],
            "pack": len(module.trials),
            "seconds": time.perf_counter() - self._started,
            "sentences_per_second": self._sentences[index] / self._step_seconds if self._step_seconds else None,
        }


def _data(trainer: Trainer) -> list[dict[str, Any]]:
    data: JointData = trainer.datamodule  # type: ignore[attr-defined]
    return [dict(own.hparams) for own in data.trials_data]
