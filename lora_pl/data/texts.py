"""Unlabelled texts to predict, as a stream."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from torch.utils.data import IterableDataset

from lora_pl.data.own_files import READERS, iterate_texts
from lora_pl.data.rows import decoded_lines
from lora_pl.errors import UserError

STDIN = "-"
CHUNK = 512  # texts at a time: enough to make batches of like length, little enough to keep in memory
SHARD = 64  # chunks in a shard: the piece of a long file that one process labels and saves whole

Text = str | tuple[str, ...]
"""A sentence, or a pair of them."""


class TextStream(IterableDataset[list[Text]]):
    """Lists of at most `CHUNK` texts from a file or standard input, in constant memory.

    CSV, TSV, JSON lines and Parquet are read by column; of any other file, and of standard input, every line is a
    text (for pairs: two, separated by a tab). The stream is cut into shards of `SHARD` lists; `wanted` says which of
    them, counted from 0, this process takes.

    Raises:
        UserError: there is no such file, it lacks a column, it is not UTF-8, or a line holds another number of texts.
    """

    def __init__(self, path: str, columns: Sequence[str]) -> None:
        if path != STDIN and not Path(path).is_file():
            raise UserError(f"input: {path}: no such file; give a file, or - for standard input")
        self.path = path
        self.columns = columns
        self.wanted: Callable[[int], bool] = lambda shard: True

    def __iter__(self) -> Iterator[list[Text]]:
        rows = self._rows()
        for number in itertools.count():
            chunk: list[Text] = [row[0] if len(row) == 1 else row for row in itertools.islice(rows, CHUNK)]
            if not chunk:
                return
            if self.wanted(number // SHARD):
                yield chunk

    def _rows(self) -> Iterator[tuple[str, ...]]:
        if Path(self.path).suffix.lower() in READERS:
            return iterate_texts(self.path, self.columns)
        return _lines(self.path, len(self.columns))


def _lines(path: str, columns: int) -> Iterator[tuple[str, ...]]:
    name = "standard input" if path == STDIN else path
    stream = sys.stdin.buffer if path == STDIN else open(path, "rb")  # noqa: SIM115  closed below
    with stream:
        for number, line in enumerate(decoded_lines(stream, name), 1):
            text = line.rstrip("\r\n")
            row = tuple(text.split("\t")) if columns > 1 else (text,)
            if len(row) != columns:
                raise UserError(f"{name}, line {number}: expected {columns} texts separated by a tab, got {len(row)}")
            yield row
