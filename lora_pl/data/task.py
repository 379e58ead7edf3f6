"""What a task is."""

from __future__ import annotations

import shlex
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lora_pl.errors import UserError

MetricName = Literal["accuracy", "macro_f1", "f1", "matthews", "pearson", "spearman", "micro_f1", "exact_match"]
Label = float | tuple[float, ...]
"""A class id, a score, or for several labels per text a 0 or 1 for each class."""
Prediction = dict[str, Any]
"""`{"label", "score", "probabilities": {label: p}}`, `{"labels", "probabilities"}` for several labels per text, or
`{"score"}` for a regression."""
TEXTS = ("text", "text_pair")
"""The text columns of a task whose number of texts is not its row's."""


@dataclass(frozen=True)
class Task(ABC):
    """The question that a head answers: texts, labels, loss, metrics, and answers from logits."""

    name: str
    """As the hub's `nyu-mll/glue` calls it."""
    folder: str
    """As a GLUE download calls its folder."""
    columns: tuple[str, ...]
    """The text columns on the hub: one sentence, or two for a pair."""
    file_columns: tuple[str, ...]
    """The text columns in the download's TSV files."""
    label_column: str
    """The label's column in the TSV files; on the hub it is always `label`."""
    labels: tuple[str, ...]
    """The class names by id; none for a regression."""
    metrics: tuple[MetricName, ...] = ("accuracy",)
    """Reported metrics; by default the first one chooses the best checkpoint."""
    header: tuple[str, ...] | None = None
    """The columns of TSV files that have no header line."""
    validation: Mapping[str, str] = field(default_factory=lambda: {"validation": "dev.tsv"})
    """The labelled splits to validate on, hub name to file name; the first one chooses the best checkpoint."""

    problem_type: ClassVar[str]
    """The kind of task by Transformers' name."""
    takes_single_texts: ClassVar[bool] = False
    """Whether a task on pairs makes sense for single texts too."""
    takes_lists: ClassVar[bool] = False
    """Whether a cell is a list of labels."""

    @property
    def pairs(self) -> bool:
        """Whether an example is two texts."""
        return len(self.columns) > 1

    def example_command(self, checkpoint: str) -> str:
        """A shell command that asks a checkpoint about a sentence, or about two separated by a tab."""
        line = r"printf 'A fine film.\tThe film is good.\n'" if self.pairs else "echo 'A fine film.'"
        return f"{line} | lora_pl predict --ckpt_path {shlex.quote(checkpoint)}"

    def text_columns(self, text: str | None, pair: str | None) -> tuple[str, ...]:
        """The text columns of own files: as given, else the task's.

        Raises:
            UserError: `data.text_pair_column`: the first one alone is given, for a task on pairs.
        """
        if text is None and pair is None:
            return self.columns
        if pair is None and self.pairs and not self.takes_single_texts:
            raise UserError(
                "data.text_pair_column", f"expected the second sentence's column for the task {self.name}, got none"
            )
        return (text or self.columns[0],) if pair is None else (text or self.columns[0], pair)

    def require_label_columns(self, columns: list[str] | None, names: list[str] | None) -> None:
        """Raise `data.label_columns` unless the task has several labels per text, and a column for each class."""
        if columns is None:
            return
        if not self.takes_lists:
            raise UserError(
                "data.label_columns", f"several labels per text are for --data.task multilabel, got {self.name}"
            )
        if not columns or len(set(columns)) != len(columns) or len(columns) != len(names or columns):
            expected = f"one column for each of {', '.join(names)}" if names else "at least one column"
            raise UserError("data.label_columns", f"expected {expected}, all different, got {columns}")

    @property
    @abstractmethod
    def outputs(self) -> int:
        """The head's logits."""

    @abstractmethod
    def parse(self, text: str, where: str) -> Label:
        """The label that a cell's text stands for.

        Args:
            text: The cell, without white space around it.
            where: File and row, for the error.

        Raises:
            UserError: `data.label`: the text is outside the task's labels.
        """

    def counts(self, labels: NDArray[np.float32]) -> NDArray[np.int64]:
        """(classes,): how many sentences each class has, by their labels, an array of `parse`'s; empty for scores."""
        return np.zeros(0, np.int64)

    def absent(self, labels: NDArray[np.float32]) -> list[str]:
        """The classes that no sentence has."""
        return [name for name, count in zip(self.labels, self.counts(labels), strict=True) if not count]

    @abstractmethod
    def distribution(self, labels: NDArray[np.float32]) -> str:
        """What labels there are, for a line to read."""

    def targets(self, labels: Tensor) -> Tensor:
        """A batch's labels, in fp32, as `decisions` are."""
        return labels

    @abstractmethod
    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean loss of logits (batch, outputs) on a batch's labels."""

    @abstractmethod
    def decisions(self, logits: Tensor) -> Tensor:
        """(batch, outputs) -> (batch,), or (batch, classes) for several labels per text: the metrics' predictions."""

    def differ(self, decisions: Tensor, targets: Tensor) -> Tensor:
        """(batch,): where decisions are others than targets."""
        return (decisions != targets).reshape(len(targets), -1).any(-1)

    @abstractmethod
    def error(self, label: Label, prediction: Prediction) -> dict[str, Any]:
        """An answer beside the label: `{"label", "prediction"}`, and last how far it is wrong, a number."""

    def predictions(self, logits: Tensor, places: Sequence[int] | None = None) -> list[Prediction]:
        """An answer per row of logits, (texts, outputs).

        Args:
            logits: Those of the texts.
            places: The texts' places in what was asked, from 0; by default in `logits`.

        Raises:
            UserError: `predict.nonfinite`: a logit is inf or NaN, which decides nothing.
        """
        broken = (~torch.isfinite(logits)).any(-1).nonzero().flatten().tolist()
        if broken:
            place = (places or range(len(logits)))[broken[0]]
            raise UserError(
                "predict.nonfinite",
                f"the logits of text {place + 1} are {logits[broken[0]].tolist()[:5]} ({len(broken)} such texts); "
                "compute in a wider type, or take another checkpoint",
            )
        return self._answers(logits)

    @abstractmethod
    def _answers(self, logits: Tensor) -> list[Prediction]:
        """`predictions` of finite logits."""

    def customized(self, label_names: Sequence[str] | None = None, pairs: bool | None = None) -> Task:
        """The task with other labels, and with one or two texts; by default the row's.

        Raises:
            UserError: `label_names`: not as many as the task has classes, or not all different.
        """
        names = tuple(self.labels if label_names is None else label_names)
        self._require_labels(names)
        columns = self.columns if pairs in (None, self.pairs) else TEXTS[: 1 + bool(pairs)]
        return replace(self, labels=names, columns=columns)

    def _require_labels(self, names: Sequence[str]) -> None:
        if len(names) != len(self.labels) or len(set(names)) != len(names):
            raise self._wrong_labels(f"{len(self.labels)} classes", names)

    def _wrong_labels(self, expected: str, names: Sequence[str]) -> UserError:
        return UserError(
            "label_names", f"expected {expected} for the task {self.name}, all different, got {list(names)}"
        )
