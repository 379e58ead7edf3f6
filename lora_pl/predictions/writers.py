"""Rows of answers as JSON lines, CSV or Parquet."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_pl.errors import UserError
from lora_pl.printable import json_line
from lora_pl.storage.write_whole import write_whole

Row = Mapping[str, Any]
Rows = list[dict[str, Any]]
CHANCES = "probabilities"


def json_lines(rows: Rows) -> bytes:
    """The rows as JSON lines; a ValueError for NaN, which JSON has not."""
    return "".join(json_line(row) + "\n" for row in rows).encode()


def write_rows(path: str, rows: Rows, example: Row | None = None) -> None:
    """Write the rows into a file by its ending, whole or not at all; `example` as in `Parts.join`."""

    def fill(beside: Path) -> None:
        part = beside.with_name("rows.jsonl")
        part.write_bytes(json_lines(rows))
        WRITERS[Path(path).suffix.lower()]([part] if rows else [], beside, example)

    write_whole(Path(path), fill)


def _as_lines(parts: Sequence[Path], path: Path, example: Row | None) -> int:
    rows = 0
    with path.open("wb") as whole:
        for part in parts:
            with part.open("rb") as file:
                for line in file:
                    rows += 1
                    whole.write(line)
    return rows


def _as_csv(parts: Sequence[Path], path: Path, example: Row | None) -> int:
    columns, rows = [*_flat(_first(parts, example))], 0
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        if columns:
            writer.writerow(columns)
        for part in parts:
            for row in map(_flat, _read(part)):
                if [*row] != columns:
                    raise _damaged(part)
                writer.writerow(row.values())
                rows += 1
    return rows


def _flat(row: Row) -> dict[str, Any]:
    """With a column per class, `probabilities.CLASS`, as pandas' `json_normalize` names it, and lists as JSON."""
    chances = row[CHANCES] if isinstance(row.get(CHANCES), dict) else {}
    own = {name: cell for name, cell in row.items() if cell is not chances}
    lists = {name: json.dumps(cell, ensure_ascii=False) for name, cell in own.items() if isinstance(cell, list)}
    return {**own, **lists, **{f"{CHANCES}.{label}": chance for label, chance in chances.items()}}


def _as_parquet(parts: Sequence[Path], path: Path, example: Row | None) -> int:
    """Every part is a row group."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def table(rows: Iterable[Row], part: Path) -> Any:
        try:
            found = pa.Table.from_pylist(list(rows))
            lists = pa.list_(pa.string())  # also where all of them are empty
            types = [lists if pa.types.is_list(type) else type for type in found.schema.types]
            return found.cast(pa.schema(list(zip(found.column_names, types, strict=True))))
        except (ValueError, TypeError, pa.ArrowException):
            raise _damaged(part) from None

    first = _first(parts, example)
    rows, schema = 0, table([first] if first else [], [*parts, path][0]).schema
    with pq.ParquetWriter(path, schema) as writer:
        for part in parts:
            found = table(_read(part), part)
            if found.schema != schema:
                raise _damaged(part)
            writer.write_table(found)
            rows += found.num_rows
    return rows


def _first(parts: Sequence[Path], example: Row | None) -> Row:
    """The row whose columns a table has: the example, else its first; empty without either."""
    return example or next((row for part in parts for row in _read(part)), {})


def _read(part: Path) -> Iterator[dict[str, Any]]:
    """The part's rows.

    Raises:
        UserError: `output`, it was damaged meanwhile.
    """
    try:
        with part.open(encoding="utf-8") as file:
            for line in file:
                yield dict(json.loads(line))
    except (ValueError, TypeError, RecursionError):
        raise _damaged(part) from None


def _damaged(part: Path) -> UserError:
    return UserError("output", f"{part} is damaged; remove {part.parent} and give the command again")


WRITERS: dict[str, Callable[[Sequence[Path], Path, Row | None], int]] = {
    ".jsonl": _as_lines,
    ".csv": _as_csv,
    ".parquet": _as_parquet,
}
"""Joins parts into a file, by its ending."""
