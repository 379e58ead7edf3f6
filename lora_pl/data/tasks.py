"""The GLUE tasks (Wang et al., 2019), a row each, and the row for a user's own files."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from lora_pl.errors import UserError

MetricName = Literal["accuracy", "macro_f1", "f1", "matthews", "pearson", "spearman"]
Prediction = dict[str, Any]
"""`{"label", "score", "probabilities": {label: p}}`, or `{"score"}` for a regression."""
MAX_DIGITS = 10  # of a class id
MAX_SHOWN = 12  # classes in a line


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

    @property
    def pairs(self) -> bool:
        """Whether an example is two texts."""
        return len(self.columns) > 1

    def example_command(self, checkpoint: str) -> str:
        """A shell command that asks a checkpoint about a sentence, or about two separated by a tab."""
        line = r"printf 'A fine film.\tThe film is good.\n'" if self.pairs else "echo 'A fine film.'"
        return f"{line} | lora_pl predict --ckpt_path {checkpoint}"

    @property
    @abstractmethod
    def outputs(self) -> int:
        """The head's logits."""

    @abstractmethod
    def parse(self, text: str, where: str) -> float:
        """The label that a cell's text stands for: a class id, or a score.

        Args:
            text: The cell, without white space around it.
            where: File and row, for the error.

        Raises:
            UserError: `data.label`: the text is outside the task's labels.
        """

    @abstractmethod
    def distribution(self, labels: NDArray[np.float32]) -> str:
        """What labels (sentences,) there are, for a line to read."""

    @abstractmethod
    def targets(self, labels: Tensor) -> Tensor:
        """A batch's labels, (batch,) in fp32, in the dtype of the loss and the metrics."""

    @abstractmethod
    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean loss of logits (batch, outputs) on labels (batch,)."""

    @abstractmethod
    def decisions(self, logits: Tensor) -> Tensor:
        """(batch, outputs) -> (batch,): the metrics' predictions."""

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


@dataclass(frozen=True)
class Classification(Task):
    """One of several classes: cross-entropy; an answer has every class's probability."""

    problem_type: ClassVar[str] = "single_label_classification"

    @property
    def outputs(self) -> int:
        """One per class."""
        return len(self.labels)

    def parse(self, text: str, where: str) -> float:
        """The id of a class that is given by its name or its id (-1 marks GLUE's unlabelled test splits)."""
        if text in self.labels:
            return float(self.labels.index(text))
        # a number is an id unless the names are numbers themselves
        by_id = not any(name.isdecimal() for name in self.labels)
        if by_id and text.isdecimal() and len(text) < MAX_DIGITS and int(text) < len(self.labels):
            return float(int(text))
        expected = ", ".join(f"{id} or {name}" if by_id else name for id, name in enumerate(self.labels))
        hint = " (-1 marks an unlabelled split)" if text == "-1" else ""
        raise UserError(
            "data.label", f"{where}: label {text[:40]!r} is outside the task's classes{hint}; expected {expected}"
        )

    def distribution(self, labels: NDArray[np.float32]) -> str:
        """How many sentences each class has."""
        counts = np.bincount(labels.astype(int), minlength=self.outputs)
        shown = [f"{name} {count:,}" for name, count in zip(self.labels, counts, strict=True)]
        more = f", ... ({self.outputs:,} classes)" if self.outputs > MAX_SHOWN else ""
        return ", ".join(shown[:MAX_SHOWN]) + more

    def targets(self, labels: Tensor) -> Tensor:
        """Class ids, int64."""
        return labels.long()

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy."""
        return F.cross_entropy(logits, self.targets(labels))

    def decisions(self, logits: Tensor) -> Tensor:
        """The most probable class."""
        return logits.argmax(-1)

    def _answers(self, logits: Tensor) -> list[Prediction]:
        """The most probable label, its probability as `score`, and every label's."""
        return [self._prediction(row) for row in logits.softmax(-1).tolist()]

    def _prediction(self, probabilities: Sequence[float]) -> Prediction:
        by_label = dict(zip(self.labels, probabilities, strict=True))
        label = max(by_label, key=by_label.__getitem__)
        return {"label": label, "score": by_label[label], "probabilities": by_label}

    def _require_labels(self, names: Sequence[str]) -> None:
        if self.labels:
            super()._require_labels(names)
        elif len(names) < 2 or len(set(names)) != len(names):
            raise self._wrong_labels("at least two classes", names)


