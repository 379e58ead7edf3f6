"""Tables that tests write."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def write_table(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> Path:
    """CSV, TSV, JSON lines or Parquet, by the ending; CSV and TSV have lists as JSON."""
    if path.suffix == ".parquet":
        pq.write_table(pa.table({name: [row[i] for row in rows] for i, name in enumerate(header)}), path)
        return path
    if path.suffix in (".json", ".jsonl"):
        lines = [json.dumps(dict(zip(header, row, strict=True))) for row in rows]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path
    cells = [[json.dumps(cell) if isinstance(cell, list) else str(cell) for cell in row] for row in (header, *rows)]
    if path.suffix == ".tsv":
        path.write_text("".join("\t".join(row) + "\n" for row in cells), encoding="utf-8")
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(cells)
    return path
