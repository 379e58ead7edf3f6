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


class EpochRecord(Callback):
    """Keeps a row per epoch and a loss curve for each trial of one training: `results`, in their order."""

    def __init__(self, count: int) -> None:
        self._losses = [LossCurve() for _ in range(count)]
        self.results = [TrialResult(curve=losses.points) for losses in self._losses]
        self._sentences = [0] * count
        self._epoch_started = self._step_started = self._step_seconds = 0.0

    def of_step(self, pl_module: LightningModule, outputs: Any, batch: Any) -> list[tuple[int, Tensor | None]]:
        """Sentences and loss of the step by trial; no loss where the batch was skipped."""
        raise NotImplementedError

    def of_epoch(self, trainer: Trainer, pl_module: LightningModule, index: int) -> Row:
        """A trial's parameters, losses and metric."""
        raise NotImplementedError

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
        """Stop it, and keep the losses."""
        self._step_seconds += time.perf_counter() - self._step_started
        for index, (sentences, loss) in enumerate(self.of_step(pl_module, outputs, batch)):
            self._sentences[index] += sentences
            if loss is not None:
                self._losses[index].add(loss)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the epoch; its validation is over by now."""
        for index, result in enumerate(self.results):
            speed = self._sentences[index] / self._step_seconds if self._step_seconds else None
            row: Row = {"epoch": trainer.current_epoch + 1, "pack": len(self.results)}
            row |= {"seconds": time.perf_counter() - self._epoch_started, "sentences_per_second": speed}
            result.epochs.append({**row, **self.of_epoch(trainer, pl_module, index)})


class TrialRecord(EpochRecord):
    """What a `LoRAClassifier`'s run comes to."""

    def __init__(self) -> None:
        super().__init__(1)

    def state_dict(self) -> dict[str, Any]:
        """What there is so far, for a trial that is resumed."""
        return {"epochs": list(self.results[0].epochs), "losses": self._losses[0].state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The reverse of `state_dict`."""
        self._losses[0].load(state_dict["losses"])
        self.results = [TrialResult(list(state_dict["epochs"]), self._losses[0].points)]

    def of_step(self, pl_module: LightningModule, outputs: Any, batch: Any) -> list[tuple[int, Tensor | None]]:
        """Lightning's own outputs."""
        return [(len(batch), None if outputs is None else outputs["loss"].detach())]

    def of_epoch(self, trainer: Trainer, pl_module: LightningModule, index: int) -> Row:
        """The model's own counts, and what it has logged."""
        assert isinstance(pl_module, LoRAClassifier)
        counts = count_parameters(pl_module.encoder, pl_module.head)
        return {
            "trainable_lora": counts.lora,
            "trainable_head": counts.head,
            "trainable": counts.trainable,
            "train_loss": float(cast(SplitMetrics, pl_module.metrics["train/"]).compute()["loss"]),
            "validation_loss": float(trainer.callback_metrics["val/loss"]),
            "metric": pl_module.monitor.removeprefix("val/"),
            "validation": float(trainer.callback_metrics[pl_module.monitor]),
        }
