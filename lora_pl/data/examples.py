"""Labelled texts, as every source gives them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lora_pl.data.tasks import Task
from lora_pl.errors import UserError


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
        """How many examples have nothing but white space in a text column; they are kept."""
        return sum(any(not text.strip() for text in texts) for texts in zip(*self.texts, strict=True))


def parse_label(task: Task, label_names: Sequence[str], cell: object, where: str) -> float:
    """A class id, given by name or number, or a regression's score.

    Raises:
        UserError: the cell is missing, is no number (regression) or is outside the task's classes (-1 marks GLUE's
            unlabelled test splits).
    """
    if tuple(label_names) != task.labels:
        task = replace(task, labels=tuple(label_names))
    return task.parse(_cell_text(cell), where)


def require_columns(columns: Sequence[str], present: Sequence[str], where: str) -> None:
    """Raise a UserError that lists what is there if one of `columns` is not."""
    for column in columns:
        if column not in present:
            # a hostile header must not write over the terminal
            shown = ", ".join(name if name.isprintable() else repr(name) for name in map(str, present))
            raise UserError(f"{where}: no column {column!r}; there are: {shown[:500]}")


def by_column(rows: Mapping[str, list[str]], columns: Sequence[str]) -> tuple[list[str], ...]:
    """The text columns in their order."""
    return tuple(rows[column] for column in columns)


def _cell_text(cell: object) -> str:
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return "NaN"
    # a column of whole numbers with a gap is read as floats
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell).strip()
