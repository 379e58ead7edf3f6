"""Precision, recall and F1 of every class, from one confusion matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from lora_pl.data.tasks import MetricName

MOST_SHOWN = 50
"""Classes in a table or a figure."""


class Confusion(Metric):
    """How many examples of each class were taken for each class: integers, exact over batches and processes.

    torchmetrics' own makes a matrix for each batch, and one for each example where the trainer is deterministic, which
    does not fit into memory for many classes.
    """

    full_state_update = False
    counts: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(classes, classes, dtype=torch.long), "sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add decisions and labels, each (batch,), int64."""
        cells = target * len(self.counts) + preds
        self.counts.view(-1).index_add_(0, cells, torch.ones_like(cells))

    def compute(self) -> Tensor:
        """(true, predicted)."""
        return self.counts.cpu()


class Scores(NamedTuple):
    """Precision, recall and F1, as tensors (classes,) or as numbers."""

    precision: Any
    recall: Any
    f1: Any


class ClassScores:
    """What a confusion matrix says of every class, in fp64.

    Of class c, with n[t, p] examples of class t that were taken for p:

        precision = n[c, c] / sum_t n[t, c],  recall = n[c, c] / sum_p n[c, p],
        F1 = 2 n[c, c] / (sum_t n[t, c] + sum_p n[c, p])

    0 where the denominator is. A mean over classes (macro) is over those that are among labels or decisions, as
    scikit-learn's.

    Args:
        confusion: (true, predicted), integers.
    """

    def __init__(self, confusion: Tensor) -> None:
        self.confusion = confusion.cpu()
        self.support, self.predicted = self.confusion.sum(1), self.confusion.sum(0)
        right = self.confusion.diagonal().double()
        parts = (self.predicted, self.support, (self.predicted + self.support) / 2)
        self.by_class = Scores(*(right / part.double().clamp_min(0.5) for part in parts))  # 0 / 0.5, not 0 / 0
        """(classes,) each."""

    @property
    def total(self) -> int:
        """The number of examples."""
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        """NaN without examples."""
        return float(self.confusion.trace() / self.confusion.sum())

    @property
    def macro(self) -> Scores:
        """The means over classes; NaN without examples."""
        occurs = self.support + self.predicted > 0
        return Scores(*(float(values[occurs].mean()) for values in self.by_class))


OF_CLASSES: dict[MetricName, Callable[[ClassScores], float]] = {"macro_f1": lambda scores: scores.macro.f1}
"""Metrics from the confusion matrix, which evaluation keeps and training does not."""
