"""Labelled texts of any source."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lora_pl.data.rows import Row, read_rows
from lora_pl.data.tasks import MAX_DIGITS, Task
from lora_pl.errors import UserError

MAX_CLASSES, MAX_NAME = 1000, 1000
WHOLE, SCORE = re.compile(r"([+-]?\d+)\.0*"), re.compile(r"[+-]?\d*\.\d+(e[+-]?\d+)?", re.IGNORECASE)


@dataclass(frozen=True)
class Examples:
    """One split: texts by column, each as long as `labels`."""

    texts: tuple[list[str], ...]
    """One list per text column, two for pairs."""
    labels: list[float]
    """Class ids as whole numbers, or scores of a regression."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def blank(self) -> int:
        """The number of examples with a blank text, which are kept."""
        return sum(any(not text.strip() for text in texts) for texts in zip(*self.texts, strict=True))

    def take(self, chosen: NDArray[np.bool_]) -> Examples:
        """The examples where `chosen`, (examples,), is true."""
        texts = tuple(list(compress(column, chosen)) for column in self.texts)
        return Examples(texts, list(compress(self.labels, chosen)))


def read_examples(
    path: str | Path,
    task: Task,
    text_columns: Sequence[str],
    label_column: str,
    header: Sequence[str] = (),
) -> Examples:
    """Labelled texts from a table; see `read_rows` for formats and errors.

    Raises:
        UserError: `data.label`: a label is not one of the task's; `data.empty`: the table has no row.
    """
    return examples_of(read_rows(path, [*text_columns, label_column], header), task, str(path))


def examples_of(rows: Iterable[Row], task: Task, source: str) -> Examples:
    """The examples in rows of texts with the label as their last cell; see `read_examples`."""
    texts, labels = [], []
    for where, (*cells, label) in rows:
        texts.append(cells)
        labels.append(parse_label(task, label, where))
    if not labels:
        raise UserError("data.empty", f"{source}: no row")
    return Examples(tuple(map(list, zip(*texts, strict=True))), labels)


def discover_labels(path: str | Path, label_column: str) -> tuple[str, ...]:
    """The distinct labels of a table as written, sorted as numbers if all are whole numbers, else as text.

    Raises:
        UserError: `data.label`: a label is missing or a decimal number, or there are fewer than 2 or over 1,000.
    """
    return classes_of(read_rows(path, [label_column]), str(path), label_column)


def classes_of(rows: Iterable[Row], source: str, label_column: str) -> tuple[str, ...]:
    """The distinct labels in rows of a label each; see `discover_labels`."""
    distinct: set[str] = set()
    for where, (cell,) in rows:
        distinct.add(_class_name(cell, where))
        if len(distinct) > MAX_CLASSES:
            break
    if not 2 <= len(distinct) <= MAX_CLASSES:
        count = f"over {MAX_CLASSES}" if len(distinct) > MAX_CLASSES else len(distinct)
        raise UserError(
            "data.label",
            f"{source}: column {label_column!r} has {count} distinct labels; expected 2 to {MAX_CLASSES} classes",
        )
    if all(name.isdecimal() and len(name) < MAX_DIGITS for name in distinct):
        return tuple(sorted(distinct, key=lambda name: (int(name), name)))
    return tuple(sorted(distinct))


def parse_label(task: Task, cell: object, where: str) -> float:
    """A class id, given by name or number, or a regression's score; see `Task.parse`."""
    return task.parse(_label_text(cell), where)


def _label_text(cell: object) -> str:
    """As written, stripped; but 1.0 is 1, as spreadsheets write ids in a column with gaps."""
    text = str(cell).strip()
    whole = WHOLE.fullmatch(text)
    return whole[1] if whole else text


def _class_name(cell: str, where: str) -> str:
    name = _label_text(cell)
    if not name:
        raise UserError("data.label", f"{where}: the label is missing")
    if len(name) > MAX_NAME:
        raise UserError("data.label", f"{where}: a label of {len(name):,} characters is no class's name")
    if SCORE.fullmatch(name):
        raise UserError("data.label", f"{where}: label {name[:40]} is no class; for scores take --data.task stsb")
    return name
