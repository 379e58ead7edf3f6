"""`lora_pl export`: a checkpoint's model as a folder that other programs load."""

from __future__ import annotations

from dataclasses import fields

from lora_pl.cli.parser import verb_parser
from lora_pl.formats.export import ExportOptions
from lora_pl.formats.exporting import export_checkpoint
from lora_pl.formats.sentences import DEFAULT_COUNT
from lora_pl.reporting import say


def run(args: list[str]) -> None:
    """Run `lora_pl export ARGS`: arguments of `export_checkpoint`, and fields of `ExportOptions`."""
    parser = verb_parser("export", export_checkpoint, skip={"options", "encoder", "sentences", "overwrite"})
    parser.add_class_arguments(ExportOptions, None)
    parser.add_argument("--model.encoder", type=str | None, help="The base, if it has moved.")
    parser.add_argument(
        "--sentences", type=int, default=DEFAULT_COUNT, help="How many validation sentences to compare on; 0: all."
    )
    given = parser.parse_args(args[1:]).as_dict()
    options = ExportOptions(**{field.name: given.pop(field.name) for field in fields(ExportOptions)})
    for name, comparison in export_checkpoint(options=options, encoder=given.pop("model")["encoder"], **given).items():
        say(f"{name}: {comparison}")
    say(f"{given['format']} export in {given['output']}; its README.md says how to load it")
