"""`lora_pl predict --adapter NAME=CHECKPOINT ...`: several adapters on one base."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from lora_pl.callbacks.prediction_writer import STDOUT
from lora_pl.callbacks.row_files import JsonLines, RowFile
from lora_pl.cli.parser import Parser
from lora_pl.data.texts import STDIN, Text, TextStream
from lora_pl.errors import UsageError, UserError
from lora_pl.model.many_adapters import ManyAdapters
from lora_pl.storage.write_whole import write_whole

BaseDtype = Literal["float32", "bfloat16", "float16"]


def run(args: list[str]) -> None:
    """Run `lora_pl predict ARGS`."""
    options = make_parser().parse_args(args[1:])
    _require_json_lines(options.output)
    models = ManyAdapters(_by_name(options.adapter), options.encoder, options.base_dtype)
    rows = _rows(models, options)
    if options.output == STDOUT:
        _write(rows, JsonLines(sys.stdout.buffer, keep_open=True))
    else:
        write_whole(Path(options.output), lambda beside: _write(rows, JsonLines(beside.open("wb"))))


def make_parser() -> Parser:
    """The options of `predict` with several adapters."""
    parser = Parser(prog="lora_pl predict", description="Ask several adapters on one base, each text or each its own.")
    parser.add_argument(
        "--adapter", action="append", required=True, metavar="NAME=CHECKPOINT", help="May be given several times."
    )
    parser.add_argument("--input", default=STDIN, help="A text file, CSV, TSV, JSON lines or Parquet; - is stdin.")
    parser.add_argument("--output", default=STDOUT, help="JSON lines; - is stdout.")
    parser.add_argument("--text_column", default="text", help="In a table: the column of the texts.")
    parser.add_argument("--text_pair_column", default="text_pair", help="The second texts', for tasks on pairs.")
    parser.add_argument(
        "--adapter_column", type=str | None, help="In a table: whom to ask of each row; by default everyone."
    )
    parser.add_argument("--encoder", type=str | None, help="The base where it has moved.")
    parser.add_argument("--base_dtype", type=BaseDtype, default="float32", help="What is computed in.")
    return parser


def _by_name(given: Sequence[str]) -> dict[str, str]:
    named: dict[str, str] = {}
    for item in given:
        name, equals, path = item.partition("=")
        if not (name and equals and path) or name in named:
            raise UsageError(f"adapter: expected NAME=CHECKPOINT, every name once, got {item!r}")
        named[name] = path
    return named


def _rows(models: ManyAdapters, options: Any) -> Iterator[list[dict[str, Any]]]:
    pair = options.text_pair_column if any(member.pairs for member in models.members.values()) else None
    columns = [column for column in (options.text_column, pair, options.adapter_column) if column]
    for chunk in TextStream(options.input, columns):
        cells = [(text,) if isinstance(text, str) else text for text in chunk]
        if options.adapter_column:
            asked = [(row[:-1], row[-1]) for row in cells]
        else:
            asked = [(row, name) for row in cells for name in models.members]
        yield _answers(models, asked)


def _answers(models: ManyAdapters, asked: list[tuple[tuple[str, ...], str]]) -> list[dict[str, Any]]:
    texts = [_as_read_by(models, name, row) for row, name in asked]
    predictions = models.predict(texts, [name for _, name in asked])
    return [
        {**dict(zip(("text", "text_pair"), [text] if isinstance(text, str) else text, strict=False)), "adapter": name}
        | prediction
        for text, (_, name), prediction in zip(texts, asked, predictions, strict=True)
    ]


def _as_read_by(models: ManyAdapters, name: str, row: tuple[str, ...]) -> Text:
    """The first text alone for an adapter that reads single sentences."""
    reads_pairs = name in models.members and models.members[name].pairs
    return row if reads_pairs else row[0]


def _write(chunks: Iterator[list[dict[str, Any]]], file: RowFile) -> None:
    for rows in chunks:
        file.write(rows)
    file.close()


def _require_json_lines(output: str) -> None:
    if output.endswith(".parquet"):
        raise UserError("output: with several adapters, whose labels differ, rows are JSON lines; give another ending")
