"""What the epochs of joint trials came to, and each trial's TensorBoard run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from lora_pl.ablation.packed import PackedData, PackedTrials
from lora_pl.ablation.record import EpochClock, LossCurve, TrialResult
from lora_pl.ablation.table import Row
from lora_pl.callbacks.hparams_record import write_hparams
from lora_pl.storage.checkpoint import LAST, SUFFIX, WholeFileCheckpointIO


class JointRecord(EpochClock):
    """As `TrialRecord`, for each of the joint trials; writes each trial's log and, at the end, its `last.ckpt`.

    Args:
        folder: Where the trials have their folders.
        logs: Whether to write TensorBoard runs.
        checkpoints: Whether to write checkpoints.
    """

    def __init__(self, folder: Path, logs: bool = True, checkpoints: bool = True) -> None:
        super().__init__()
        self.folder, self.logs, self.checkpoints = folder, logs, checkpoints
        self.results: list[TrialResult] = []
        self._losses: list[LossCurve] = []
        self._loggers: list[TensorBoardLogger] = []
        self._sentences: list[int] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the logs."""
        assert isinstance(pl_module, PackedTrials)
        self._losses = [LossCurve() for _ in pl_module.trials]
        self.results = [TrialResult(curve=losses.points) for losses in self._losses]
        if not self.logs:
            return
        for trial, settings, data in zip(pl_module.trials, pl_module.settings, _data(trainer), strict=True):
            logger = TensorBoardLogger(self.folder, name=trial.name, version="", default_hp_metric=False)
            write_hparams(logger, {"model": settings, "data": data}, pl_module.monitor)
            self._loggers.append(logger)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the epoch's clock."""
        super().on_train_epoch_start(trainer, pl_module)
        self._sentences = [0] * len(self.results)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop the step's clock, keep each trial's loss."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        assert isinstance(pl_module, PackedTrials)
        self._sentences = [seen + len(own) for seen, own in zip(self._sentences, batch, strict=True)]
        for losses, loss in zip(self._losses, pl_module.step_losses, strict=True):
            losses.add(loss)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the epoch; its validation is over by now."""
        assert isinstance(pl_module, PackedTrials)
        for index, result in enumerate(self.results):
            train, val = (pl_module.epoch_metrics(index, stage) for stage in ("train", "val"))
            result.epochs.append(self._row(trainer, pl_module, index, train, val))
            named = {f"train/{name}": value for name, value in train.items()}
            named |= {f"val/{name}": value for name, value in val.items()}
            for logger in self._loggers[index : index + 1]:
                logger.log_metrics(named, step=trainer.global_step)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the logs and write the checkpoints."""
        assert isinstance(pl_module, PackedTrials)
        for logger in self._loggers:
            logger.finalize("success")
        if not self.checkpoints:
            return
        for index, (trial, data) in enumerate(zip(pl_module.trials, _data(trainer), strict=True)):
            path = self.folder / trial.name / f"{LAST}{SUFFIX}"
            WholeFileCheckpointIO().save_checkpoint(pl_module.trial_checkpoint(index, data), path)

    def _row(
        self, trainer: Trainer, module: PackedTrials, index: int, train: dict[str, float], val: dict[str, float]
    ) -> Row:
        metric = module.monitor.removeprefix("val/")
        return self.epoch_row(
            trainer,
            metric,
            len(module.trials),
            self._sentences[index],
            lora=sum(parameter.numel() for parameter in module.bank.parameters(module.bank.names[index])),
            head=sum(parameter.numel() for parameter in module.heads[index].parameters()),
            train_loss=train["loss"],
            validation_loss=val["loss"],
            validation=val[metric],
        )


def _data(trainer: Trainer) -> list[dict[str, Any]]:
    data: PackedData = trainer.datamodule  # type: ignore[attr-defined]
    return [dict(own.hparams) for own in data.trials_data]
