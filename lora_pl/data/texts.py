"""Unlabelled texts to predict, as a stream."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch.utils.data import IterableDataset

from lora_pl.data.own_files import READERS, iterate_texts
from lora_pl.errors import UserError

STDIN = "-"
CHUNK = 512  # texts at a time: enough to make batches of like length, little enough to keep in memory

Text = str | tuple[str, ...]
"""A sentence, or a pair of them."""


class TextStream(IterableDataset[list[Text]]):
    """Lists of at most `CHUNK` texts from a file or standard input.

    CSV, TSV, JSON lines and Parquet are read by column; of any other file, and of standard input, every line is a
    text (for pairs: two, separated by a tab).

    Raises:
        UserError: there is no such file, it lacks a column, it is not UTF-8, or a line holds another number of texts.
    """

    def __init__(self, path: str, columns: Sequence[str]) -> None:
        if path != STDIN and not Path(path).is_file():
            raise UserError(f"input: {path}: no such file; give a file, or - for standard input")
        self.path = path
        self.columns = columns

    def __iter__(self) -> Iterator[list[Text]]:
        chunk: list[Text] = []
        for row in self._rows():
            chunk.append(row[0] if len(row) == 1 else row)
            if len(chunk) == CHUNK:
                yield chunk
                chunk = []
        if chunk:
            yield chunk

    def _rows(self) -> Iterator[tuple[str, ...]]:
        if Path(self.path).suffix.lower() in READERS:
            return iterate_texts(self.path, self.columns)
        return _lines(self.path, len(self.columns))


def _lines(path: str, columns: int) -> Iterator[tuple[str, ...]]:
    name = "standard input" if path == STDIN else path
    stream = sys.stdin.buffer if path == STDIN else open(path, "rb")  # noqa: SIM115  closed below
    with stream:
        for number, line in enumerate(stream, 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                byte = error.object[error.start]
                raise UserError(f"{name}, line {number}: not UTF-8 (byte 0x{byte:02x})") from None
            row = tuple(text.split("\t")) if columns > 1 else (text,)
            if len(row) != columns:
                raise UserError(f"{name}, line {number}: expected {columns} texts separated by a tab, got {len(row)}")
            yield row
