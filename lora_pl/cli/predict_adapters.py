"""`lora_pl predict --adapter`: the answers of several adapters on one base to a file of texts."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import torch

from lora_pl.cli.answers import example_row, report, stoppable, stream_with
from lora_pl.cli.parser import Parser, verb_parser
from lora_pl.cli.shared_options import option_value
from lora_pl.cli.uncollected import uncollected
from lora_pl.data.lines import STDIN
from lora_pl.data.texts import Format, Text, as_row, as_text, named, with_kept
from lora_pl.errors import UsageError, UserError
from lora_pl.model.many_adapters import ManyAdapters
from lora_pl.model.one_process import OneProcess
from lora_pl.predictions.file import predict_file
from lora_pl.predictions.output import STDOUT, require_output
from lora_pl.predictions.writers import Rows
from lora_pl.storage.digest import sha256_of


def run(args: Sequence[str]) -> None:
    """Run `lora_pl predict --adapter NAME=CHECKPOINT ... ARGS`."""
    if option_value(args, "--ckpt_path") is not None:
        raise UsageError("adapter", "expected --adapter or --ckpt_path, got both")
    options = make_parser().parse_args(args[1:]).as_dict()
    predict_adapters(options.pop("adapter"), **options)


def make_parser() -> Parser:
    """The verb's options: the arguments of `predict_adapters`."""
    parser = verb_parser("predict", predict_adapters, skip={"adapter"})
    parser.add_argument(
        "--adapter", action="append", required=True, metavar="NAME=CHECKPOINT", help="May be given several times."
    )
    return parser


def predict_adapters(
    adapter: Sequence[str],
    input: str = STDIN,
    input_format: Format | None = None,
    output: str = STDOUT,
    text_column: str | None = None,
    text_pair_column: str | None = None,
    adapter_column: str | None = None,
    keep_columns: list[str] | None = None,
    encoder: str | None = None,
    base_dtype: Literal["float32", "bfloat16", "float16", "int8"] = "float32",
) -> None:
    """Ask several adapters on one base: all of them about every text, or one of them.

    Args:
        adapter: NAME=CHECKPOINT of each.
        input: A text file, CSV, TSV, JSON lines or Parquet; - is stdin.
        input_format: By default the ending's; text on standard input.
        output: JSON lines; - is stdout.
        text_column: In a table: the column of the texts; by default the adapters', if they name one alone, else text.
        text_pair_column: The second texts', for tasks on pairs; by default likewise, else text_pair.
        adapter_column: In a table: the adapter to ask about each row; by default all of them.
        keep_columns: Columns of the input table to write beside the answers.
        encoder: The base, if it has moved.
        base_dtype: What is computed in.
    """
    if Path(output).suffix.lower() in (".parquet", ".csv"):
        raise UserError("output", "adapters differ in their labels, so rows are JSON lines; give another ending")
    checkpoints = _by_name(adapter)
    input, output = os.path.expanduser(input), os.path.expanduser(output)  # no Path, which makes ./- standard input
    require_output(output, input, *checkpoints.values())
    with uncollected():
        models = ManyAdapters(checkpoints, encoder, base_dtype)
    pairs = {name: member.task.pairs for name, member in models.members.items()}
    members = models.members.values()
    columns = [text_column or _agreed((member.text_column for member in members), "text")]
    if any(pairs.values()):
        of_pairs = (member.text_pair_column for member in members if member.task.pairs)
        columns.append(text_pair_column or _agreed(of_pairs, "text_pair"))

    kept, width = keep_columns or [], len(columns)
    by_column = [adapter_column] if adapter_column else []
    stream = stream_with(kept, input, [*columns, *by_column], input_format)
    for member in members:
        example_row(member.task, kept, adapter="")  # the names differ
    asked = cut = 0

    def answers(given: Sequence[Text]) -> Rows:
        nonlocal asked, cut
        questions = []
        for where, row in zip(stream.where, map(as_row, given), strict=True):
            cells = dict(zip(kept, row[width + len(by_column) :], strict=True))
            for name in [row[width]] if by_column else models.members:
                if name not in pairs:
                    raise UserError("adapter", f"{where}: there is no {name!r}; there are: {', '.join(pairs)}")
                # the first text alone for an adapter that reads single sentences
                questions.append((as_text(row[: width if pairs[name] else 1]), name, cells))
        texts, names, _ = zip(*questions, strict=True)
        tokens = models.tokenize(texts, names)
        asked, cut = asked + len(tokens), cut + tokens.cut
        return [
            with_kept({**named(text), "adapter": name, **prediction}, cells)
            for (text, name, cells), prediction in zip(questions, models.predictions_of(tokens, names), strict=True)
        ]

    made_from = {
        "checkpoints": {name: sha256_of(path) for name, path in checkpoints.items()},
        "options": [input_format, adapter_column, encoder, base_dtype],
    }
    with stoppable():
        written = predict_file(stream, output, answers, made_from, OneProcess(torch.device("cpu")))
    report(written, output, stream, asked, cut, (member.max_length for member in members))


def _agreed(names: Iterable[str | None], otherwise: str) -> str:
    different = set(names)
    return (different.pop() if len(different) == 1 else None) or otherwise


def _by_name(given: Sequence[str]) -> dict[str, str]:
    checkpoints: dict[str, str] = {}
    for item in given:
        name, equals, path = item.partition("=")
        if not (name and equals and path) or name in checkpoints:
            raise UsageError("adapter", f"expected NAME=CHECKPOINT, every name once, got {item!r}")
        checkpoints[name] = os.path.expanduser(path)
    return checkpoints
