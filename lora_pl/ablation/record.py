"""What the epochs of a trial, or of joint trials, came to."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from lora_pl.ablation.grid import Trial
from lora_pl.ablation.joint import JointTrials
from lora_pl.ablation.joint_data import JointData
from lora_pl.ablation.table import Row
from lora_pl.callbacks.hparams_record import write_hparams
from lora_pl.model.classifier import LoRAClassifier
from lora_pl.model.logged import loss_of
from lora_pl.model.parameters import count_parameters
from lora_pl.storage.checkpoint import LAST, SUFFIX, save_checkpoint

CURVE_STEPS = 10
"""Batches per point of a loss curve."""
Curve = list[tuple[int, float]]
"""(optimizer step, mean loss of the last `CURVE_STEPS` batches)"""


@dataclass
class TrialResult:
    """A row per epoch that ended with a validation, and the training loss."""

    epochs: list[Row] = field(default_factory=list)
    curve: Curve = field(default_factory=list)


class EpochRecord(Callback):
    """Keeps the result of each trial of one training, in `results`: a row for each epoch with a validation."""

    def __init__(self, count: int) -> None:
        self.results = [TrialResult() for _ in range(count)]
        self._recent: list[list[Tensor]] = [[] for _ in range(count)]
        """The losses after the last point of each curve, on their device."""
        self._sentences = [0] * count
        self._epoch_started = self._step_started = self._step_seconds = 0.0
        self._validated: list[dict[str, float]] = []
        """What the epoch's last validation came to, by trial; empty before it."""

    def state_dict(self) -> dict[str, Any]:
        """What there is so far, for trials that are resumed."""
        trials = [
            {"epochs": [*result.epochs], "losses": {"points": [*result.curve], "recent": [float(x) for x in recent]}}
            for result, recent in zip(self.results, self._recent, strict=True)
        ]
        return {"trials": trials, "validated": self._validated}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a `state_dict`; versions up to 0.3.0 have that of one trial, and not what its validation came to."""
        trials = state_dict.get("trials", [state_dict])
        for result, recent, own in zip(self.results, self._recent, trials, strict=True):
            result.epochs, result.curve = list(own["epochs"]), [(step, loss) for step, loss in own["losses"]["points"]]
            recent[:] = map(torch.tensor, own["losses"]["recent"])
        validated = state_dict.get("validated")
        self._validated = list(validated) if isinstance(validated, list) else []

    def of_step(self, pl_module: LightningModule, outputs: Any, batch: Any) -> list[tuple[int, Tensor | None]]:
        """Sentences and loss of the step by trial; no loss where the batch was skipped."""
        raise NotImplementedError

    def of_validation(self, trainer: Trainer, pl_module: LightningModule, index: int) -> dict[str, float]:
        """What a trial's validation that has just ended came to: `val/loss`, `val/accuracy`, ..."""
        raise NotImplementedError

    def of_epoch(self, trainer: Trainer, pl_module: LightningModule, index: int, val: dict[str, float]) -> Row:
        """A trial's parameters, losses and metric; `val` is from its last `of_validation`."""
        raise NotImplementedError

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of an epoch that a resumed trial has begun already."""
        self._epoch_started = time.perf_counter()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the epoch's clock."""
        self._epoch_started, self._step_seconds = time.perf_counter(), 0.0
        self._sentences = [0] * len(self.results)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the step's clock."""
        self._step_started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the losses, for which a GPU is waited for now and then, and stop the step's clock."""
        for index, (sentences, loss) in enumerate(self.of_step(pl_module, outputs, batch)):
            self._sentences[index] += sentences
            if loss is not None:
                self._recent[index].append(loss)
            if len(recent := self._recent[index]) == CURVE_STEPS:
                self.results[index].curve.append((trainer.global_step, float(torch.stack(recent).mean())))
                recent.clear()
        self._step_seconds += time.perf_counter() - self._step_started

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the figures: a run that stops before its epoch ends has them no more when it resumes."""
        if not trainer.sanity_checking:
            self._validated = [self.of_validation(trainer, pl_module, index) for index in range(len(self.results))]

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the epoch, if it was validated: its last validation is over by now."""
        validated, self._validated = self._validated, []
        for index, val in enumerate(validated):
            speed = self._sentences[index] / self._step_seconds if self._step_seconds else None
            row: Row = {"epoch": trainer.current_epoch + 1, "pack": len(self.results)}
            row |= {"seconds": time.perf_counter() - self._epoch_started, "sentences_per_second": speed}
            self.results[index].epochs.append({**row, **self.of_epoch(trainer, pl_module, index, val)})


