"""The metrics of a task, by torchmetrics."""

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection, SumMetric
from torchmetrics.classification import BinaryF1Score, MulticlassAccuracy

from lora_pl.data.task import MetricName, Task
from lora_pl.errors import UserError
from lora_pl.lora.transfer import transfer
from lora_pl.model.class_scores import ClassScores, Confusion, LabelCounts
from lora_pl.model.exact_metrics import Correlation, Matthews, Mean
from lora_pl.model.monitor import suffix
from lora_pl.printable import first_of

METRICS: dict[MetricName, Callable[[int], Metric]] = {  # arguments are not validated, which would wait for the device
    "accuracy": lambda classes: MulticlassAccuracy(classes, average="micro", validate_args=False),
    "f1": lambda classes: BinaryF1Score(validate_args=False),
    "matthews": Matthews,
    "pearson": lambda classes: Correlation(),
    "spearman": lambda classes: Correlation(ranks=True),
}

COUNTS: dict[str, Callable[[int], Confusion | LabelCounts]] = {
    "single_label_classification": Confusion,
    "multi_label_classification": LabelCounts,
}
"""What is counted of every class, by the kind of task, in evaluation and not in training."""
OF_COUNTS: dict[MetricName, Callable[[ClassScores], float]] = {
    "macro_f1": lambda scores: scores.means["macro"].f1,
    "micro_f1": lambda scores: scores.means["micro"].f1,
    "exact_match": lambda scores: scores.accuracy,
}
"""Metrics that follow from it."""

TOGETHER = 32
"""Batches that are counted at once, as that costs hardly more than to count one."""


class SplitMetrics(nn.Module):
    """The loss and the task's metrics over a whole split, exact for batches of any size and several processes.

    The loss is a metric too: the mean that Lightning logs over processes divides by a rounded count of sentences.
    Where logits are inf or NaN there are no decisions, so that every metric is NaN.

    Args:
        task: Its metrics, and how logits decide.
        by_class: Whether to count every class too (a classification's confusion matrix), and what follows from it.
    """

    def __init__(self, task: Task, by_class: bool = True) -> None:
        super().__init__()
        self.task = task
        self.metrics = MetricCollection({name: METRICS[name](task.outputs) for name in task.metrics if name in METRICS})
        counted = by_class and task.problem_type in COUNTS
        self.counts = COUNTS[task.problem_type](task.outputs) if counted else None
        self.loss = Mean()
        self.nonfinite = SumMetric(nan_strategy="disable")  # of counts: a check would wait for the device
        self._marked: list[tuple[list[int], Tensor]] = []  # so would to look which
        self._waiting: list[tuple[Tensor, Tensor, Tensor, tuple[int, ...]]] = []

    def update(self, logits: Tensor, labels: Tensor, loss: Tensor, rows: tuple[int, ...] = ()) -> None:
        """Add a batch: logits (batch, outputs), the batch's labels and mean loss, and its rows in the split."""
        self._waiting.append((logits.detach(), labels, loss.detach(), rows))
        if len(self._waiting) == TOGETHER:
            self._count()

    def _count(self) -> None:
        """Count the batches that wait for it."""
        if not self._waiting:
            return
        parts, labels, losses, rows = zip(*self._waiting, strict=True)
        self._waiting.clear()
        logits = torch.cat(parts)
        decisions, targets = self.task.decisions(logits), self.task.targets(torch.cat(labels))
        self.metrics.update(decisions, targets)
        if self.counts is not None:
            self.counts.update(decisions, targets)
        self.loss.update(torch.stack(losses), transfer(torch.tensor([len(part) for part in parts]), logits.device))
        broken = (~torch.isfinite(logits)).any(-1)
        self.nonfinite.update(broken.sum())
        if any(rows):
            self._marked.append(([row for own in rows for row in own], broken))

    @property
    def seen(self) -> bool:
        """Whether any batch was added since the last reset."""
        return bool(self._waiting) or self.loss.update_called

    def compute(self) -> dict[str, Tensor]:
        """The loss and every metric, by name."""
        self._count()
        values = {"loss": self.loss.compute(), **self.metrics.compute()}
        if (scores := self.class_scores()) is not None:
            derived = {name: OF_COUNTS[name](scores) for name in self.task.metrics if name in OF_COUNTS}
            values |= {name: torch.tensor(value, device=self.loss.device) for name, value in derived.items()}
        return {name: torch.full_like(value, torch.nan) for name, value in values.items()} if self.broken else values

    def class_scores(self) -> ClassScores | None:
        """Those of every class, where they are counted; collective over the processes."""
        self._count()
        return None if self.counts is None else self.counts.scores()

    @property
    def broken(self) -> int:
        """The number of examples with a logit that is inf or NaN."""
        self._count()
        return int(self.nonfinite.compute()) if self.seen else 0

    @property
    def broken_rows(self) -> list[int]:
        """Which of this process's rows those are, in ascending order."""
        self._count()
        return sorted(
            row for rows, marks in self._marked for row, mark in zip(rows, marks.tolist(), strict=True) if mark
        )

    def reset(self) -> None:
        """Reset loss and metrics."""
        self._waiting.clear()
        self._marked.clear()
        for _, metric in self._parts():
            metric.reset()

    def sums(self) -> dict[str, Any]:
        """This process's state since the last reset, on the CPU: whether a metric has counted, and its sums."""
        self._count()
        return {
            name: (int(metric.update_called), {key: _on(value, "cpu") for key, value in metric.metric_state.items()})
            for name, metric in self._parts()
        }

    def load_sums(self, sums: dict[str, Any]) -> list[str]:
        """The reverse of `sums`; the names of metrics that another version summed differently, which start anew."""
        anew = []
        for name, metric in self._parts():
            count, state = sums.get(name, (0, metric.metric_state))
            if state.keys() != metric.metric_state.keys():
                anew.append(name)
                continue
            metric._update_count = count
            for key, value in state.items():
                setattr(metric, key, _on(value, metric.device))
        return anew

    def _parts(self) -> Iterator[tuple[str, Metric]]:
        yield "loss", self.loss
        yield "nonfinite", self.nonfinite
        yield from self.metrics.items()
        if self.counts is not None:
            yield "counts", self.counts


