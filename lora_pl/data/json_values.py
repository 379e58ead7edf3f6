"""JSON values from text, with numbers as they are written, in bounded memory and depth."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from typing import IO, Any

from lora_pl.errors import UserError

MAX_LINE = 1 << 24
"""The longest line, row or value: anything longer is no text and must not fill memory."""
MAX_DEPTH = 100  # the parser recurses in C, on a stack whose end is a crash
PIECE = 1 << 16
DECODER = json.JSONDecoder(parse_float=str, parse_int=str, parse_constant=lambda name: None)
"""Numbers are texts as they are written; NaN is a missing one."""
WHITE, STRING, BRACKET = re.compile(r"[ \t\r\n]*"), re.compile(r'"(?:[^"\\]|\\.)*+"?', re.DOTALL), re.compile(r"[][{}]")


def parse_json(text: str, where: str) -> Any:
    """The one value in `text`.

    Raises:
        UserError: `data.format`: it is no JSON, or nested deeper than 100.
    """
    _require_shallow(text, where)
    try:
        return DECODER.decode(text)
    except ValueError as error:
        raise _no_json(where, str(error)) from None


def array_values(stream: IO[str], path: str) -> Iterator[Any]:
    """The values of a file that is one array, without reading it whole.

    Raises:
        UserError: `data.format`, as `parse_json`; `data.long_line`: a value is longer than 16 MiB.
    """
    window = _Window(stream, path)
    window.take("[")
    if window.next() != "]":
        yield window.value()
        while window.next() == ",":
            window.take(",")
            yield window.value()
    window.take("]")
    if window.next():
        raise _no_json(path, "there is more after the array")


class _Window:
    """The part of a stream that is being parsed: `text` from `at` on."""

    def __init__(self, stream: IO[str], path: str) -> None:
        self.stream, self.path = stream, path
        self.text, self.at, self.number = "", 0, 0

    def next(self) -> str:
        """The next character that is no white space; empty at the end."""
        while True:
            self.at = WHITE.match(self.text, self.at).end()  # type: ignore[union-attr]
            if self.at < len(self.text) or not self._read():
                return self.text[self.at : self.at + 1]

    def take(self, mark: str) -> None:
        """Skip `mark`, which must be next."""
        if self.next() != mark:
            raise _no_json(self._where, f"expected {mark!r}, got {self.next()!r}")
        self.at += 1

    def value(self) -> Any:
        """The next value."""
        self.next()
        self.number += 1
        while True:
            try:
                value, self.at = DECODER.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                # text that has been cut off fails at its end, or where its last string begins
                cut = error.pos >= len(self.text) - 16 or error.msg.startswith("Unterminated string")
                if not cut or not self._read():
                    raise _no_json(self._where, error.msg) from None
            else:
                return value

    @property
    def _where(self) -> str:
        return f"{self.path}, row {self.number}"

    def _read(self) -> bool:
        """Read as much again; false at the end."""
        left = self.text[self.at :]
        if len(left) > MAX_LINE:
            raise UserError("data.long_line", f"{self._where}: expected at most {MAX_LINE:,} characters")
        more = self.stream.read(max(PIECE, len(left)))
        self.text, self.at = left + more, 0
        _require_shallow(self.text, self._where)
        return bool(more)


def _require_shallow(text: str, where: str) -> None:
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    brackets = BRACKET.finditer(STRING.sub("", text))
    depths = itertools.accumulate(1 if bracket[0] in "[{" else -1 for bracket in brackets)
    if any(depth > MAX_DEPTH for depth in depths):
        raise _no_json(where, f"nested deeper than {MAX_DEPTH}")


def _no_json(where: str, why: str) -> UserError:
    return UserError("data.format", f"{where}: could not be read as json: {why[:100]}; expected an object per line")
