"""Labelled texts, as every source gives them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lora_pl.data.tasks import Task
from lora_pl.errors import UserError

MAX_DIGITS = 10  # of a class id


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
    text = _cell_text(cell)
    if task.is_regression:
        return _score(text, where)
    if text in label_names:
        return float(label_names.index(text))
    # a number is an id unless the names are numbers themselves
    if (
        text.isdecimal()
        and len(text) < MAX_DIGITS
        and int(text) < len(label_names)
        and not any(name.isdecimal() for name in label_names)
    ):
        return float(int(text))
    expected = ", ".join(f"{index} or {name}" if name != str(index) else name for index, name in enumerate(label_names))
    hint = " (-1 marks an unlabelled split)" if text == "-1" else ""
    raise UserError(f"{where}: label {text[:40]!r} is outside the task's classes{hint}; expected {expected}")


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


def _score(text: str, where: str) -> float:
    try:
        score = float(text)
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise UserError(f"{where}: expected a number as the score, got {text!r}")
    return score
