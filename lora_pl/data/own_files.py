"""A user's own files: CSV, TSV, JSON lines or Parquet, read by `datasets`."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_pl.data.examples import Examples, parse_label, require_columns
from lora_pl.data.glue_files import read_text
from lora_pl.data.rows import stream_rows
from lora_pl.data.tasks import MAX_DIGITS, Task
from lora_pl.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

# without it the text "None" or "NA" would be read as missing
AS_WRITTEN = {"keep_default_na": False}
READERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".csv": ("csv", AS_WRITTEN),
    ".tsv": ("csv", {"sep": "\t", "quoting": csv.QUOTE_NONE, **AS_WRITTEN}),
    ".jsonl": ("json", {}),
    ".json": ("json", {}),
    ".parquet": ("parquet", {}),
}
MAX_CLASSES = 1000


def read_table(path: str | Path, columns: Sequence[str]) -> Dataset:
    """The file as a `datasets.Dataset`, checked for `columns`.

    Raises:
        UserError: the file is missing, empty, not UTF-8, of an unknown ending or not what its ending says, or lacks a
            column.
    """
    path = Path(path).expanduser()
    ending = path.suffix.lower()
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if ending not in READERS:
        raise UserError(f"{path}: expected a name that ends in {', '.join(READERS)}")
    if ending != ".parquet" and not read_text(path).strip():
        raise UserError(f"{path}: the file is empty")
    table = _read(path, *READERS[ending])
    require_columns(columns, table.column_names, str(path))
    return table


def read_own_file(
    path: str | Path, task: Task, text_columns: Sequence[str], label_column: str, label_names: Sequence[str]
) -> Examples:
    """Labelled texts from a user's file; rows are counted from 1, the header not among them."""
    table = read_table(path, [*text_columns, label_column])
    texts = tuple([_text(cell) for cell in table[column]] for column in text_columns)
    labels = [
        parse_label(task, label_names, cell, f"{path}, row {row}") for row, cell in enumerate(table[label_column], 1)
    ]
    return Examples(texts, labels)


def discover_labels(path: str | Path, label_column: str) -> tuple[str, ...]:
    """The distinct labels of a file: in numeric order where all are whole numbers, else sorted as text.

    Raises:
        UserError: a label is missing, there are fewer than two, or so many that they look like numbers or texts.
    """
    cells = read_table(path, [label_column])[label_column]
    distinct = {_label_name(cell, f"{path}, row {row}") for row, cell in enumerate(cells, 1)}
    if not 2 <= len(distinct) <= MAX_CLASSES:
        raise UserError(
            f"{path}: column {label_column!r} has {len(distinct)} distinct labels; expected 2 to {MAX_CLASSES} classes"
        )
    if all(name.isdecimal() and len(name) < MAX_DIGITS for name in distinct):
        return tuple(sorted(distinct, key=int))
    return tuple(sorted(distinct))


def iterate_texts(path: str | Path, text_columns: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """The texts of an unlabelled file, row by row, in constant memory but for a `.json` file that is one array."""
    path = Path(path).expanduser()
    if path.suffix.lower() == ".json" and _is_array(path):
        table = read_table(path, text_columns)
        for row in table.select_columns(list(text_columns)):
            yield tuple(_text(row[column]) for column in text_columns)
    else:
        yield from stream_rows(path, text_columns)


def _is_array(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(1024).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"["


def _read(path: Path, reader: str, options: dict[str, Any]) -> Dataset:
    from datasets import load_dataset
    from datasets.utils.logging import disable_progress_bar

    disable_progress_bar()
    # a folder of its own: the library's cache would answer for a file that changed within its clock's resolution
    with tempfile.TemporaryDirectory() as cache:
        try:
            return load_dataset(
                reader, data_files=str(path), split="train", cache_dir=cache, keep_in_memory=True, **options
            )
        except Exception as error:  # pandas, pyarrow and datasets each raise their own
            cause = error.__cause__ or error
            if "corresponds to no data" in str(cause):
                raise UserError(f"{path}: no row in the file") from None
            raise UserError(f"{path}: could not be read as {reader}: {str(cause).strip().splitlines()[0]}") from error


def _label_name(cell: Any, where: str) -> str:
    if cell is None or cell != cell or not str(cell).strip():
        raise UserError(f"{where}: the label is missing")
    if isinstance(cell, float):
        if not cell.is_integer():
            raise UserError(f"{where}: label {cell!r} is no class; for scores take --data.task stsb")
        cell = int(cell)
    return str(cell).strip()


def _text(cell: Any) -> str:
    return "" if cell is None else str(cell)
