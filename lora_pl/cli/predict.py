"""`lora_pl predict`: what one checkpoint, or several adapters on one base, say of each text."""

from __future__ import annotations

import hashlib
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch
from lightning.fabric import Fabric
from lightning.pytorch.cli import LightningArgumentParser

from lora_pl.cli.parser import Parser, verb_parser
from lora_pl.cli.trainer import ClassifierCLI, config_text, quiet_libraries
from lora_pl.data.texts import STDIN, Text, TextStream, as_row, as_text, named
from lora_pl.encoder.dtype import resolve_dtype
from lora_pl.errors import UsageError, UserError, first_line
from lora_pl.model.answers import evaluating
from lora_pl.model.classifier import LoRAClassifier
from lora_pl.model.many_adapters import ManyAdapters
from lora_pl.model.predict_file import STDOUT, Answers, predict_file
from lora_pl.reporting import say
from lora_pl.storage.checkpoint import read_checkpoint
from lora_pl.storage.row_files import Rows
from lora_pl.training.explained import NO_MEMORY
from lora_pl.training.resume.stop_signals import RunStopped


def run(args: list[str]) -> None:
    """Run `lora_pl predict ARGS`."""
    quiet_libraries()
    if not any(arg.partition("=")[0] == "--adapter" for arg in args):
        PredictCLI(args).predict()
        return
    options = adapters_parser().parse_args(args[1:]).as_dict()
    predict_adapters(options.pop("adapter"), **options)


class PredictCLI(ClassifierCLI):
    """The command line of one checkpoint: what is asked, the data's settings and the model; there is no trainer."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """What is read and written."""
        super().add_arguments_to_parser(parser)
        parser.add_argument("--input", default=STDIN, help="A text file, CSV, TSV, JSON lines or Parquet; - is stdin.")
        parser.add_argument("--output", default=STDOUT, help="JSON lines, or Parquet by its ending; - is stdout.")
        parser.add_argument(
            "--adapter", metavar="NAME=CHECKPOINT", help="Several adapters on one base; has options of its own."
        )
        parser.set_defaults({"trainer.devices": 1})

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """None: `predict` needs the processes alone."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing: `predict` is called."""

    def predict(self) -> None:
        """Write the predictions, by as many processes as `--trainer.devices` says."""
        stream = TextStream(self._option("input"), self.datamodule.text_columns)
        trainer, output = self._option("trainer"), self._option("output")
        fabric = _fabric(trainer)
        model = self._loaded()
        launched = partial(
            _predict,
            model=model,
            stream=stream,
            output=output,
            made_from=self._made_from(),
            bar=trainer.enable_progress_bar is not False,
        )
        written = fabric.launch(launched)
        if output != STDOUT and fabric.is_global_zero:
            say(f"{written:,} predictions in {output}")

    def _loaded(self) -> LoRAClassifier:
        model: LoRAClassifier = self.model
        stored = read_checkpoint(self._option("ckpt_path"))
        model.on_load_checkpoint(stored)
        model.load_state_dict(stored["state_dict"])
        model.predict_batch_tokens = self.datamodule.eval_batch_tokens
        model.predict_batching = self.datamodule.batching
        return model

    def _made_from(self) -> dict[str, Any]:
        options = config_text(self._parser(self.verb), self.config[self.verb])
        return {"checkpoint": _digest(self._option("ckpt_path")), "options": options}


