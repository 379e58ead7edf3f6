"""Rows into a file: JSON lines or Parquet."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

Rows = list[dict[str, Any]]


class RowFile(Protocol):
    """What predictions are written to."""

    def write(self, rows: Rows) -> None:
        """Add rows."""

    def close(self) -> None:
        """Finish."""


class JsonLines:
    """An object per line."""

    def __init__(self, file: BinaryIO, keep_open: bool = False) -> None:
        self.file, self.keep_open = file, keep_open

    def write(self, rows: Rows) -> None:
        """Add rows, and hand them on at once."""
        self.file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
        self.file.flush()

    def close(self) -> None:
        """Close the file."""
        if not self.keep_open:
            self.file.close()


class Parquet:
    """A table; its columns are those of the first rows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.writer: Any = None

    def write(self, rows: Rows) -> None:
        """Add rows."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.Table.from_pylist(rows)
        if self.writer is None:
            self.writer = pq.ParquetWriter(self.path, table.schema)
        self.writer.write_table(table)

    def close(self) -> None:
        """Write the footer."""
        if self.writer is None:  # no text came in
            self.write([])
        self.writer.close()


def open_rows(path: Path, parquet: bool) -> RowFile:
    """A new file for rows at `path`."""
    return Parquet(path) if parquet else JsonLines(path.open("wb"))


def join(parts: Sequence[Path], path: Path, parquet: bool) -> int:
    """Put the parts one after the other into `path`, in constant memory; the number of rows."""
    return _join_parquet(parts, path) if parquet else _join_lines(parts, path)


def _join_lines(parts: Sequence[Path], path: Path) -> int:
    rows = 0
    with path.open("wb") as whole:
        for part in parts:
            with part.open("rb") as file:
                rows += sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
                file.seek(0)
                shutil.copyfileobj(file, whole)
    return rows


def _join_parquet(parts: Sequence[Path], path: Path) -> int:
    import pyarrow.parquet as pq

    if not parts:
        Parquet(path).close()
        return 0
    rows = 0
    with pq.ParquetWriter(path, pq.read_schema(parts[0])) as writer:
        for part in parts:
            with pq.ParquetFile(part) as file:
                for group in range(file.num_row_groups):
                    writer.write_table(file.read_row_group(group))
                rows += file.metadata.num_rows
    return rows
