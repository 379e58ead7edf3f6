"""Precision, recall and F1 of every class, from counts: of one label per example, a confusion matrix, or of several."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

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

    def scores(self) -> ConfusionScores:
        """What follows from it; collective over the processes."""
        return ConfusionScores(self.compute())


class LabelCounts(Metric):
    """Labels that are right, decided and there, of each class, and examples: integers, exact over batches and
    processes."""

    full_state_update = False
    labels: Tensor
    examples: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.add_state("labels", torch.zeros(3, classes, dtype=torch.long), "sum")
        self.add_state("examples", torch.zeros(2, dtype=torch.long), "sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add decisions and labels, 0 or 1, each (batch, classes), int64."""
        exact = (preds == target).all(-1)
        self.labels += torch.stack([(preds * target).sum(0), preds.sum(0), target.sum(0)])
        self.examples += torch.stack([exact.sum(), torch.ones_like(exact).sum()])

    def compute(self) -> tuple[Tensor, Tensor]:
        """(right, decided, there) by class, and (all labels right, all) of the examples."""
        return self.labels.cpu(), self.examples.cpu()

    def scores(self) -> LabelScores:
        """What follows from them; collective over the processes."""
        return LabelScores(*self.compute())


class Scores(NamedTuple):
    """Precision, recall and F1, as tensors (classes,) or as numbers."""

    precision: Any
    recall: Any
    f1: Any


class ClassScores:
    """What counts say of every class, in fp64.

    With `right` of the `predicted` decisions for a class right, and `support` labels of it:

        precision = right / predicted,  recall = right / support,  F1 = 2 right / (predicted + support)

    0 where the denominator is.

    Args:
        right: (classes,), integers, as the next two.
        predicted: (classes,)
        support: (classes,)
        right_examples: How many examples are right.
        examples: Of how many.
    """

    def __init__(
        self, right: Tensor, predicted: Tensor, support: Tensor, right_examples: Tensor, examples: Tensor
    ) -> None:
        self.right, self.predicted, self.support = right, predicted, support
        self.accuracy = float(right_examples / examples)
        """The share of them that are right; NaN without examples."""
        self.by_class = scores_of(right, predicted, support)
        """(classes,) each."""

    @property
    def macro(self) -> Scores:
        """The means over classes, those that are among labels or decisions, as scikit-learn's; NaN without examples."""
        occurs = self.support + self.predicted > 0
        return Scores(*(float(values[occurs].mean()) for values in self.by_class))

    @property
    def means(self) -> dict[str, Scores]:
        """By name."""
        return {"macro": self.macro}


class ConfusionScores(ClassScores):
    """Those of a classification.

    Args:
        confusion: n[t, p] examples of class t that were taken for p, integers.
    """

    def __init__(self, confusion: Tensor) -> None:
        self.confusion = confusion.cpu()
        right, total = self.confusion.diagonal(), self.confusion.sum()
        super().__init__(right, self.confusion.sum(0), self.confusion.sum(1), right.sum(), total)


class LabelScores(ClassScores):
    """Those of several labels per example; accuracy is the share of examples whose labels are all right.

    Args:
        labels: (3, classes), integers: right, decided and there.
        examples: (2,): right and all.
    """

    def __init__(self, labels: Tensor, examples: Tensor) -> None:
        super().__init__(*labels, *examples)

    @property
    def macro(self) -> Scores:
        """The means over all classes, as scikit-learn's for several labels."""
        return Scores(*(float(values.mean()) for values in self.by_class))

    @property
    def micro(self) -> Scores:
        """Those of the labels of all classes together."""
        counts = (self.right.sum(), self.predicted.sum(), self.support.sum())
        return Scores(*map(float, scores_of(*counts)))

    @property
    def means(self) -> dict[str, Scores]:
        """By name."""
        return {"micro": self.micro, "macro": self.macro}


def scores_of(right: Tensor, predicted: Tensor, support: Tensor) -> Scores:
    """Precision, recall and F1 from counts of any shape, in fp64."""
    parts = (predicted, support, (predicted + support) / 2)
    return Scores(*(right.double() / part.double().clamp_min(0.5) for part in parts))  # 0 / 0.5, not 0 / 0
