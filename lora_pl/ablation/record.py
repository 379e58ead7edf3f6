"""What a trial's epochs came to."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lora_pl.ablation.table import Row
from lora_pl.model.classifier import LoRAClassifier
from lora_pl.model.metrics import SplitMetrics
from lora_pl.model.parameters import count_parameters

CURVE_STEPS = 10
"""Steps per point of a loss curve."""
Curve = list[tuple[int, float]]
"""(step, mean loss of the last `CURVE_STEPS` steps)"""


@dataclass
class TrialResult:
    """A row per epoch, and the training loss as it went."""

    epochs: list[Row] = field(default_factory=list)
    curve: Curve = field(default_factory=list)


class LossCurve:
    """Means over every `CURVE_STEPS` losses; a loss is fetched from its device no more often than that."""

    def __init__(self) -> None:
        self.points: Curve = []
        self._recent: list[Tensor] = []
        self._steps = 0

    def state(self) -> dict[str, Any]:
        """All of it, in primitive values."""
        return {"points": list(self.points), "recent": [float(loss) for loss in self._recent], "steps": self._steps}

    def load(self, state: dict[str, Any]) -> None:
        """The reverse of `state`."""
        self.points = [(step, loss) for step, loss in state["points"]]
        self._recent, self._steps = [torch.tensor(loss) for loss in state["recent"]], state["steps"]

    def add(self, loss: Tensor) -> None:
        """Add a step's loss."""
        self._steps += 1
        self._recent.append(loss)
        if len(self._recent) == CURVE_STEPS:
            self.points.append((self._steps, float(torch.stack(self._recent).mean())))
            self._recent = []


class EpochClock(Callback):
    """Measures the seconds of an epoch and of its training steps."""

    def __init__(self) -> None:
        self._epoch_started = self._step_started = self._step_seconds = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the epoch's clock."""
        self._epoch_started, self._step_seconds = time.perf_counter(), 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the step's clock."""
        self._step_started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop it."""
        self._step_seconds += time.perf_counter() - self._step_started

    def epoch_row(self, trainer: Trainer, metric: str, trials: int, sentences: int, **measured: float) -> Row:
        """A row of the table for the epoch that ends.

        Args:
            trainer: The trainer.
            metric: The name of the task's first metric.
            trials: How many were trained jointly.
            sentences: The trial's own in this epoch.
            measured: `lora` and `head`, trainable parameters; `train_loss`, `validation_loss`, `validation`.
        """
        lora, head = measured.pop("lora"), measured.pop("head")
        return {
            "epoch": trainer.current_epoch + 1,
            "trainable_lora": lora,
            "trainable_head": head,
            "metric": metric,
            "pack": trials,
            "seconds": time.perf_counter() - self._epoch_started,
            "sentences_per_second": sentences / self._step_seconds if self._step_seconds else None,
            **{"trainable": lora + head, **measured},
        }


class TrialRecord(EpochClock):
    """Keeps what a `LoRAClassifier`'s run comes to: losses, the task's first metric, time, parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.result = TrialResult()
        self._losses = LossCurve()
        self._sentences = 0

    def state_dict(self) -> dict[str, Any]:
        """What there is so far, for a trial that is resumed."""
        return {"epochs": list(self.result.epochs), "losses": self._losses.state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The reverse of `state_dict`."""
        self.result.epochs = list(state_dict["epochs"])
        self._losses.load(state_dict["losses"])
        self.result.curve = self._losses.points

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the epoch's clock."""
        super().on_train_epoch_start(trainer, pl_module)
        self._sentences = 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop the step's clock, keep its loss."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._sentences += len(batch)
        if outputs is not None:  # a batch that was skipped has no loss
            self._losses.add(outputs["loss"].detach())

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the epoch; its validation is over by now."""
        assert isinstance(pl_module, LoRAClassifier)
        counts = count_parameters(pl_module.encoder, pl_module.head)
        self.result.curve = self._losses.points
        self.result.epochs.append(
            self.epoch_row(
                trainer,
                pl_module.monitor.removeprefix("val/"),
                1,
                self._sentences,
                lora=counts.lora,
                head=counts.head,
                trainable=counts.trainable,  # with the encoder where all of it is trained
                train_loss=float(cast(SplitMetrics, pl_module.metrics["train/"]).compute()["loss"]),
                validation_loss=float(trainer.callback_metrics["val/loss"]),
                validation=float(trainer.callback_metrics[pl_module.monitor]),
            )
        )
