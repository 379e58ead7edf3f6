"""Precision, recall and F1 of every class, where an example has any number of labels."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from lora_pl.model.class_scores import ClassScores, Scores, scores_of


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
