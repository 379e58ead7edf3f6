"""The metrics of a task, by torchmetrics."""

from collections.abc import Callable

from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, MetricCollection
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


class SplitMetrics(nn.Module):
    """The loss and the task's metrics over a whole split, exact over batches of any size and over processes.

    The loss is a metric too: over processes the mean that Lightning logs divides by a rounded count of sentences.
    """

    def __init__(self, task: Task, classes: int) -> None:
        super().__init__()
        self.is_regression = task.is_regression
        self.metrics = MetricCollection({name: METRICS[name](classes) for name in task.metrics})
        self.loss = MeanMetric()

    def update(self, logits: Tensor, targets: Tensor, loss: Tensor) -> None:
        """Add a batch: logits (batch, outputs), targets (batch,), and the batch's mean loss."""
        self.metrics.update(logits.squeeze(-1) if self.is_regression else logits.argmax(-1), targets)
        self.loss.update(loss.detach(), len(targets))

    @property
    def seen(self) -> bool:
        """Whether a batch was added since the last reset."""
        return self.loss.update_called

    def compute(self) -> dict[str, Tensor]:
        """The loss and every metric, by name."""
        return {"loss": self.loss.compute(), **self.metrics.compute()}

    def reset(self) -> None:
        """Start anew."""
        self.metrics.reset()
        self.loss.reset()
