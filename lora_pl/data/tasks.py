"""The GLUE tasks (Wang et al., 2019), a row each, and the rows for a user's own files."""

from __future__ import annotations

import math
import re
import shlex
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from lora_pl.data.json_values import parse_json
from lora_pl.errors import UserError

MetricName = Literal["accuracy", "macro_f1", "f1", "matthews", "pearson", "spearman", "micro_f1", "exact_match"]
Label = float | tuple[float, ...]
"""A class id, a score, or for several labels per text a 0 or 1 for each class."""
Prediction = dict[str, Any]
"""`{"label", "score", "probabilities": {label: p}}`, `{"labels", "probabilities"}` for several labels per text, or
`{"score"}` for a regression."""
WHOLE = re.compile(r"([+-]?\d+)\.0*")
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
        return f"{line} | lora_pl predict --ckpt_path {shlex.quote(checkpoint)}"

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

    @abstractmethod
    def counts(self, labels: NDArray[np.float32]) -> NDArray[np.int64]:
        """(classes,): how many sentences each class has, by their labels, an array of `parse`'s; empty for scores."""

    @abstractmethod
    def distribution(self, labels: NDArray[np.float32]) -> str:
        """What labels there are, for a line to read."""

    @abstractmethod
    def targets(self, labels: Tensor) -> Tensor:
        """A batch's labels, in fp32, as `decisions` are."""

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


@dataclass(frozen=True)
class Classes(Task):
    """A question about given classes, with a logit for each."""

    least: ClassVar[int]
    """The fewest classes that a user's own files may have."""
    takes_lists: ClassVar[bool] = False
    """Whether a cell is a list of labels."""

    @property
    def outputs(self) -> int:
        """One per class."""
        return len(self.labels)

    @abstractmethod
    def names_in(self, text: str, where: str) -> list[str]:
        """The classes' names or ids in a cell; see `parse`."""

    @cached_property
    def _ids(self) -> dict[str, int]:
        """By the names, and by what cells of them are read as."""
        ids = {name: id for id, name in enumerate(self.labels)}
        return {label_text(name): id for name, id in ids.items()} | ids

    def class_id(self, text: str, where: str) -> int:
        """The id of a class that is given by its name or its id (-1 marks GLUE's unlabelled test splits).

        Raises:
            UserError: `data.label`: there is no such class.
        """
        if text in self._ids:
            return self._ids[text]
        # a number is an id unless the names are numbers themselves
        by_id = not any(name.isdecimal() for name in self._ids)
        if by_id and text.isdecimal() and len(text) < MAX_DIGITS and int(text) < len(self.labels):
            return int(text)
        expected = ", ".join(f"{id} or {name}" if by_id else name for id, name in enumerate(self.labels))
        hint = " (-1 marks an unlabelled split)" if text == "-1" else ""
        raise UserError(
            "data.label", f"{where}: label {text[:40]!r} is outside the task's classes{hint}; expected {expected}"
        )

    def distribution(self, labels: NDArray[np.float32]) -> str:
        """How many sentences each class has."""
        named = (f'"{name}"' if "," in name else name for name in self.labels)
        shown = [f"{name}: {count:,}" for name, count in zip(named, self.counts(labels), strict=True)]
        more = f", ... ({self.outputs:,} classes)" if self.outputs > MAX_SHOWN else ""
        return ", ".join(shown[:MAX_SHOWN]) + more

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """`weighted_loss` without weights and smoothing."""
        return self.weighted_loss(logits, labels)

    @abstractmethod
    def weighted_loss(
        self, logits: Tensor, labels: Tensor, weights: Tensor | None = None, smoothing: float = 0.0
    ) -> Tensor:
        """The loss with weights (classes,), and labels smoothed by a share in [0, 1)."""

    @abstractmethod
    def balanced(self, labels: NDArray[np.float32]) -> NDArray[np.float64]:
        """(classes,): weights that make up for the classes' counts; none is finite and > 0 where they can't."""

    def _require_labels(self, names: Sequence[str]) -> None:
        if self.labels:
            super()._require_labels(names)
        elif len(names) < self.least or len(set(names)) != len(names):
            raise self._wrong_labels(f"{self.least} or more classes", names)


