"""`lora_pl import`: a checkpoint of an adapter that another program trained."""

from __future__ import annotations

from lora_pl.cli.parser import Parser
from lora_pl.encoder.biases_and_norms import trains_biases_or_norms
from lora_pl.errors import UsageError
from lora_pl.formats.importing import ImportOptions, import_adapter
from lora_pl.reporting import say
from lora_pl.storage.paths import expanded
from lora_pl.training.run_folder import CHECKPOINTS


def run(args: list[str]) -> None:
    """Run `lora_pl import ARGS`."""
    given = make_parser().parse_args(args[1:]).as_dict()
    source, output = given.pop("source"), given.pop("output")
    if source is None:
        raise UsageError("source", "expected lora_pl import FILE_OR_FOLDER, got none")
    place = expanded(source).resolve()
    output = expanded(output or CHECKPOINTS / (place.name if place.is_dir() else place.stem) / "best.ckpt")
    model = import_adapter(source, output, ImportOptions(**given))
    lora = model.hparams["lora"]
    say(
        f"{len(model.adapted)} layers adapted ({', '.join(lora['target_modules'])}), r = {lora['r']}, "
        f"alpha = {lora['lora_alpha']:g}; {model.hparams['head']} head for {', '.join(model.label_names) or 'a score'}"
    )
    if trains_biases_or_norms(model.hparams):
        say("train_biases {train_biases}, train_norms {train_norms}".format(**model.hparams))
    say(f"checkpoint  {output}\npredict     {model.task.example_command(str(output))}")


def make_parser() -> Parser:
    """The verb's options: the fields of `ImportOptions`."""
    parser = Parser(prog="lora_pl import", description="Make a checkpoint of an adapter that another program trained.")
    parser.add_argument("source", nargs="?", help="A folder of PEFT or of an adapter export, or a file of tensors.")
    parser.add_argument("--output", type=str | None, help="The checkpoint; by default checkpoints/NAME/best.ckpt.")
    parser.add_class_arguments(ImportOptions, None)
    return parser
