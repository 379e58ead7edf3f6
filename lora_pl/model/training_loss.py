"""The loss that training minimizes: the task's, with weights for its classes and smoothed labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lora_pl.data.classes import MAX_SHOWN, Classes
from lora_pl.data.sentence_data import SentenceData
from lora_pl.data.sources import TRAIN
from lora_pl.data.task import Task
from lora_pl.errors import UserError
from lora_pl.printable import first_of
from lora_pl.reporting import say

BALANCED = "balanced"
ClassWeights = list[float] | Literal["balanced"]


class TrainingLoss(nn.Module):
    """The task's loss; of a classification, with weights w and label smoothing e (Szegedy et al., 2016, section 7):

        sum_n sum_c -w_c q_nc log p_nc / sum_n w_{y_n},  q_nc = (1 - e) [c = y_n] + e / classes

    as `torch.nn.functional.cross_entropy` has it. Of several labels per text, the mean over texts and classes of

        -(w_c q_nc log p_nc + (1 - q_nc) log(1 - p_nc)),  q_nc = (1 - e) y_nc + e / 2

    as `binary_cross_entropy_with_logits` has it, with `pos_weight`.

    Args:
        task: Gives the loss without the two.
        settings: `class_weights` and `label_smoothing`, as `LoRAClassifier` has them.

    Raises:
        UserError: `model.class_weights`, `model.label_smoothing`: out of range, not a weight per class, or for scores.
    """

    weights: Tensor | None

    def __init__(self, task: Task, settings: Mapping[str, Any]) -> None:
        super().__init__()
        given, self.smoothing = settings["class_weights"], settings["label_smoothing"]
        self.task, self.awaits_data = task, given == BALANCED
        """Whether the weights are to come from the training labels."""
        if not isinstance(task, Classes):
            _require_neither(task, settings)
        if not 0 <= self.smoothing < 1:
            raise UserError("model.label_smoothing", f"expected a number in [0, 1), got {self.smoothing}")
        weights = None if given is None or self.awaits_data else _weights(given, task)
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """() from logits (batch, outputs) and the batch's labels."""
        if not isinstance(self.task, Classes):
            return self.task.loss(logits, labels)
        weights = None if self.weights is None else self.weights.to(logits.dtype)
        return self.task.loss(logits, labels, weights, self.smoothing)

    def take_weights(self, data: object) -> None:
        """Balanced weights from the training labels of data that are set up; see `Classes.balanced`.

        Raises:
            UserError: `model.class_weights`: a class has no example (or, of several labels per text, every one), or the
                data are none of `SentenceDataModule`.
        """
        if not self.awaits_data or not isinstance(self.task, Classes):
            return
        if not isinstance(data, SentenceData):
            raise UserError("model.class_weights", "balanced needs the labels of a SentenceDataModule; give numbers")
        self.weights = torch.tensor(_balanced(data.labels(TRAIN), self.task), dtype=torch.float32)
        shown = [f"{name}: {weight:.4g}" for name, weight in zip(self.task.labels, self.weights.tolist(), strict=True)]
        say(f"class weights: {first_of(shown, MAX_SHOWN)}")


def _balanced(labels: NDArray[np.float32], task: Classes) -> NDArray[np.float64]:
    weights = task.balanced(labels)
    for said, broken in (("no", np.isinf(weights)), ("every", weights == 0)):
        if named := [repr(name) for name, there in zip(task.labels, broken, strict=True) if there][:MAX_SHOWN]:
            raise UserError(
                "model.class_weights",
                f"balanced weighs by each class's count, but {said} training sentence is of {', '.join(named)}; add "
                "some, leave the class out of --data.label_names, or give a number per class",
            )
    return weights


def _weights(given: list[float], task: Task) -> Tensor:
    weights = torch.tensor(given, dtype=torch.float32)
    of = f"for {first_of(task.labels, MAX_SHOWN)}"
    if len(given) != task.outputs:
        raise UserError("model.class_weights", f"expected {task.outputs} numbers, {of}, got {len(given)}")
    if not (torch.isfinite(weights) & (weights > 0)).all():
        raise UserError("model.class_weights", f"expected numbers > 0, {of}, got {given}")
    return weights


def _require_neither(task: Task, settings: Mapping[str, Any]) -> None:
    for name, without in (("class_weights", None), ("label_smoothing", 0)):
        if settings[name] != without:
            raise UserError(
                f"model.{name}", f"the task {task.name} has scores, no classes; leave it out, got {settings[name]}"
            )
