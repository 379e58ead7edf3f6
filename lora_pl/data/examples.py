"""Labelled texts of any source."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lora_pl.data.classes import MAX_DIGITS, Classes, label_text
from lora_pl.data.rows import Row, read_rows
from lora_pl.data.task import Label, Task
from lora_pl.data.tasks import CUSTOM_TASK
from lora_pl.errors import UserError

MAX_CLASSES, MAX_NAME = 1000, 1000
SCORE = re.compile(r"[+-]?\d*\.\d+(e[+-]?\d+)?", re.IGNORECASE)
FLAGS = {"0": False, "1": True, "false": False, "true": True}


@dataclass(frozen=True)
class Examples:
    """One split: texts by column, each as long as `labels`."""

    texts: tuple[list[str], ...]
    """One list per text column, two for pairs."""
    labels: list[Label]
    rows: Sequence[int] = ()
    """The examples' numbers in their source, from 1; by default all of it in order."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", self.rows or range(1, len(self) + 1))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def blank(self) -> int:
        """The number of examples with a blank text, which are kept."""
        return sum(any(not text.strip() for text in texts) for texts in zip(*self.texts, strict=True))

    def take(self, chosen: NDArray[np.bool_]) -> Examples:
        """The examples where `chosen`, (examples,), is true."""
        texts = tuple(list(compress(column, chosen)) for column in self.texts)
        return Examples(texts, list(compress(self.labels, chosen)), list(compress(self.rows, chosen)))


def read_examples(
    path: str | Path,
    task: Task,
    text_columns: Sequence[str],
    label_column: str,
    header: Sequence[str] = (),
    flags: Sequence[str] = (),
) -> Examples:
    """Labelled texts from a table; see `read_rows` for formats and errors.

    Args:
        path: The table.
        task: Its labels.
        text_columns: The columns of the texts.
        label_column: That of the labels.
        header: The columns of a CSV or TSV file without a header line.
        flags: A column of 0 and 1 for each of the task's labels, instead of `label_column`.

    Raises:
        UserError: `data.label`: a label is not one of the task's; `data.empty`: the table has no row.
    """
    rows = read_rows(path, [*text_columns, *(flags or [label_column])], header, lists=list_columns(task, label_column))
    return examples_of(listed(rows, flags, task.labels), task, str(path))


def list_columns(task: Task, label_column: str) -> list[str]:
    """The columns whose cells may be lists."""
    return [label_column] if task.takes_lists else []


def listed(rows: Iterable[Row], flags: Sequence[str], labels: Sequence[str]) -> Iterator[Row]:
    """Rows that end in a cell of 0 or 1 for each label, as rows that end in a list of labels; without `flags` as given.

    Raises:
        UserError: `data.label`: a cell is neither 0 nor 1.
    """
    if not flags:
        yield from rows
        return
    for where, cells in rows:
        texts, marks = cells[: -len(flags)], cells[-len(flags) :]
        there = [_flag(mark, f"{where}, {column}") for mark, column in zip(marks, flags, strict=True)]
        yield where, (*texts, json.dumps([name for name, mark in zip(labels, there, strict=True) if mark]))


def _flag(cell: str, where: str) -> bool:
    flag = FLAGS.get(label_text(cell).lower())
    if flag is None:
        raise UserError("data.label", f"{where}: expected 0 or 1, got {cell[:40]!r}")
    return flag


def examples_of(rows: Iterable[Row], task: Task, source: str) -> Examples:
    """The examples in rows of texts with the label as their last cell; see `read_examples`."""
    texts, labels = [], []
    for where, (*cells, label) in rows:
        texts.append(cells)
        labels.append(task.parse(label_text(label), where))
    if not labels:
        raise UserError("data.empty", f"{source}: no row")
    return Examples(tuple(map(list, zip(*texts, strict=True))), labels)


def discover_labels(path: str | Path, label_column: str, task: Classes = CUSTOM_TASK) -> tuple[str, ...]:
    """The distinct labels of a table as written, sorted as numbers if all are whole numbers, else as text.

    Raises:
        UserError: `data.label`: a label is missing or a decimal number, or there are too few for the task or over
            1,000.
    """
    rows = read_rows(path, [label_column], lists=list_columns(task, label_column))
    return classes_of(rows, task, str(path), label_column)


def classes_of(rows: Iterable[Row], task: Classes, source: str, label_column: str) -> tuple[str, ...]:
    """The distinct labels in rows of a label each; see `discover_labels`."""
    distinct: set[str] = set()
    for where, (cell,) in rows:
        distinct.update(_class_name(name, where) for name in task.names_in(label_text(cell), where))
        if len(distinct) > MAX_CLASSES:
            break
    if not task.least <= len(distinct) <= MAX_CLASSES:
        count = f"over {MAX_CLASSES}" if len(distinct) > MAX_CLASSES else len(distinct)
        raise UserError(
            "data.label",
            f"{source}: column {label_column!r} has {count} distinct labels; expected {task.least} to {MAX_CLASSES} "
            "classes",
        )
    if all(name.isdecimal() and len(name) < MAX_DIGITS for name in distinct):
        return tuple(sorted(distinct, key=lambda name: (int(name), name)))
    return tuple(sorted(distinct))


def _class_name(name: str, where: str) -> str:
    if not name:
        raise UserError("data.label", f"{where}: the label is missing")
    if len(name) > MAX_NAME:
        raise UserError("data.label", f"{where}: a label of {len(name):,} characters is no class's name")
    if SCORE.fullmatch(name):
        raise UserError("data.label", f"{where}: label {name[:40]} is no class; for scores take --data.task stsb")
    return name
