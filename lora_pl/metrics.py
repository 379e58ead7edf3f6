"""The metrics of a task, by torchmetrics."""

from collections.abc import Callable

from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import BinaryF1Score, MulticlassAccuracy, MulticlassMatthewsCorrCoef
from torchmetrics.regression import PearsonCorrCoef, SpearmanCorrCoef

from lora_pl.data.tasks import MetricName, Task

METRICS: dict[MetricName, Callable[[int], Metric]] = {
    "accuracy": lambda classes: MulticlassAccuracy(classes, average="micro"),
    "f1": lambda classes: BinaryF1Score(),
    "matthews": MulticlassMatthewsCorrCoef,
    "pearson": lambda classes: PearsonCorrCoef(),
    "spearman": lambda classes: SpearmanCorrCoef(),
}


def task_metrics(task: Task, classes: int) -> MetricCollection:
    """What `task.metrics` names; they add up over batches and processes and are exact over a split."""
    return MetricCollection({name: METRICS[name](classes) for name in task.metrics})


def as_predictions(task: Task, logits: Tensor) -> Tensor:
    """What the metrics compare with the labels, class ids or scores; (batch, outputs) -> (batch,)."""
    return logits.squeeze(-1) if task.is_regression else logits.argmax(-1)
