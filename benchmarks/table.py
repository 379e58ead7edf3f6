"""Printing a table as its rows are measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path


def print_table(header: str, parts: Iterable[Sequence[str]], output: Path | None) -> None:
    """Print the header and then each part's rows as soon as they are there; at the end write all of it to `output`."""
    rows = [header]
    print(header, flush=True)
    for part in parts:
        print("\n".join(part), flush=True)
        rows += part
    if output:
        output.write_text("\n".join(rows) + "\n", encoding="utf-8")
