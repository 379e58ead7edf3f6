"""`lora_pl export`: a checkpoint's model as a folder that other programs load."""

from __future__ import annotations

from lora_pl.cli.parser import Parser, verb_parser
from lora_pl.formats import FORMATS
from lora_pl.formats.export import ExportOptions
from lora_pl.formats.exporting import export_checkpoint
from lora_pl.formats.sentences import DEFAULT_COUNT
from lora_pl.reporting import say

FLAGS = {flag: f"{format}: {help}" for format, export in FORMATS.items() for flag, help in export.flags.items()}


def run(args: list[str]) -> None:
    """Run `lora_pl export ARGS`."""
    given = make_parser().parse_args(args[1:]).as_dict()
    flags = frozenset(flag for flag in FLAGS if given.pop(flag))
    options = ExportOptions(given.pop("dtype"), given.pop("merge_dtype"), flags)
    for name, comparison in export_checkpoint(options=options, encoder=given.pop("model")["encoder"], **given).items():
        say(f"{name}: {comparison}")
    say(f"{given['format']} export in {given['output']}; its README.md says how to load it")


def make_parser() -> Parser:
    """The verb's options: arguments of `export_checkpoint`, fields of `ExportOptions`, flags of the formats."""
    parser = verb_parser("export", export_checkpoint, skip={"options", "encoder", "sentences", "overwrite"})
    parser.add_class_arguments(ExportOptions, None, skip={"flags"})
    for flag, help in FLAGS.items():
        parser.add_argument(f"--{flag}", type=bool, default=False, help=help)
    parser.add_argument("--model.encoder", type=str | None, help="The base, if it has moved.")
    parser.add_argument(
        "--sentences", type=int, default=DEFAULT_COUNT, help="How many validation sentences to compare on; 0: all."
    )
    return parser
