"""The columns of a user's own files."""

from __future__ import annotations

from lora_pl.data.classes import Classes
from lora_pl.data.task import Task
from lora_pl.errors import UserError


def text_columns(task: Task, text: str | None, pair: str | None) -> tuple[str, ...]:
    """The text columns of own files: as given, else the task's.

    Raises:
        UserError: `data.text_pair_column`: the first one alone is given, for a task on pairs.
    """
    if text is None and pair is None:
        return task.columns
    if pair is None and task.pairs and not task.takes_single_texts:
        raise UserError(
            "data.text_pair_column", f"expected the second sentence's column for the task {task.name}, got none"
        )
    return (text or task.columns[0],) if pair is None else (text or task.columns[0], pair)


def require_label_columns(task: Task, columns: list[str] | None, names: list[str] | None) -> None:
    """Raise `data.label_columns` unless the task has several labels per text, and a column for each class."""
    if columns is None:
        return
    if not isinstance(task, Classes) or not task.takes_lists:
        raise UserError(
            "data.label_columns", f"several labels per text are for --data.task multilabel, got {task.name}"
        )
    if not columns or len(set(columns)) != len(columns) or len(columns) != len(names or columns):
        expected = f"one column for each of {', '.join(names)}" if names else "at least one column"
        raise UserError("data.label_columns", f"expected {expected}, all different, got {columns}")
