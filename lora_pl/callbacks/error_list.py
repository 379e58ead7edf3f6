"""The sentences that a model gets wrong."""

from __future__ import annotations

import os
from collections import defaultdict
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lora_pl.data.datamodule import SentenceDataModule
from lora_pl.data.examples import Examples
from lora_pl.data.task import Prediction, Task
from lora_pl.data.texts import as_text, named
from lora_pl.errors import UserError
from lora_pl.predictions.output import is_stream, require_output
from lora_pl.predictions.writers import Row, Rows, write_rows
from lora_pl.reporting import say

KEY = "errors"


class ErrorList(Callback):
    """Writes the misclassified sentences of a validation or test to a file, the most confident errors first.

    A row has its number in the file that was read (`row`: from 1, without header and blank lines), the texts, the
    label, the prediction and its probability, and names the split where there are several. Of several labels per text,
    the probability is that of the surest wrong decision about one of them.
    For a regression it has all sentences, with label, prediction and their difference, the largest first.

    Args:
        path: JSON lines, CSV or Parquet, by its ending.
        data: What is measured.

    Raises:
        UserError: `errors`: the file can't be written, is one of the data's own, or there are several processes.
    """

    def __init__(self, path: str, data: SentenceDataModule) -> None:
        path = os.path.expanduser(path)
        require_output(path, *data.places, key=KEY)
        if is_stream(path):
            raise UserError(KEY, f"{path}: expected a file")
        self.path, self.data = path, data

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse several processes."""
        self._splits = self.data.labelled_splits(stage)
        if trainer.world_size > 1:
            raise UserError(KEY, f"expected one process, got {trainer.world_size}; give --trainer.devices 1")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start anew."""
        self._logits: dict[int, list[tuple[tuple[int, ...], Tensor]]] = defaultdict(list)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the step's logits."""
        self._logits[dataloader_idx].append((batch.rows, outputs.float().cpu()))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file."""
        task: Task = pl_module.task  # type: ignore[assignment]
        rows = [row for split in self._logits for row in self._errors(task, split)]
        rows.sort(key=lambda row: -row["probability" if task.labels else "difference"])
        write_rows(self.path, rows, None if rows else self._example(task))
        total = sum(len(places) for found in self._logits.values() for places, _ in found)
        what = "misclassified" if task.labels else "largest difference first"
        say(f"{len(rows):,} of {total:,} sentences in {self.path}, {what}")

    on_test_start, on_test_batch_end, on_test_end = on_validation_start, on_validation_batch_end, on_validation_end

    def _errors(self, task: Task, number: int) -> Rows:
        """The rows of a split, in no order."""
        split = self._splits[number]
        examples = self.data.read(split)
        places = [place for some, _ in self._logits[number] for place in some]
        logits = torch.cat([some for _, some in self._logits[number]])
        labels = torch.tensor([examples.labels[place] for place in places])
        wrong = task.differ(task.decisions(logits), task.targets(labels)) | (not task.labels)
        return [
            self._row(task, split, examples, places[index], prediction)
            for index, prediction in zip(wrong.nonzero().flatten(), task.predictions(logits[wrong]), strict=True)
        ]

    def _example(self, task: Task) -> Row:
        """A row such as errors have."""
        (prediction,) = task.predictions(torch.zeros(1, task.outputs))
        return self._row(task, self._splits[0], self.data.read(self._splits[0]), 0, prediction)

    def _row(self, task: Task, split: str, examples: Examples, place: int, prediction: Prediction) -> dict[str, Any]:
        return (
            ({"split": split} if self._splits[1:] else {})
            | {"row": examples.rows[place]}
            | named(as_text([column[place] for column in examples.texts]))
            | task.error(examples.labels[place], prediction)
        )