class TrialRecord(EpochRecord):
    """The record of a `LoRAClassifier`'s run."""

    def __init__(self) -> None:
        super().__init__(1)

    def of_step(self, pl_module: LightningModule, outputs: Any, batch: Any) -> list[tuple[int, Tensor | None]]:
        """Lightning's own outputs."""
        return [(len(batch), loss_of(pl_module.trainer, outputs))]

    def of_validation(self, trainer: Trainer, pl_module: LightningModule, index: int) -> dict[str, float]:
        """What the model has logged."""
        names = ("val/loss", cast(LoRAClassifier, pl_module).monitor)
        return {name: float(trainer.callback_metrics[name]) for name in names}

    def of_epoch(self, trainer: Trainer, pl_module: LightningModule, index: int, val: dict[str, float]) -> Row:
        """The model's own counts and training loss."""
        assert isinstance(pl_module, LoRAClassifier)
        counts = count_parameters(pl_module.encoder, pl_module.head)
        train = pl_module.metrics.of("train").compute()
        return _row(pl_module.monitor, (counts.lora, counts.head, counts.trainable), float(train["loss"]), val)


class JointRecord(EpochRecord):
    """As `TrialRecord`, for joint trials; writes each trial's log and, at the end, its `last.ckpt` below `folder`."""

    def __init__(self, folder: Path, trials: Sequence[Trial], logs: bool, checkpoints: bool) -> None:
        super().__init__(len(trials))
        self.folder, self.trials, self.checkpoints = folder, trials, checkpoints
        named = [trial.name for trial in trials] if logs else []
        self._loggers = [TensorBoardLogger(folder, name=name, version="", default_hp_metric=False) for name in named]

    def of_step(self, pl_module: LightningModule, outputs: Any, batch: Any) -> list[tuple[int, Tensor | None]]:
        """The losses that the joint step has kept."""
        losses = cast(JointTrials, pl_module).step_losses
        return [(len(own), loss) for own, loss in zip(batch, losses, strict=True)]

    def of_validation(self, trainer: Trainer, pl_module: LightningModule, index: int) -> dict[str, float]:
        """A trial's own metrics."""
        return cast(JointTrials, pl_module).epoch_metrics(index, "val")

    def of_epoch(self, trainer: Trainer, pl_module: LightningModule, index: int, val: dict[str, float]) -> Row:
        """A trial's own; also written to its log."""
        joint = cast(JointTrials, pl_module)
        lora = sum(parameter.numel() for parameter in joint.bank.parameters(joint.bank.names[index]))
        head = sum(parameter.numel() for parameter in joint.heads[index].parameters())
        train = joint.epoch_metrics(index, "train")
        if self._loggers:
            self._loggers[index].log_metrics({**train, **val}, step=trainer.global_step)
        return _row(joint.monitor, (lora, head, lora + head), train["train/loss"], val)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log every trial's settings."""
        joint = cast(JointTrials, pl_module)
        for logger, settings, data in zip(self._loggers, joint.settings, _data(trainer), strict=False):
            write_hparams(logger, {"model": settings, "data": data}, joint.monitor)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the logs and write the checkpoints."""
        for logger in self._loggers:
            logger.finalize("success")
        for index, (trial, data) in enumerate(zip(self.trials, _data(trainer), strict=True)):
            if self.checkpoints:
                path = self.folder / trial.name / f"{LAST}{SUFFIX}"
                checkpoint = cast(JointTrials, pl_module).trial_checkpoint(index, data)
                save_checkpoint(checkpoint, path)


def _row(monitor: str, trainable: tuple[int, int, int], train_loss: float, val: dict[str, float]) -> Row:
    return {
        **dict(zip(("trainable_lora", "trainable_head", "trainable"), trainable, strict=True)),
        "train_loss": train_loss,
        "validation_loss": val["val/loss"],
        "metric": monitor.removeprefix("val/"),
        "validation": val[monitor],
    }


def _data(trainer: Trainer) -> list[dict[str, Any]]:
    data: JointData = trainer.datamodule  # type: ignore[attr-defined]
    return [dict(own.hparams) for own in data.trials_data]
