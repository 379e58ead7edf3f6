"""An exported model's logits beside those of the model in the checkpoint."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lora_pl.errors import UserError
from lora_pl.formats.export import Export
from lora_pl.formats.sentences import Sentences
from lora_pl.model.plain import PlainClassifier


@dataclass(frozen=True)
class Comparison:
    """Two models on the same sentences."""

    sentences: int
    source: str
    largest_logit_change: float
    flipped: int
    """Sentences whose predicted class, or one of several, differs; 0 for a regression."""
    tolerance: float
    reader: str
    """The program that loaded the export."""
    metrics: dict[str, float]
    """The task's, of the model before the export."""
    exported_metrics: dict[str, float]

    def __str__(self) -> str:
        allowed = f"tolerance {self.tolerance:.0e}" if math.isfinite(self.tolerance) else "reported, no tolerance"
        text = (
            f"largest logit change {self.largest_logit_change:.1e} ({allowed}), "
            f"{self.flipped} of {self.sentences} predictions flipped, on {self.source}, read by {self.reader}"
        )
        for name, value in self.exported_metrics.items():
            text += f"; {name} {value:.4f} (before {self.metrics[name]:.4f})"
        return text


def compare(export: Export, expected: Tensor, got: Tensor, sentences: Sentences, relative: float) -> Comparison:
    """Compare the model's logits (sentences, outputs) with those `got` from its export.

    The tolerance is `relative` times the largest logit, and at least `relative`: rounding grows with the numbers.

    Raises:
        UserError: export.differs: a logit is inf or NaN or changed by more than the tolerance.
    """
    expected, got = expected.float(), got.float()
    tolerance = relative * max(1.0, expected.abs().max().item())
    task = export.model.task
    flipped = int(task.differ(task.decisions(got), task.decisions(expected)).sum()) if task.labels else 0
    largest = (expected - got).abs().max().item()
    comparison = Comparison(
        len(expected), sentences.source, largest, flipped, tolerance, export.reader,
        _metrics(export.model, expected, sentences), _metrics(export.model, got, sentences),
    )  # fmt: skip
    if not largest <= tolerance:  # NaN too
        raise UserError(
            "export.differs", f"the export differs from the checkpoint's model: {comparison}; nothing was written"
        )
    return comparison


def _metrics(model: PlainClassifier, logits: Tensor, sentences: Sentences) -> dict[str, float]:
    if not sentences.labels:
        return {}
    from torchmetrics import Metric  # with all that it imports

    from lora_pl.model.metrics import SplitMetrics

    metrics, labels = SplitMetrics(model.task), torch.tensor(sentences.labels)
    for metric in metrics.modules():
        if isinstance(metric, Metric):
            metric.distributed_available_fn = lambda: False  # the first process compares alone
    metrics.update(logits, labels, model.task.loss(logits, labels))
    return {name: value.item() for name, value in metrics.compute().items() if name != "loss"}
