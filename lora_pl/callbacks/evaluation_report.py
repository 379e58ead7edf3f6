"""What `validate` and `test` print."""

from __future__ import annotations

import json
import math
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.table import Table
from rich.text import Text

from lora_pl.errors import UserError
from lora_pl.model.class_scores import MOST_SHOWN, ClassScores, ConfusionScores, Scores
from lora_pl.model.module import TaskModule
from lora_pl.printable import printable
from lora_pl.reporting import make_console
from lora_pl.storage.paths import expanded
from lora_pl.storage.write_whole import write_text_whole


class EvaluationReport(Callback):
    """Prints loss and metrics after `validate` and `test`, and precision, recall and F1 of every class.

    Args:
        path: The JSON file to write, with every class's values and the confusion matrix; by default none.

    Raises:
        UserError: `metrics`: the path is a folder.
    """

    def __init__(self, path: str | None = None) -> None:
        self.path = expanded(path) if path else None
        if self.path is not None and self.path.is_dir():
            raise UserError("metrics", f"{path} is a folder; expected a file, such as {self.path / 'metrics.json'}")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report a `validate`; not the validations of `fit`."""
        if trainer.state.fn == "validate":
            self._report(trainer, pl_module, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report a `test`."""
        self._report(trainer, pl_module, "test")

    def _report(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        assert isinstance(pl_module, TaskModule)
        task = pl_module.task
        content: dict[str, dict[str, Any]] = {}
        shown: list[str | Table] = []
        for split, metrics in pl_module.stage_metrics()[0].evaluated(stage).items():
            values = metrics.compute()
            content[split] = {name: _number(value) for name, value in values.items()}
            shown.append("  ".join([split, *(f"{name} {value:.4f}" for name, value in values.items())]))
            if (scores := metrics.class_scores()) is not None:
                content[split] |= _of_classes(task.labels, scores)
                shown.append(_table(task.labels, scores))
        if not trainer.is_global_zero:
            return
        for part in shown:
            make_console(stderr=False).print(part, soft_wrap=isinstance(part, str))
        if self.path is not None:
            checkpoint = str(trainer.ckpt_path) if trainer.ckpt_path else None
            told = {"checkpoint": checkpoint, "task": task.name, "verb": trainer.state.fn, "splits": content}
            write_text_whole(self.path, f"{json.dumps(told, indent=2, allow_nan=False)}\n")


def _table(labels: tuple[str, ...], scores: ClassScores) -> Table:
    """A row per class, and the means."""
    table = Table()
    table.add_column("class", overflow="fold")
    for name in ("support", *Scores._fields):
        table.add_column(name, justify="right", no_wrap=True)
    if len(labels) <= MOST_SHOWN:
        for id, label in enumerate(labels):
            values = (values[id] for values in scores.by_class)
            table.add_row(Text(printable(label)), f"{scores.support[id]:,}", *(f"{value:.4f}" for value in values))
        table.add_section()
    for name, mean in scores.means.items():
        table.add_row(name, f"{scores.support.sum():,}", *(f"{value:.4f}" for value in mean))
    return table


def _of_classes(labels: tuple[str, ...], scores: ClassScores) -> dict[str, Any]:
    """The same for a file, with the confusion matrix of a classification: a row per true class."""
    rows = zip(labels, scores.support.tolist(), *(values.tolist() for values in scores.by_class), strict=True)
    return {
        **{name: mean._asdict() for name, mean in scores.means.items()},
        "classes": [dict(zip(("label", "support", *Scores._fields), row, strict=True)) for row in rows],
        **({"confusion": scores.confusion.tolist()} if isinstance(scores, ConfusionScores) else {}),
    }


def _number(value: Any) -> float | None:
    """None for NaN, which JSON lacks."""
    return float(value) if math.isfinite(value) else None
