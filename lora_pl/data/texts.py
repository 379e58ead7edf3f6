"""Unlabelled texts to predict, as a stream."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lora_pl.data.lines import STDIN, decoded_lines, opened, source_name
from lora_pl.data.rows import TABLES, Row, read_rows
from lora_pl.data.task import TEXTS
from lora_pl.errors import UserError

CHUNK = 512  # texts read at a time: enough for batches of like length, few enough for memory
SHARD = 64  # chunks that one process predicts and saves as a part

Format = Literal["text", "csv", "tsv", "jsonl"]
Text = str | tuple[str, ...]
"""A sentence, or a pair of them."""


def as_row(text: Text) -> tuple[str, ...]:
    """The text's columns: one, or two of a pair."""
    return (text,) if isinstance(text, str) else tuple(text)


def as_text(row: Sequence[str]) -> Text:
    """The reverse of `as_row`."""
    return row[0] if len(row) == 1 else tuple(row)


def named(text: Text) -> dict[str, str]:
    """`{"text"}` or `{"text", "text_pair"}`: the first columns of a prediction's row."""
    return dict(zip(TEXTS, as_row(text), strict=False))


def with_kept(row: Mapping[str, Any], kept: Mapping[str, str]) -> dict[str, Any]:
    """A prediction's row and the columns that are kept, those as `input_NAME` that the row has itself, in CSV too."""
    own = {*row, *(f"probabilities.{label}" for label in row.get("probabilities", ()))}
    return {**row, **{f"input_{name}" if name in own else name: cell for name, cell in kept.items()}}


def require_list(texts: Sequence[Text]) -> None:
    """Raise a UserError, `predict.texts`, for one string (a sequence of letters), or items that are no texts."""
    if isinstance(texts, str):
        raise UserError("predict.texts", f"expected a list of texts, got one string; write predict([{texts[:20]!r}])")
    if not isinstance(texts, Sequence):
        raise UserError("predict.texts", f"expected a list of texts, got {type(texts).__name__}")
    for place, text in enumerate(texts, 1):
        if not isinstance(text, str) and not (isinstance(text, list | tuple) and all(isinstance(t, str) for t in text)):
            raise UserError("predict.texts", f"item {place}: expected a string or a pair of strings, got {text!r:.60}")


def as_columns(texts: Sequence[Text], pairs: bool) -> list[list[str]]:
    """One list per text column.

    Raises:
        UserError: `predict.texts`: sentences and pairs are mixed, or are not what the model reads.
    """
    rows = [as_row(text) for text in texts]
    width = 1 + pairs
    if any(len(row) != width for row in rows):
        kind = "pairs of sentences, as [(first, second), ...]" if pairs else "single sentences, as [sentence, ...]"
        found = sorted({len(row) for row in rows})
        raise UserError("predict.texts", f"this model reads {kind}; got items of {' and '.join(map(str, found))} texts")
    return [list(column) for column in zip(*rows, strict=True)]


class TextStream:
    """Lists of at most `CHUNK` texts from a file or standard input, in constant memory.

    CSV, TSV, JSON lines and Parquet are read by column; in any other file or pipe, and on standard input, every line is
    a text (or two separated by a tab).

    Args:
        path: The file; - is standard input.
        columns: Of a table: the columns that make a row.
        format: By default the ending's; text where there is none.

    Raises:
        UserError: `input`: there is no such file; while reading: see `read_rows`; `input_format`: lines without a
            format that look like a table.
    """

    def __init__(self, path: str, columns: Sequence[str], format: Format | None = None) -> None:
        self.path, self.columns, self.format = path, columns, format
        ending = f".{format}" if format else Path(path).suffix.lower()
        self.ending = ending if ending in TABLES else None
        """The table's format by its ending; None for lines."""
        # a file may be called - too
        self._place = Path(path).absolute() if path != STDIN == str(Path(path)) else Path(path)
        self.once = path == STDIN or Path(path).is_fifo()
        """Whether the texts are gone once they are read."""
        self.blank = 0
        """How many blank lines of a table were skipped."""
        self.where: list[str] = []
        """Where the texts of the last list are (`x.csv, line 3`)."""
        if not self.once and not Path(path).is_file():
            what = "not a regular file or a pipe" if Path(path).exists() else "no such file"
            raise UserError("input", f"{path}: {what}; give a file, or - for standard input")

    def __iter__(self) -> Iterator[list[Text]]:
        rows = self._rows()
        while chunk := list(itertools.islice(rows, CHUNK)):
            self.where = [where for where, _ in chunk]
            yield [as_text(cells) for _, cells in chunk]

    def shards(self, wanted: Callable[[int], bool]) -> Iterator[tuple[int, Iterator[list[Text]]]]:
        """The stream in shards of `SHARD` lists: number and lists of the `wanted` ones."""
        numbered = itertools.groupby(enumerate(self), lambda item: item[0] // SHARD)
        return ((shard, (chunk for _, chunk in items)) for shard, items in numbered if wanted(shard))

    def _rows(self) -> Iterator[Row]:
        if not self.ending:
            yield from self._lines()
            return
        self.blank = 0
        for where, cells in read_rows(self._place, self.columns, once=True, ending=self.ending, blank=True):
            if cells:
                yield where, cells
            else:
                self.blank += 1

    def _lines(self) -> Iterator[Row]:
        name, width = source_name(self._place), len(self.columns)
        with opened(self._place) as stream:
            for number, line in enumerate(decoded_lines(stream, name), 1):
                text = line.rstrip("\r\n")
                if number == 1 and not self.format and (table := _table_of(text, self.columns[0])):
                    raise UserError(
                        "input_format",
                        f"{name}, line 1 looks like {table} with the column {self.columns[0]!r}; give --input_format "
                        f"{table}, or --input_format text if every line is a text",
                    )
                row = tuple(text.split("\t")) if width > 1 else (text,)
                where = f"{name}, line {number}"
                if len(row) != width:
                    raise UserError("data.row", f"{where}: expected {width} texts separated by a tab, got {len(row)}")
                yield where, row


def _table_of(line: str, column: str) -> Format | None:
    """The format of the table that the line begins, if it names the column."""
    if column not in line:
        return None
    try:
        if line.startswith("{"):
            return "jsonl" if column in json.loads(line) else None
        if column in line.split("\t"):
            return "tsv"
        return "csv" if column in next(csv.reader([line])) else None
    except (ValueError, RecursionError, csv.Error):  # no table after all
        return None
