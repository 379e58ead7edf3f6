"""Printing a table as its rows are measured."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path


def print_table(header: str, parts: Iterable[Sequence[str]], output: Path | None) -> None:
    """Print the header and then each part's rows as soon as they are there, and write them to `output`."""
    with output.open("w", encoding="utf-8") if output else nullcontext() as file:
        for part in itertools.chain([[header]], parts):
            for place in filter(None, (sys.stdout, file)):
                print(*part, sep="\n", file=place, flush=True)
