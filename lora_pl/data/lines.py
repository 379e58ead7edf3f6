"""Lines of text from a file or standard input."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from lora_pl.data.json_values import MAX_LINE
from lora_pl.errors import UserError

STDIN = "-"


def opened(path: Path) -> io.BufferedReader:
    """The file to read; standard input for -.

    Raises:
        UserError: `input`, standard input is closed.
    """
    if str(path) != STDIN:
        return path.open("rb")
    if sys.stdin is None:
        raise UserError("input", "standard input is closed; give a file")
    return cast(io.BufferedReader, sys.stdin.buffer)


def source_name(path: Path) -> str:
    """The path as messages name it."""
    return "standard input" if str(path) == STDIN else str(path)


def decoded_lines(stream: IO[bytes], name: str) -> Iterator[str]:
    """The lines of UTF-8 text with their ends, without a byte order mark."""
    number = 0
    while line := stream.readline(MAX_LINE + 1):
        number += 1
        where = f"{name}, line {number}"
        if len(line) > MAX_LINE:
            raise UserError("data.long_line", f"{where}: expected at most {MAX_LINE:,} bytes; is this a text file?")
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise not_utf8(error, where) from None


def not_utf8(error: UnicodeDecodeError, where: str) -> UserError:
    """`data.encoding`, with the byte that is not UTF-8."""
    byte = error.object[error.start]
    return UserError("data.encoding", f"{where}: not UTF-8 (byte 0x{byte:02x}); save the file as UTF-8")