@dataclass(frozen=True)
class Classification(Classes):
    """One of several classes: cross-entropy; an answer has every class's probability."""

    problem_type: ClassVar[str] = "single_label_classification"
    least: ClassVar[int] = 2

    def names_in(self, text: str, where: str) -> list[str]:
        """The one in the cell."""
        return [text]

    def parse(self, text: str, where: str) -> float:
        """The class id."""
        return float(self.class_id(text, where))

    def counts(self, labels: NDArray[np.float32]) -> NDArray[np.int64]:
        """Of class ids, (sentences,)."""
        return np.bincount(labels.astype(int), minlength=self.outputs)

    def targets(self, labels: Tensor) -> Tensor:
        """Class ids, int64."""
        return labels.long()

    def weighted_loss(
        self, logits: Tensor, labels: Tensor, weights: Tensor | None = None, smoothing: float = 0.0
    ) -> Tensor:
        """Cross-entropy."""
        return F.cross_entropy(logits, self.targets(labels), weights, label_smoothing=smoothing)

    def balanced(self, labels: NDArray[np.float32]) -> NDArray[np.float64]:
        """n / (classes count), as scikit-learn's."""
        counts = self.counts(labels)
        with np.errstate(divide="ignore"):
            weights: NDArray[np.float64] = counts.sum() / (len(counts) * counts)
        return weights

    def decisions(self, logits: Tensor) -> Tensor:
        """The most probable class."""
        return logits.argmax(-1)

    def error(self, label: Label, prediction: Prediction) -> dict[str, Any]:
        """With the predicted label's probability."""
        assert isinstance(label, float)
        return {"label": self.labels[int(label)], "prediction": prediction["label"], "probability": prediction["score"]}

    def _answers(self, logits: Tensor) -> list[Prediction]:
        """The most probable label, its probability as `score`, and every label's."""
        return [self._prediction(row) for row in logits.softmax(-1).tolist()]

    def _prediction(self, probabilities: Sequence[float]) -> Prediction:
        by_label = dict(zip(self.labels, probabilities, strict=True))
        label = max(by_label, key=by_label.__getitem__)
        return {"label": label, "score": by_label[label], "probabilities": by_label}


