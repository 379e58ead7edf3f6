"""Metrics as scikit-learn and SciPy define them at their edges, summed in fp64 on the CPU.

torchmetrics' own call constant predictions that are all right a Matthews coefficient of 1, and constants' rank
correlation 0; their sums are in fp32.
"""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lora_pl.model.class_scores import Confusion

PIECES = 1024
"""Tensors that a state is kept in: as many steps may follow each other without a copy."""


class Mean(Metric):
    """The mean of values that each stand for a number of examples: sum of count x value / sum of count."""

    values: list[Tensor]
    counts: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("values", [], "cat")
        self.add_state("counts", [], "cat")

    def update(self, values: Tensor, counts: Tensor) -> None:
        """Add values of so many examples each, both (n,)."""
        self.values.append(values.detach().float())
        self.counts.append(counts.float())
        if len(self.values) == PIECES:
            self.values, self.counts = [torch.cat(self.values)], [torch.cat(self.counts)]

    def compute(self) -> Tensor:
        """()."""
        values, counts = _fp64(self.values), _fp64(self.counts)
        return _rounded((values * counts).sum() / counts.sum(), self)


class Matthews(Confusion):
    """The multiclass Matthews correlation (Gorodkin, 2004); 0 if predictions or labels are constant.

    (c s - p.t) / sqrt((s^2 - p.p) (s^2 - t.t)) with c right of s examples, and p and t examples by predicted and by
    true class.
    """

    def compute(self) -> Tensor:
        """()."""
        confusion = super().compute().double()  # (true, predicted)
        true, predicted = confusion.sum(1), confusion.sum(0)
        right, total = confusion.trace(), confusion.sum()
        spread = (total**2 - predicted @ predicted) * (total**2 - true @ true)
        return _rounded((right * total - predicted @ true) / spread.sqrt() if spread else spread, self)


class Correlation(Metric):
    """Pearson's r; of ranks, which ties share, it is Spearman's rho. NaN for constants and for a single example."""

    preds: list[Tensor]
    target: list[Tensor]

    def __init__(self, ranks: bool = False) -> None:
        super().__init__()
        self.ranks = ranks
        self.add_state("preds", [], "cat")
        self.add_state("target", [], "cat")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add scores and labels, each (batch,)."""
        self.preds.append(preds.detach().float())
        self.target.append(target.float())

    def compute(self) -> Tensor:
        """()."""
        pair = [_fp64(self.preds), _fp64(self.target)]
        if any(len(values) < 2 or bool((values == values[0]).all()) for values in pair):
            return _rounded(torch.tensor(torch.nan), self)
        first, second = (_direction(_ranks(values) if self.ranks else values) for values in pair)
        return _rounded((first @ second).clamp(-1, 1), self)


def _direction(values: Tensor) -> Tensor:
    centred = values - values.mean()
    return centred.div(torch.linalg.vector_norm(centred))


def _ranks(values: Tensor) -> Tensor:
    """1 for the smallest; equal values have the mean of their ranks."""
    _, places, counts = torch.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    shared: Tensor = last - (counts - 1) / 2
    return shared[places]


def _fp64(state: Any) -> Tensor:
    """A list state, or what synchronizing makes of it, as one tensor on the CPU, where every dtype exists."""
    return dim_zero_cat(state).cpu().double() if len(state) else torch.empty(0, dtype=torch.float64)


def _rounded(value: Tensor, metric: Metric) -> Tensor:
    return value.to(metric.device, torch.float32)
