"""Rows of a table, streamed, for training and prediction.

Read by csv, json and pyarrow rather than `datasets`, because cells must stay as written, errors must name a line and
memory must have a bound: `datasets` turns "2020-01-01" in JSON into a timestamp, silently fills short rows of CSV,
reads lines of any length and crashes on JSON nested 200,000 deep.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

from lora_pl.data.json_values import MAX_LINE, array_values, parse_json
from lora_pl.data.lines import STDIN, decoded_lines, not_utf8, opened, source_name
from lora_pl.data.parquet import NO_TEXT, parquet_batches
from lora_pl.errors import UserError
from lora_pl.storage.paths import expanded

FREE, RATIO, ROW = 1 << 28, 200, 64
"""A Parquet file may stand for 256 MiB and 200 times its size: its texts, and 64 bytes per row."""

NAMED_BY = "--data.text_column, --data.text_pair_column, --data.label_column or --data.label_columns names another"

Cells = tuple[str, ...]
Row = tuple[str, Cells]
"""Where the row is (`x.csv, line 3`), and its cells."""


def read_rows(
    path: str | Path,
    columns: Sequence[str],
    header: Sequence[str] = (),
    once: bool = False,
    ending: str = "",
    lists: Collection[str] = (),
    blank: bool = False,
) -> Iterator[Row]:
    """The columns of a CSV, TSV, JSON lines or Parquet file, row by row.

    Cells are texts as written, empty if missing. Quotes count in CSV but not in TSV (as in GLUE's files). A `.json`
    file may be one array. Memory is constant.

    Args:
        path: The file; - is standard input.
        columns: The columns to read, in this order.
        header: The columns of a CSV or TSV file without a header line.
        once: Whether nobody reads it again, so that it may be a pipe; not of Parquet, which is read from its end.
        ending: Its format: `.csv`, `.tsv`, ...; by default the path's own.
        lists: The columns in which JSON lines and Parquet may have lists of texts, which are read as JSON.
        blank: Whether a blank line of CSV, TSV or JSON lines is a row without cells; by default it is skipped.

    Raises:
        UserError: `data.missing`, `data.format` (an unknown ending, or not the ending's format), `data.empty`,
            `data.encoding` (not UTF-8), `data.column`, `data.row` (a wrong number of cells, or a cell that is no text),
            `data.long_line` (a line or row of more than 16 MiB).
    """
    rows = _rows(expanded(path), columns, header, once, ending, lists)
    return rows if blank else (row for row in rows if row[1])


def _rows(
    path: Path, columns: Sequence[str], header: Sequence[str], once: bool, ending: str, lists: Collection[str]
) -> Iterator[Row]:
    reader = TABLES.get(ending or path.suffix.lower())
    if str(path) == STDIN and reader not in (None, _parquet):
        return reader(path, columns, header, lists)
    if not path.is_file() and not (once and path.is_fifo() and reader is not _parquet):
        raise UserError("data.missing", f"{path}: {'not a regular file' if path.exists() else 'no such file'}")
    if reader is None:
        raise UserError("data.format", f"{path}: expected a name that ends in {', '.join(TABLES)}")
    if path.is_file() and not path.stat().st_size:
        raise UserError("data.empty", f"{path}: the file is empty")
    return reader(path, columns, header, lists)


def require_columns(columns: Sequence[str], present: Sequence[str], where: str) -> None:
    """Raise `data.column`, listing the columns `present`, if one of `columns` is missing or there twice."""
    for column in columns:
        if present.count(column) > 1:
            raise UserError("data.column", f"{where}: there are several columns {column!r}; rename all but one")
        if column not in present:
            # no control characters of a hostile header in the terminal
            shown = ", ".join(name if name.isprintable() else repr(name) for name in map(str, present))
            way = "save it with commas" if len(present) == 1 and ";" in shown else NAMED_BY
            raise UserError("data.column", f"{where}: no column {column!r}; there are: {shown[:500]} ({way})")


Numbered = Iterator[tuple[int, list[str]]]


def _csv(lines: Iterator[str], name: str) -> Numbered:
    read = 0

    def bounded() -> Iterator[str]:
        nonlocal read
        for line in lines:
            read += len(line)
            if read > MAX_LINE:  # over many lines, where a quote is never closed
                where = f"{name}, line {reader.line_num}"
                raise UserError("data.long_line", f"{where}: a row of over {MAX_LINE:,} characters; is a quote open?")
            yield line

    csv.field_size_limit(MAX_LINE)
    reader = csv.reader(bounded(), strict=True)
    try:
        for row in reader:
            read = 0
            yield reader.line_num, row
    except csv.Error as error:
        raise UserError("data.format", f"{name}, line {reader.line_num}: could not be read as csv: {error}") from None


def _tsv(lines: Iterator[str], name: str) -> Numbered:
    for number, line in enumerate(lines, 1):
        text = line.rstrip("\r\n")
        yield number, text.split("\t") if text else []


def _delimited(
    split: Callable[[Iterator[str], str], Numbered],
    path: Path,
    columns: Sequence[str],
    header: Sequence[str],
    lists: Collection[str],
) -> Iterator[Row]:
    name = source_name(path)
    with opened(path) as file:
        rows = split(decoded_lines(file, name), name)
        names = list(header) or next((row for _, row in rows if row), [])
        if not names:
            raise UserError("data.empty", f"{name}: the file is empty")
        require_columns(columns, names, name)
        places = [names.index(column) for column in columns]
        for number, row in rows:
            if row and len(row) != len(names):
                raise UserError("data.row", f"{name}, line {number}: expected {len(names)} columns, got {len(row)}")
            yield f"{name}, line {number}", tuple(row[place] for place in places) if row else ()


def _json(path: Path, columns: Sequence[str], header: Sequence[str], lists: Collection[str]) -> Iterator[Row]:
    name = source_name(path)
    with opened(path) as file:
        if path.suffix.lower() == ".json" and file.peek().lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"[":
            yield from _json_array(file, path, columns, lists)
            return
        for number, line in enumerate(decoded_lines(file, name), 1):
            where = f"{name}, line {number}"
            yield _json_row(parse_json(line, where), columns, where, lists) if line.strip() else (where, ())


def _json_array(file: IO[bytes], path: Path, columns: Sequence[str], lists: Collection[str]) -> Iterator[Row]:
    try:
        with io.TextIOWrapper(file, encoding="utf-8-sig") as text:
            for number, value in enumerate(array_values(text, str(path)), 1):
                yield _json_row(value, columns, f"{path}, row {number}", lists)
    except UnicodeDecodeError as error:
        raise not_utf8(error, str(path)) from None


def _json_row(values: Any, columns: Sequence[str], where: str, lists: Collection[str]) -> Row:
    if not isinstance(values, dict):
        raise UserError("data.format", f"{where}: expected an object per line, such as {{{columns[0]!r}: ...}}")
    require_columns(columns, list(values), where)
    return where, tuple(cell_text(values[column], where, column in lists) for column in columns)


def cell_text(value: Any, where: str, is_list: bool = False) -> str:
    """The cell as text, empty if missing, a list as JSON where it may be one.

    Raises:
        UserError: `data.row`, `data.encoding`: it is no text.
    """
    if is_list and isinstance(value, list):
        value = json.dumps(value, ensure_ascii=False, default=str)
    if isinstance(value, dict | list | bytes):
        hint = NO_TEXT if isinstance(value, list) else ""
        raise UserError("data.row", f"{where}: expected a text, got {type(value).__name__}{hint}")
    text = "" if value is None or value != value else str(value)
    if not text.isascii() and not text.isprintable():
        try:
            text.encode()
        except UnicodeEncodeError:  # JSON can name half a character
            raise UserError("data.encoding", f"{where}: holds half of a surrogate pair, which is no text") from None
    return text


def _parquet(path: Path, columns: Sequence[str], header: Sequence[str], lists: Collection[str]) -> Iterator[Row]:
    left, number = FREE + RATIO * path.stat().st_size, 0
    for batch in parquet_batches(path, columns, lists):
        for cells in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            number += 1
            where = f"{path}, row {number}"
            row = tuple(cell_text(cell, where, name in lists) for cell, name in zip(cells, columns, strict=True))
            left -= ROW + sum(map(len, row))
            if left < 0:
                raise UserError("data.format", f"{where}: the file repeats itself over {RATIO} times; save it as CSV")
            yield where, row


TABLES: dict[str, Callable[[Path, Sequence[str], Sequence[str], Collection[str]], Iterator[Row]]] = {
    ".csv": partial(_delimited, _csv),
    ".tsv": partial(_delimited, _tsv),
    ".jsonl": _json,
    ".json": _json,
    ".parquet": _parquet,
}