def predict_adapters(
    adapter: Sequence[str],
    input: str = STDIN,
    output: str = STDOUT,
    text_column: str = "text",
    text_pair_column: str = "text_pair",
    adapter_column: str | None = None,
    encoder: str | None = None,
    base_dtype: Literal["float32", "bfloat16", "float16"] = "float32",
) -> None:
    """Ask several adapters on one base, each text or each its own.

    Args:
        adapter: NAME=CHECKPOINT of each.
        input: A text file, CSV, TSV, JSON lines or Parquet; - is stdin.
        output: JSON lines; - is stdout.
        text_column: In a table: the column of the texts.
        text_pair_column: The second texts', for tasks on pairs.
        adapter_column: In a table: whom to ask of each row; by default everyone.
        encoder: The base where it has moved.
        base_dtype: What is computed in.
    """
    if output.endswith(".parquet"):
        raise UserError(
            "output", "with several adapters, whose labels differ, rows are JSON lines; give another ending"
        )
    checkpoints = _by_name(adapter)
    models = ManyAdapters(checkpoints, encoder, base_dtype)
    pair = text_pair_column if any(member.pairs for member in models.members.values()) else None
    columns = [column for column in (text_column, pair, adapter_column) if column]

    def answers(texts: Sequence[Text]) -> Rows:
        rows = [as_row(text) for text in texts]
        if adapter_column:
            return _asked(models, [(row[:-1], row[-1]) for row in rows])
        return _asked(models, [(row, name) for row in rows for name in models.members])

    made_from = {
        "checkpoints": {name: _digest(path) for name, path in checkpoints.items()},
        "options": [text_column, text_pair_column, adapter_column, encoder, base_dtype],
    }
    fabric = Fabric(accelerator="cpu", devices=1)
    fabric.launch()
    with _stoppable():
        predict_file(TextStream(input, columns), output, answers, made_from, fabric)


def adapters_parser() -> Parser:
    """The options of `predict` with several adapters."""
    parser = verb_parser("predict", predict_adapters, skip={"adapter"})
    parser.add_argument(
        "--adapter", action="append", required=True, metavar="NAME=CHECKPOINT", help="May be given several times."
    )
    return parser


def _predict(
    fabric: Fabric, model: LoRAClassifier, stream: TextStream, output: str, made_from: dict[str, Any], bar: bool
) -> int:
    """Merged in full precision, then rounded once to what the trainer's precision computes in."""
    fabric.to_device(model)
    dtype = resolve_dtype(model.hparams["base_dtype"], str(fabric.strategy.precision.precision))
    with (
        _stoppable(),
        _memory(),
        evaluating(model),
        model.merged_for_prediction(dtype),
        torch.inference_mode(),
        fabric.autocast(),
    ):
        return predict_file(stream, output, _answers(model), made_from, fabric, bar)


def _answers(model: LoRAClassifier) -> Answers:
    def answers(texts: Sequence[Text]) -> Rows:
        return [
            {**named(text), **prediction} for text, prediction in zip(texts, model.predict_step(texts), strict=True)
        ]

    return answers


def _fabric(trainer: Any) -> Fabric:
    try:
        return Fabric(
            accelerator=trainer.accelerator,
            strategy=trainer.strategy,
            devices=trainer.devices,
            num_nodes=trainer.num_nodes,
            precision=trainer.precision,
        )
    except (ValueError, TypeError, RuntimeError) as error:  # an unknown accelerator, strategy, ...
        raise UserError("trainer", first_line(error)) from error


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM stops at once, as Ctrl-C does: what is whole stays."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise RunStopped(signum, "by SIGTERM")

    if threading.current_thread() is not threading.main_thread():  # where nothing can
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
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or NO_MEMORY.search(str(error)):
            raise UserError("memory", "out of memory; cut --data.eval_batch_tokens") from error
        raise


def _by_name(given: Sequence[str]) -> dict[str, str]:
    named: dict[str, str] = {}
    for item in given:
        name, equals, path = item.partition("=")
        if not (name and equals and path) or name in named:
            raise UsageError("adapter", f"expected NAME=CHECKPOINT, every name once, got {item!r}")
        named[name] = path
    return named


def _asked(models: ManyAdapters, asked: list[tuple[tuple[str, ...], str]]) -> Rows:
    texts = [_as_read_by(models, name, row) for row, name in asked]
    names = [name for _, name in asked]
    predictions = models.predict(texts, names)
    return [
        {**named(text), "adapter": name, **prediction}
        for text, name, prediction in zip(texts, names, predictions, strict=True)
    ]


def _as_read_by(models: ManyAdapters, name: str, row: tuple[str, ...]) -> Text:
    """The first text alone for an adapter that reads single sentences."""
    reads_pairs = name in models.members and models.members[name].pairs
    return as_text(row if reads_pairs else row[:1])


def _digest(path: str | Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
