"""`lora_pl predict`: the answers of a checkpoint to a file of texts."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from lora_pl.cli import predict_adapters
from lora_pl.cli.answers import example_row, report, stoppable, stream_with
from lora_pl.cli.predict_options import make_parser, parsed
from lora_pl.cli.uncollected import uncollected
from lora_pl.data.sentence_data import IF_TOO_LONG, SentenceData
from lora_pl.data.texts import Text, TextStream, as_row, as_text, named, with_kept
from lora_pl.encoder.dtype import resolve_dtype
from lora_pl.errors import UserError, first_line
from lora_pl.model.memory import is_out_of_memory
from lora_pl.model.one_process import OneProcess
from lora_pl.model.plain import PlainClassifier
from lora_pl.model.precision import chosen_precision
from lora_pl.model.stored import read_model
from lora_pl.predictions.file import predict_file
from lora_pl.predictions.output import require_output
from lora_pl.predictions.writers import Rows
from lora_pl.storage.digest import sha256_of


def run(args: list[str]) -> None:
    """Run `lora_pl predict ARGS`."""
    if any(arg.partition("=")[0] == "--adapter" for arg in args):
        predict_adapters.run(args)
    else:
        predict_checkpoint(args)


def predict_checkpoint(args: Sequence[str]) -> None:
    """Write the predictions of one checkpoint, by as many processes as `--trainer.devices` says."""
    parser = make_parser()
    options = parsed(parser, args)
    for name in ("input", "output", "ckpt_path"):
        options[name] = os.path.expanduser(options[name])  # and no Path, which makes ./- standard input
    require_output(options.output, options.input, options.ckpt_path)
    fabric = _processes(options.trainer)
    with uncollected():  # Transformers comes with the first encoder
        made = parser.instantiate_classes(options)
    data, model = made.data, made.model
    stream = stream_with(options.keep_columns, options.input, data.text_columns, options.input_format)
    example_row(model.task, options.keep_columns)  # the names differ
    stored = read_model(options.ckpt_path)
    model.on_load_checkpoint(stored)
    model.load_state_dict(stored["state_dict"])
    made_from = {"checkpoint": sha256_of(options.ckpt_path), "options": parser.dump(options, skip_unset=False)}
    # a function of the module and its arguments, which another process can be given
    fabric.launch(partial(_predict, model, data, stream, options, made_from))


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
    model: PlainClassifier, data: SentenceData, stream: TextStream, options: Any, made_from: dict[str, Any], fabric: Any
) -> None:
    """Merged in fp32, then rounded once to what the precision computes in."""
    kept, width = options.keep_columns, len(data.text_columns)
    asked = cut = 0

    def answers(given: Sequence[Text]) -> Rows:
        nonlocal asked, cut
        rows = [as_row(text) for text in given]
        texts = [as_text(row[:width]) for row in rows]
        tokens = model.tokenize(texts)
        if tokens.cut and data.hparams["too_long"] == "refuse":
            first = next(where for text, where in zip(texts, stream.where, strict=True) if model.tokenize([text]).cut)
            raise UserError("data.too_long", f"{first}: longer than {model.max_length} tokens; {IF_TOO_LONG}")
        asked, cut = asked + len(texts), cut + tokens.cut
        predictions = model.task.predictions(model.logits_of(tokens, data.eval_batch_tokens, data.batching))
        return [
            with_kept({**named(text), **prediction}, dict(zip(kept, row[width:], strict=True)))
            for text, row, prediction in zip(texts, rows, predictions, strict=True)
        ]

    fabric.to_device(model)
    precision = fabric.precision if isinstance(fabric, OneProcess) else str(fabric.strategy.precision.precision)
    dtype = resolve_dtype(model.hparams["base_dtype"], precision)
    bar, example = options.trainer.enable_progress_bar is not False, example_row(model.task, kept)
    with stoppable(), _memory(), model.merged_for_prediction(dtype), fabric.autocast():
        written = predict_file(stream, options.output, answers, made_from, fabric, bar, example)
    asked, cut = fabric.all_reduce(torch.tensor([asked, cut]), reduce_op="sum").tolist()
    # of a stopped run's texts nobody knows any more how many were cut
    report(written, options.output, stream, asked, cut, [model.max_length])


@contextmanager
def _memory() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise UserError("data.eval_batch_tokens", "out of memory; give fewer tokens per batch") from error
        raise
