"""Tasks whose answers are classes: one of several, or any number of them."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from lora_pl.data.json_values import parse_json
from lora_pl.data.task import Label, Prediction, Task
from lora_pl.errors import UserError
from lora_pl.printable import first_of

WHOLE = re.compile(r"([+-]?\d+)\.0*")
MAX_DIGITS = 10  # of a class id
MAX_SHOWN = 12  # classes in a line


def label_text(cell: object) -> str:
    """As written, stripped; but 1.0 is 1, as spreadsheets write ids in a column with gaps."""
    text = str(cell).strip()
    whole = WHOLE.fullmatch(text)
    return whole[1] if whole else text


@dataclass(frozen=True)
class Classes(Task):
    """A question about given classes, with a logit for each."""

    least: ClassVar[int]
    """The fewest classes that a user's own files may have."""

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
        shown = first_of(
            [f"{name}: {count:,}" for name, count in zip(named, self.counts(labels), strict=True)], MAX_SHOWN
        )
        return f"{shown} ({self.outputs:,} classes)" if self.outputs > MAX_SHOWN else shown

    def targets(self, labels: Tensor) -> Tensor:
        """Class ids, or 0 and 1 for each class, int64."""
        return labels.long()

    @abstractmethod
    def loss(self, logits: Tensor, labels: Tensor, weights: Tensor | None = None, smoothing: float = 0.0) -> Tensor:
        """The loss, by default without weights (classes,) and without a share in [0, 1) that smooths the labels."""

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

    def loss(self, logits: Tensor, labels: Tensor, weights: Tensor | None = None, smoothing: float = 0.0) -> Tensor:
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
        rows = [dict(zip(self.labels, row, strict=True)) for row in logits.softmax(-1).tolist()]
        return [{"label": (best := max(p, key=p.__getitem__)), "score": p[best], "probabilities": p} for p in rows]


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

    def loss(self, logits: Tensor, labels: Tensor, weights: Tensor | None = None, smoothing: float = 0.0) -> Tensor:
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