@dataclass(frozen=True)
class Regression(Task):
    """A score: mean squared error."""

    problem_type: ClassVar[str] = "regression"
    takes_single_texts: ClassVar[bool] = True

    @property
    def outputs(self) -> int:
        """One."""
        return 1

    def parse(self, text: str, where: str) -> float:
        """The score."""
        try:
            score = float(text)
        except ValueError:
            score = math.nan
        if not math.isfinite(score):
            raise UserError("data.label", f"{where}: expected a number as the score, got {text[:40]!r}")
        return score

    def distribution(self, labels: NDArray[np.float32]) -> str:
        """Least, mean and largest score."""
        return f"scores {labels.min():g} to {labels.max():g}, mean {labels.mean():.3g}"

    def targets(self, labels: Tensor) -> Tensor:
        """The scores themselves."""
        return labels

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean squared error."""
        return F.mse_loss(logits.squeeze(-1), labels)

    def decisions(self, logits: Tensor) -> Tensor:
        """The predicted scores."""
        return logits.squeeze(-1)

    def _answers(self, logits: Tensor) -> list[Prediction]:
        """The score."""
        return [{"score": score} for score in logits.squeeze(-1).tolist()]


CUSTOM = "custom"
TEXTS = ("text", "text_pair")
"""The text columns of a task whose number of texts is not its row's."""

MNLI_VALIDATION = {"validation_matched": "dev_matched.tsv", "validation_mismatched": "dev_mismatched.tsv"}
SENTENCES = ("sentence1", "sentence2")
QUESTIONS = ("question1", "question2")
ENTAILMENT = ("entailment", "not_entailment")

GLUE_TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Classification("sst2", "SST-2", ("sentence",), ("sentence",), "label", ("negative", "positive")),
        Classification(
            "cola",
            "CoLA",
            ("sentence",),
            ("sentence",),
            "label",
            ("unacceptable", "acceptable"),
            metrics=("matthews", "accuracy"),
            header=("source", "label", "mark", "sentence"),
        ),
        Classification(
            "mrpc",
            "MRPC",
            SENTENCES,
            ("#1 String", "#2 String"),
            "Quality",
            ("not_equivalent", "equivalent"),
            metrics=("accuracy", "f1"),
        ),
        Classification(
            "qqp",
            "QQP",
            QUESTIONS,
            QUESTIONS,
            "is_duplicate",
            ("not_duplicate", "duplicate"),
            metrics=("accuracy", "f1"),
        ),
        Regression("stsb", "STS-B", SENTENCES, SENTENCES, "score", (), metrics=("pearson", "spearman")),
        Classification(
            "mnli",
            "MNLI",
            ("premise", "hypothesis"),
            SENTENCES,
            "gold_label",
            ("entailment", "neutral", "contradiction"),
            validation=MNLI_VALIDATION,
        ),
        Classification("qnli", "QNLI", ("question", "sentence"), ("question", "sentence"), "label", ENTAILMENT),
        Classification("rte", "RTE", SENTENCES, SENTENCES, "label", ENTAILMENT),
        Classification("wnli", "WNLI", SENTENCES, SENTENCES, "label", ("not_entailment", "entailment")),
    )
}

CUSTOM_TASK = Classification(CUSTOM, "", ("text",), ("text",), "label", (), metrics=("accuracy", "macro_f1"))
"""A user's own files: columns and labels come from the options and the files."""


def task_name(given: str | None, own_files: bool) -> str:
    """The task that is meant, where none may be given."""
    return given or (CUSTOM if own_files else "sst2")


def get_task(name: str) -> Task:
    """The row of the task; a UserError that names the nearest one where there is none."""
    if name == CUSTOM:
        return CUSTOM_TASK
    if name not in GLUE_TASKS:
        near = get_close_matches(name.lower().replace("-", ""), GLUE_TASKS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError("task", f"expected one of {', '.join(GLUE_TASKS)} or {CUSTOM}, got {name!r}{hint}")
    return GLUE_TASKS[name]
