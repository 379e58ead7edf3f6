"""`lora_pl predict`: the answers of one checkpoint, or of several adapters on one base, to a file of texts."""

from __future__ import annotations

import hashlib
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch

from lora_pl.cli.checkpoint_defaults import option_value
from lora_pl.cli.parser import Parser, verb_parser
from lora_pl.cli.predict_options import make_parser, parsed
from lora_pl.cli.uncollected import uncollected
from lora_pl.data.lines import STDIN
from lora_pl.data.sentence_data import IF_TOO_LONG, SentenceData
from lora_pl.data.task import Task
from lora_pl.data.texts import Format, Text, TextStream, as_row, as_text, named, with_kept
from lora_pl.encoder.dtype import resolve_dtype
from lora_pl.errors import UsageError, UserError, first_line
from lora_pl.model.many_adapters import ManyAdapters
from lora_pl.model.memory import is_out_of_memory
from lora_pl.model.one_process import OneProcess
from lora_pl.model.plain import PlainClassifier
from lora_pl.model.precision import chosen_precision
from lora_pl.model.stored import read_model
from lora_pl.predictions.file import predict_file
from lora_pl.predictions.output import STDOUT, require_output
from lora_pl.predictions.writers import Rows
from lora_pl.reporting import say
from lora_pl.training.resume.stop_signals import RunStopped


def run(args: list[str]) -> None:
    """Run `lora_pl predict ARGS`."""
    if any(arg.partition("=")[0] == "--adapter" for arg in args):
        if option_value(args, "--ckpt_path") is not None:
            raise UsageError("adapter", "expected --adapter or --ckpt_path, got both")
        options = adapters_parser().parse_args(args[1:]).as_dict()
        predict_adapters(options.pop("adapter"), **options)
    else:
        predict_checkpoint(args)


def predict_checkpoint(args: Sequence[str]) -> None:
    """Write the predictions of one checkpoint, by as many processes as `--trainer.devices` says."""
    parser = make_parser()
    options = parsed(parser, args)
    require_output(options.output, options.input, options.ckpt_path)
    fabric = _processes(options.trainer)
    with uncollected():  # Transformers comes with the first encoder
        made = parser.instantiate_classes(options)
    data, model, kept, checkpoint = made.data, made.model, options.keep_columns, options.ckpt_path
    stream = _stream(options.input, data.text_columns, kept, options.input_format)
    _require_kept(kept, _example(model.task))
    stored = read_model(checkpoint)
    model.on_load_checkpoint(stored)
    model.load_state_dict(stored["state_dict"])
    made_from = {"checkpoint": _digest(checkpoint), "options": parser.dump(options, skip_unset=False)}
    bar = options.trainer.enable_progress_bar is not False
    # a function of the module and its arguments, which another process can be given
    told = fabric.launch(partial(_predict, model, data, stream, kept, options.output, made_from, bar))
    if told and fabric.is_global_zero:
        say(told)


def _stream(path: str, columns: Sequence[str], kept: Sequence[str], format: Format | None) -> TextStream:
    stream = TextStream(path, [*columns, *kept], format)
    if kept and not stream.ending:
        raise UserError("keep_columns", f"{stream.path} has no columns; give a table, or its --input_format")
    return stream


def _example(task: Task) -> dict[str, Any]:
    """The row of an empty text."""
    return {**named(("",) * len(task.columns)), **task.predictions(torch.zeros(1, task.outputs))[0]}


def _require_kept(kept: Sequence[str], row: Mapping[str, Any]) -> None:
    """Raise a UserError, `keep_columns`, where two columns beside the row's would have one name."""
    if len(with_kept(row, dict.fromkeys(kept, ""))) < len(row) + len(kept):
        raise UserError(
            "keep_columns",
            f"expected different names, got {', '.join(kept)} (a column that the answers have too becomes input_NAME)",
        )


def _processes(trainer: Any) -> Any:
    """`OneProcess` or a `Fabric`, by the options, whose precision is settled in place."""
    used = {name: trainer[name] for name in ("accelerator", "strategy", "devices", "num_nodes", "precision")}
    trainer.precision = used["precision"] = chosen_precision(used["precision"], used["accelerator"])
    if (alone := OneProcess.of(**used)) is not None:
        return alone
    from lightning.fabric import Fabric

    from lora_pl.cli.trainer import quiet_libraries
    from lora_pl.training.trainer import settled

    quiet_libraries()
    settled(used)  # refuses what shards the model
    try:
        return Fabric(**used)
    except (ValueError, TypeError, RuntimeError) as error:  # an unknown accelerator, strategy, ...
        raise UserError("trainer", first_line(error)) from error