@dataclass(frozen=True)
class MultiLabel(Classes):
    """Any number of the classes, each decided by itself: binary cross-entropy, the mean over classes and sentences.

    A label of a batch is a row of (batch, classes), 0 or 1 for each class; that of a cell is a JSON list.
    """

    problem_type: ClassVar[str] = "multi_label_classification"
    least: ClassVar[int] = 1
    takes_lists: ClassVar[bool] = True

    def names_in(self, text: str, where: str) -> list[str]:
        """Those in the list."""
        try:
            names = parse_json(text, where)
        except UserError:
            names = None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            expected = 'a list of labels, such as ["a", "b"], or [] for none'
            hint = "; a column of 0 and 1 per label goes into --data.label_columns" if text in ("0", "1") else ""
            raise UserError("data.label", f"{where}: expected {expected}, got {text[:40]!r}{hint}")
        return [name if name in self.labels else label_text(name) for name in names]

    def parse(self, text: str, where: str) -> tuple[float, ...]:
        """0 or 1 for each class; a name that is listed twice counts once."""
        ids = {self.class_id(name, where) for name in self.names_in(text, where)}
        return tuple(1.0 if id in ids else 0.0 for id in range(self.outputs))

    def counts(self, labels: NDArray[np.float32]) -> NDArray[np.int64]:
        """Of rows, (sentences, classes)."""
        counts: NDArray[np.int64] = labels.sum(0, dtype=np.int64)
        return counts

    def distribution(self, labels: NDArray[np.float32]) -> str:
        """How many sentences each class has, and how many have none."""
        without = int((~labels.any(1)).sum())
        return super().distribution(labels) + (f"; {without:,} without a label" if without else "")

    def targets(self, labels: Tensor) -> Tensor:
        """0 and 1, int64."""
        return labels.long()

    def weighted_loss(
        self, logits: Tensor, labels: Tensor, weights: Tensor | None = None, smoothing: float = 0.0
    ) -> Tensor:
        """Binary cross-entropy: weights multiply the terms of the labels that are there (`pos_weight`)."""
        smoothed = labels * (1 - smoothing) + smoothing / 2
        return F.binary_cross_entropy_with_logits(logits, smoothed, pos_weight=weights)

    def balanced(self, labels: NDArray[np.float32]) -> NDArray[np.float64]:
        """Sentences without the label by sentences with it."""
        counts = self.counts(labels)
        with np.errstate(divide="ignore"):
            weights: NDArray[np.float64] = (len(labels) - counts) / counts
        return weights

    def decisions(self, logits: Tensor) -> Tensor:
        """1 where a label's probability is above 1/2."""
        return (logits > 0).long()

    def error(self, label: Label, prediction: Prediction) -> dict[str, Any]:
        """With the probability of the surest wrong decision about a label."""
        assert isinstance(label, tuple)
        true, predicted = self._names(label), prediction["labels"]
        chances = [prediction["probabilities"][name] for name in {*true} ^ {*predicted}]
        sure = max((max(chance, 1 - chance) for chance in chances), default=0.0)
        return {"label": true, "prediction": predicted, "probability": sure}

    def _answers(self, logits: Tensor) -> list[Prediction]:
        """The labels whose probability is above 1/2, and every label's."""
        return [
            {"labels": self._names(decided), "probabilities": dict(zip(self.labels, chances, strict=True))}
            for decided, chances in zip(self.decisions(logits).tolist(), logits.sigmoid().tolist(), strict=True)
        ]

    def _names(self, row: Sequence[float]) -> list[str]:
        return [name for name, there in zip(self.labels, row, strict=True) if there]


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

    def counts(self, labels: NDArray[np.float32]) -> NDArray[np.int64]:
        """None."""
        return np.zeros(0, np.int64)

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

    def error(self, label: Label, prediction: Prediction) -> dict[str, Any]:
        """With their difference."""
        assert isinstance(label, float)
        score = prediction["score"]
        return {"label": label, "prediction": score, "difference": abs(score - label)}

    def _answers(self, logits: Tensor) -> list[Prediction]:
        """The score."""
        return [{"score": score} for score in logits.squeeze(-1).tolist()]


def label_text(cell: object) -> str:
    """As written, stripped; but 1.0 is 1, as spreadsheets write ids in a column with gaps."""
    text = str(cell).strip()
    whole = WHOLE.fullmatch(text)
    return whole[1] if whole else text


CUSTOM, MULTILABEL = "custom", "multilabel"
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

OWN_TASKS: dict[str, Classes] = {
    task.name: task
    for task in (
        Classification(CUSTOM, "", ("text",), ("text",), "label", (), metrics=("accuracy", "macro_f1")),
        MultiLabel(MULTILABEL, "", ("text",), ("text",), "label", (), metrics=("micro_f1", "macro_f1", "exact_match")),
    )
}
"""A user's own files: columns and labels come from the options and the files."""
CUSTOM_TASK = OWN_TASKS[CUSTOM]


def task_name(given: str | None, own_files: bool) -> str:
    """The task that is meant, where none may be given."""
    return given or (CUSTOM if own_files else "sst2")


def get_task(name: str) -> Task:
    """The row of the task; a UserError that names the nearest one where there is none."""
    known = {**GLUE_TASKS, **OWN_TASKS}
    if name not in known:
        near = get_close_matches(re.sub("[-_]", "", name.lower()), known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        named = f"{', '.join(GLUE_TASKS)}, or {' or '.join(OWN_TASKS)} for your own files"
        raise UserError("task", f"expected one of {named}, got {name!r}{hint}")
    return known[name]
