"""Rows of a table, one after the other, however long the file is."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from lora_pl.data.examples import require_columns
from lora_pl.errors import UserError

MAX_LINE = 1 << 24
"""Bytes of the longest line: what is longer is no text, and must not fill the memory."""
ROWS = 4096  # at a time from Parquet
TABLES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")

Row = tuple[str, ...]


def stream_rows(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    """The text columns of a CSV, TSV, JSON lines or Parquet file, row by row, in constant memory.

    Raises:
        UserError: the file is not what its ending says, is not UTF-8, lacks a column, or has a line of more than
            16 MiB; with file and line.
    """
    ending = path.suffix.lower()
    if ending == ".parquet":
        yield from _parquet(path, columns)
    elif ending in (".csv", ".tsv"):
        yield from _delimited(path, columns, tab=ending == ".tsv")
    else:
        yield from _json_lines(path, columns)


def decoded_lines(stream: IO[bytes], name: str) -> Iterator[str]:
    """The lines of UTF-8 text with their ends, a byte order mark taken off."""
    number = 0
    while line := stream.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
            raise UserError(f"{name}, line {number}: longer than {MAX_LINE:,} bytes; is this a file of texts?")
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            raise UserError(f"{name}, line {number}: not UTF-8 (byte 0x{byte:02x})") from None


def _delimited(path: Path, columns: Sequence[str], tab: bool) -> Iterator[Row]:
    csv.field_size_limit(MAX_LINE)
    # as GLUE's files are: a quote is a character like any other
    dialect: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tab else {"strict": True}
    with path.open("rb") as file:
        reader = csv.reader(decoded_lines(file, str(path)), **dialect)
        try:
            header = next((row for row in reader if row), None)
            if header is None:
                raise UserError(f"{path}: the file is empty")
            require_columns(columns, header, str(path))
            places = [header.index(column) for column in columns]
            for row in reader:
                if not row:  # a blank line
                    continue
                if len(row) != len(header):
                    raise UserError(f"{path}, line {reader.line_num}: expected {len(header)} columns, got {len(row)}")
                yield tuple(row[place] for place in places)
        except csv.Error as error:
            raise UserError(f"{path}, line {reader.line_num}: could not be read as csv: {error}") from None


def _json_lines(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    with path.open("rb") as file:
        for number, line in enumerate(decoded_lines(file, str(path)), 1):
            if line.strip():
                yield _json_row(line, columns, f"{path}, line {number}")
            elif number == 1 and not path.stat().st_size:
                raise UserError(f"{path}: the file is empty")


def _json_row(line: str, columns: Sequence[str], where: str) -> Row:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:  # too deep, or a number of too many digits
        raise UserError(
            f"{where}: could not be read as json: {str(error)[:100]}; expected an object per line"
        ) from None
    if not isinstance(values, dict):
        raise UserError(f"{where}: expected an object per line, such as {{{columns[0]!r}: ...}}")
    require_columns(columns, list(values), where)
    return tuple(_text(values[column], where) for column in columns)


def _text(value: Any, where: str) -> str:
    if isinstance(value, dict | list):
        raise UserError(f"{where}: expected a text, got {type(value).__name__}")
    return "" if value is None else str(value)


def _parquet(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            require_columns(columns, file.schema_arrow.names, str(path))
            for batch in file.iter_batches(ROWS, columns=list(columns)):
                lists = [batch.column(column).to_pylist() for column in columns]
                yield from (tuple(_text(cell, str(path)) for cell in row) for row in zip(*lists, strict=True))
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: could not be read as parquet: {str(error).splitlines()[0][:150]}") from None