def _predict(
    model: PlainClassifier,
    data: SentenceData,
    stream: TextStream,
    kept: Sequence[str],
    output: str,
    made_from: dict[str, Any],
    bar: bool,
    fabric: Any,
) -> str:
    """Merged in fp32, then rounded once to what the precision computes in; the line that tells of it."""
    width = len(data.text_columns)
    asked = cut = 0

    def answers(given: Sequence[Text]) -> Rows:
        nonlocal asked, cut
        rows = [as_row(text) for text in given]
        texts = [as_text(row[:width]) for row in rows]
        tokens = model.tokenize(texts)
        if tokens.cut and data.hparams["too_long"] == "refuse":
            raise _too_long(model, texts, stream.where)
        asked, cut = asked + len(texts), cut + tokens.cut
        predictions = model.task.predictions(model.logits_of(tokens, data.eval_batch_tokens, data.batching))
        return [
            with_kept({**named(text), **prediction}, dict(zip(kept, row[width:], strict=True)))
            for text, row, prediction in zip(texts, rows, predictions, strict=True)
        ]

    fabric.to_device(model)
    precision = fabric.precision if isinstance(fabric, OneProcess) else str(fabric.strategy.precision.precision)
    dtype = resolve_dtype(model.hparams["base_dtype"], precision)
    with _stoppable(), _memory(), model.merged_for_prediction(dtype), fabric.autocast():
        example = with_kept(_example(model.task), dict.fromkeys(kept, ""))
        written = predict_file(stream, output, answers, made_from, fabric, bar, example)
    asked, cut = fabric.all_reduce(torch.tensor([asked, cut]), reduce_op="sum").tolist()
    # of a stopped run's texts nobody knows any more how many were cut
    return _told(written, output, stream, _cut(cut, asked, [model.max_length]))


def _cut(cut: int, asked: int, lengths: Iterable[int]) -> str:
    return f"{cut:,} of {asked:,} texts cut at {' or '.join(map(str, sorted(set(lengths))))} tokens" * (cut > 0)


def _told(written: int, output: str, stream: TextStream, cut: str) -> str:
    where = "" if output == STDOUT else f"{written:,} predictions in {output}"
    blank = f"{stream.blank:,} empty row{'s' * (stream.blank > 1)} skipped" * (stream.blank > 0)
    return "; ".join(filter(None, (where, cut, blank)))


def _too_long(model: PlainClassifier, texts: Sequence[Text], where: Sequence[str]) -> UserError:
    first = next(place for text, place in zip(texts, where, strict=True) if model.tokenize([text]).cut)
    return UserError("data.too_long", f"{first}: longer than {model.max_length} tokens; {IF_TOO_LONG}")


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
    stream = _stream(input, [*columns, *by_column], kept, input_format)
    for member in members:
        _require_kept(kept, {**_example(member.task), "adapter": ""})

    count = cut = 0

    def answers(given: Sequence[Text]) -> Rows:
        nonlocal count, cut
        asked = []
        for where, row in zip(stream.where, map(as_row, given), strict=True):
            cells = dict(zip(kept, row[width + len(by_column) :], strict=True))
            for name in [row[width]] if by_column else models.members:
                if name not in pairs:
                    raise UserError("adapter", f"{where}: there is no {name!r}; there are: {', '.join(pairs)}")
                # the first text alone for an adapter that reads single sentences
                asked.append((as_text(row[: width if pairs[name] else 1]), name, cells))
        texts, names, _ = zip(*asked, strict=True)
        tokens = models.tokenize(texts, names)
        count, cut = count + len(tokens), cut + tokens.cut
        return [
            with_kept({**named(text), "adapter": name, **prediction}, cells)
            for (text, name, cells), prediction in zip(asked, models.predictions_of(tokens, names), strict=True)
        ]

    made_from = {
        "checkpoints": {name: _digest(path) for name, path in checkpoints.items()},
        "options": [input_format, adapter_column, encoder, base_dtype],
    }
    with _stoppable():
        written = predict_file(stream, output, answers, made_from, OneProcess(torch.device("cpu")))
    if told := _told(written, output, stream, _cut(cut, count, (member.max_length for member in members))):
        say(told)


def _agreed(names: Iterable[str | None], otherwise: str) -> str:
    """The one name that all have."""
    different = set(names)
    return (different.pop() if len(different) == 1 else None) or otherwise


def adapters_parser() -> Parser:
    """The options of `predict` with several adapters."""
    parser = verb_parser("predict", predict_adapters, skip={"adapter"})
    parser.add_argument(
        "--adapter", action="append", required=True, metavar="NAME=CHECKPOINT", help="May be given several times."
    )
    return parser


def _by_name(given: Sequence[str]) -> dict[str, str]:
    checkpoints: dict[str, str] = {}
    for item in given:
        name, equals, path = item.partition("=")
        if not (name and equals and path) or name in checkpoints:
            raise UsageError("adapter", f"expected NAME=CHECKPOINT, every name once, got {item!r}")
        checkpoints[name] = path
    return checkpoints


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM stops at once, as Ctrl-C does; whole parts are kept."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise RunStopped(signum, "by SIGTERM")

    if threading.current_thread() is not threading.main_thread():  # no other thread can set a handler
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _memory() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise UserError("data.eval_batch_tokens", "out of memory; give fewer tokens per batch") from error
        raise


def _digest(path: str | Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
