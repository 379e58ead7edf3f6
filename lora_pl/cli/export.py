"""`lora_pl export`: a checkpoint's model as a folder that other programs load."""

from __future__ import annotations

from lora_pl.cli.parser import Parser
from lora_pl.errors import UsageError
from lora_pl.formats.export import ExportOptions
from lora_pl.formats.exporting import Format, export_checkpoint
from lora_pl.formats.sentences import DEFAULT_COUNT
from lora_pl.reporting import say


def run(args: list[str]) -> None:
    """Run `lora_pl export ARGS`."""
    options = make_parser().parse_args(args[1:])
    for key in ("ckpt_path", "output"):
        if options[key] is None:
            raise UsageError(f"{key}: expected --{key}, got none; see lora_pl export --help")
    comparisons = export_checkpoint(
        options.ckpt_path,
        options.output,
        options.format,
        ExportOptions(options.dtype, options.merge_dtype, options.int8),
        options.model.encoder,
        options.sentences,
    )
    for name, comparison in comparisons.items():
        say(f"{name}: {comparison}")
    say(f"{options.format} export in {options.output}; its README.md says how to load it")


def make_parser() -> Parser:
    """The verb's options."""
    parser = Parser(prog="lora_pl export", description="Write a checkpoint's model for other programs, and check it.")
    parser.add_argument("--ckpt_path", type=str | None, help="best.ckpt or last.ckpt of a run.")
    parser.add_argument("--output", type=str | None, help="The folder to write; it must not be there yet.")
    parser.add_argument(
        "--format", type=Format, default="hf", help="hf (a stock folder of Transformers), peft, onnx, adapter."
    )
    parser.add_class_arguments(ExportOptions, None)
    parser.add_argument("--model.encoder", type=str | None, help="The base, where it has moved.")
    parser.add_argument(
        "--sentences", type=int, default=DEFAULT_COUNT, help="How many validation sentences to compare on; 0: all."
    )
    return parser
