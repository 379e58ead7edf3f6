"""The metrics of a task, by torchmetrics."""

from collections.abc import Callable, Iterator
from typing import Any

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

    def sums(self) -> dict[str, Any]:
        """What was added since the last reset, of this process, on the CPU."""
        return {
            name: (metric.update_count, {key: _on(value, "cpu") for key, value in metric.metric_state.items()})
            for name, metric in self._parts()
        }

    def load_sums(self, sums: dict[str, Any]) -> None:
        """The reverse of `sums`."""
        for name, metric in self._parts():
            metric._update_count, state = sums[name]
            for key, value in state.items():
                setattr(metric, key, _on(value, metric.device))

    def _parts(self) -> Iterator[tuple[str, Metric]]:
        yield "loss", self.loss
        yield from self.metrics.items()


def _on(state: Tensor | list[Tensor], device: Any) -> Tensor | list[Tensor]:
    """A copy of a metric's state, which is a tensor, or a list of them."""
    if isinstance(state, Tensor):
        return state.detach().to(device, copy=True)
    return [part.detach().to(device, copy=True) for part in state]