class StageMetrics(nn.ModuleDict):
    """`SplitMetrics` for training and for every labelled split of a task: `train/0`, `val/NUMBER`, `test/NUMBER`."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.labelled = list(task.validation)
        """The names of the labelled splits; own data have a single one where MNLI has two."""
        for stage in ("train", "val", "test"):
            by_class = stage != "train"  # no step pays for it
            for number in range(len(self._splits(stage))):
                self[f"{stage}/{number}"] = SplitMetrics(task, by_class)

    def _splits(self, stage: str) -> list[str]:
        """In the order of the stage's loaders."""
        return [""] if stage == "train" else self.labelled

    def of(self, stage: str, split: int = 0) -> SplitMetrics:
        """The metrics of a stage's split, by its number.

        Raises:
            UserError: `data`: the stage has no such split.
        """
        if split >= len(self._splits(stage)):
            names = ", ".join(self.labelled)
            raise UserError("data", f"expected loaders of {names} alone, got more; evaluate each further one by itself")
        return cast(SplitMetrics, self[f"{stage}/{split}"])

    def _by_split(self, stage: str) -> dict[str, SplitMetrics]:
        return {name: self.of(stage, number) for number, name in enumerate(self._splits(stage))}

    def reset(self, stage: str) -> None:
        """Reset the stage's metrics."""
        for metrics in self._by_split(stage).values():
            metrics.reset()

    def broken(self, stage: str) -> int:
        """The number of examples in the stage's splits with a logit that is inf or NaN."""
        return sum(metrics.broken for metrics in self._by_split(stage).values())

    def broken_places(self, stage: str) -> str:
        """The first of them by their numbers, from 1: `no. 3, 17 of validation`; empty if none is known."""
        found = {name: metrics.broken_rows for name, metrics in self._by_split(stage).items()}
        return "; ".join(
            f"no. {first_of([row + 1 for row in rows], 5)} of {name}" for name, rows in found.items() if rows
        )

    def compute(self, stage: str) -> dict[str, Tensor]:
        """A stage's losses and metrics by their logged names: `val/accuracy`, `val/accuracy_mismatched`."""
        return {
            f"{stage}/{name}{suffix(number, split)}": value
            for number, (split, metrics) in enumerate(self._by_split(stage).items())
            if metrics.seen
            for name, value in metrics.compute().items()
        }

    def evaluated(self, stage: str) -> dict[str, SplitMetrics]:
        """The metrics of the stage's splits by name, of those that had batches."""
        return {split: metrics for split, metrics in self._by_split(stage).items() if metrics.seen}


def _on(state: Tensor | list[Tensor], device: Any) -> Tensor | list[Tensor]:
    """A copy of a metric's state, which is a tensor, or a list of them, as one."""
    if isinstance(state, Tensor):
        return state.detach().to(device, copy=True)
    return [torch.cat(state).detach().to(device, copy=True)] if state else []
