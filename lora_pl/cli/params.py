"""`lora_pl params`: how many parameters each rank trains, without loading a weight."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from lora_pl.cli.parser import Parser
from lora_pl.cli.uncollected import uncollected
from lora_pl.data.tasks import get_task
from lora_pl.encoder import EMBEDDED
from lora_pl.encoder.architectures import module_names
from lora_pl.encoder.biases_and_norms import TrainBiases, biases_and_norms, require_biases_and_norms
from lora_pl.encoder.head import HeadKind, new_head
from lora_pl.encoder.loading import build_encoder, load_config
from lora_pl.errors import UsageError
from lora_pl.lora import LoRAConfig, inject_lora, mark_only_lora_as_trainable
from lora_pl.model.parameters import ParameterCounts, count_parameters
from lora_pl.printable import printable
from lora_pl.reporting import make_console


def run(args: list[str]) -> None:
    """Print the table of `lora_pl params ARGS`."""
    options = make_parser().parse_args(args[1:])
    if not options.ranks:
        raise UsageError("ranks", "expected at least one rank, got none")
    outputs = len(get_task(options.data.task).labels) or 1
    config = load_config(options.model.encoder)
    lora = LoRAConfig.of(options.model.lora.as_dict())
    in_place = options.model.train_biases, options.model.train_norms
    with uncollected():  # Transformers' models come with the first encoder
        counts = {
            r: counts_at_rank(config, replace(lora, r=r), options.model.head, outputs, *in_place) for r in options.ranks
        }
    console = make_console(stderr=False)
    console.print(_table(counts, options.model.encoder))
    console.print("% of total: of encoder, LoRA and head as they are trained, without a pooler.")
    if pooler := pooler_parameters(config):
        for r, count in counts.items():
            console.print(f"r = {r}: encoder with LoRA and its unused pooler {count.encoder + count.lora + pooler:,}")


def make_parser() -> Parser:
    """The verb's options; the keys are those of fit."""
    parser = Parser(prog="lora_pl params", description="Count parameters for several ranks, without weights.")
    parser.add_argument("--model.encoder", default=EMBEDDED, help="A hub name, a folder, or package://NAME/PATH.")
    parser.add_class_arguments(LoRAConfig, "model.lora", skip={"r"})
    parser.add_argument("--model.head", type=HeadKind, default="linear", help="linear or architecture.")
    parser.add_argument("--model.train_biases", type=TrainBiases, default="none", help="Biases trained too.")
    parser.add_argument("--model.train_norms", type=bool, default=False, help="Whether norms are trained too.")
    parser.add_argument("--data.task", default="sst2", help="Gives the number of classes.")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4, 8], help="The ranks to compare.")
    return parser


def counts_at_rank(
    config: Any,
    lora: LoRAConfig,
    head: HeadKind,
    outputs: int,
    train_biases: TrainBiases = "none",
    train_norms: bool = False,
) -> ParameterCounts:
    """The counts of an encoder of the configuration's shape, made on the meta device."""
    with torch.device("meta"):
        encoder = build_encoder(config)
        model = torch.nn.ModuleDict({"encoder": encoder, "head": new_head(head, config, outputs)})
        inject_lora(encoder, module_names(lora, config))
    settings = {"method": "lora", "train_biases": train_biases, "train_norms": train_norms}
    require_biases_and_norms(encoder, settings)
    mark_only_lora_as_trainable(model, also=(*biases_and_norms(encoder, settings).values(), model["head"]))
    return count_parameters(model["encoder"], model["head"])


def pooler_parameters(config: Any) -> int:
    """The parameters of the pooler that `AutoModel` adds by default and that lora_pl leaves out."""
    from transformers import AutoModel

    with torch.device("meta"):
        return int(
            AutoModel.from_config(config, trust_remote_code=False).num_parameters()
            - build_encoder(config).num_parameters()
        )


def _table(counts: dict[int, ParameterCounts], encoder: str) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(f"Trainable parameters of {printable(encoder)}"), title_justify="left")
    in_place = ("biases and norms",) if any(count.in_place for count in counts.values()) else ()
    for column in ("r", "LoRA", *in_place, "head", "total trainable", "% of total", "encoder with LoRA"):
        table.add_column(column, justify="right")
    for r, count in counts.items():
        numbers = (count.lora, *([count.in_place] if in_place else []), count.head, count.trainable)
        with_lora = f"{count.encoder + count.lora:,}"
        table.add_row(str(r), *(f"{n:,}" for n in numbers), f"{count.percent:.3f}", with_lora)
    return table
