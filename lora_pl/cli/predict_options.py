"""The options of `lora_pl predict` with one checkpoint, parsed without Lightning."""

from __future__ import annotations

import re
from argparse import SUPPRESS
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lora_pl.cli.parser import Parser
from lora_pl.cli.shared_options import (
    OF_TRAINING,
    STORED,
    ignore_options_of_fit,
    link_model_and_data,
    refuse_options_of_fit,
    require_checkpoint,
    require_seed,
    with_checkpoint,
)
from lora_pl.cli.verbs import described
from lora_pl.data.lines import STDIN
from lora_pl.data.sentence_data import SentenceData
from lora_pl.data.texts import Format
from lora_pl.errors import UsageError
from lora_pl.model.plain import PlainClassifier
from lora_pl.model.precision import Precision
from lora_pl.predictions.output import STDOUT
from lora_pl.reporting import say

OF_TRAINER = (
    *("logger", "callbacks", "fast_dev_run", "max_epochs", "min_epochs", "max_steps", "min_steps", "max_time"),
    *("limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches", "overfit_batches"),
    *("val_check_interval", "check_val_every_n_epoch", "num_sanity_val_steps", "log_every_n_steps"),
    *("enable_checkpointing", "enable_model_summary", "accumulate_grad_batches", "gradient_clip_val"),
    *("gradient_clip_algorithm", "deterministic", "benchmark", "inference_mode", "use_distributed_sampler"),
    *("profiler", "detect_anomaly", "barebones", "plugins", "sync_batchnorm", "reload_dataloaders_every_n_epochs"),
    *("default_root_dir", "enable_autolog_hparams", "model_registry"),
)
"""The Trainer's other options: without effect, and read so that a configuration such as configs/demo.yaml serves."""
HELD_OUT = ("validation_share", "folds", "fold")
"""The data's settings that divide training sentences."""
OF_LABELLED = ("seed_everything", *(f"data.{name}" for name in HELD_OUT))
"""Options of verbs that read labelled data; predict reads them in a configuration or a checkpoint alone."""
UNUSED = rf"{OF_TRAINING}|{'|'.join(map(re.escape, OF_LABELLED))}|data\.(source|(validation|test)_file|label_columns?)"
FLAG = re.compile(rf"--trainer\.(?:{'|'.join(OF_TRAINER)})(?:[.+][\w.+]*)?(?P<value>=.*)?", re.DOTALL)


@dataclass(frozen=True)
class Processes:
    """Where predictions are computed: the options of Lightning's Fabric, and whether to show the progress."""

    accelerator: str = "auto"
    """cpu, gpu, ..."""
    strategy: str = "auto"
    """How several processes work together: ddp, ..."""
    devices: list[int] | str | int = 1
    """How many, which ([0,2]), or auto."""
    num_nodes: int = 1
    """Machines."""
    precision: Precision | None = None
    """32-true, bf16-mixed or 16-mixed; by default the fastest this device supports."""
    enable_progress_bar: bool | None = None
    """Whether to show the progress where standard error is a terminal."""


def make_parser() -> Parser:
    """Input and output, processes, data and model."""
    parser = Parser(prog="lora_pl predict", description=described("predict"))
    parser.unused, parser.stored = UNUSED, STORED
    add = parser.add_argument
    add("-c", "--config", action="config", help="A YAML file of options.")
    add("--seed_everything", type=bool | int, default=0, help=SUPPRESS)
    add("--ckpt_path", type=str | None, help="best.ckpt or last.ckpt of a run.")
    add("--input", default=STDIN, help="A text file, CSV, TSV, JSON lines or Parquet; - is stdin.")
    add("--input_format", type=Format | None, default=None, help="By default the ending's; text on standard input.")
    add("--keep_columns", type=list[str], default=[], help="Columns of the input table to write beside the answers.")
    add("--output", default=STDOUT, help="By its ending JSON lines, CSV or Parquet; - is stdout.")
    add("--adapter", metavar="NAME=CHECKPOINT", help="Several adapters on one base; has options of its own.")
    parser.add_class_arguments(PlainClassifier, "model", sub_configs=True)
    parser.add_class_arguments(SentenceData, "data", sub_configs=True)
    parser.add_class_arguments(Processes, "trainer", instantiate=False)
    for name in OF_TRAINER:
        add(f"--trainer.{name}", type=Any, help=SUPPRESS)
    ignore_options_of_fit(parser)
    link_model_and_data(parser)
    return parser


def parsed(parser: Parser, args: Sequence[str]) -> Any:
    """The options; those that are not given are the checkpoint's, or the defaults.

    Raises:
        UsageError: an option is unknown, one of fit's, or has a wrong value; or there is no checkpoint.
        UserError: `checkpoint...`: see `read_model`.
    """
    refuse_options_of_fit(args)
    if data := [name for name in OF_LABELLED if any(arg.partition("=")[0] == f"--{name}" for arg in args)]:
        raise UsageError("usage", f"there is no option --{data[0]}; predict draws nothing and reads no labels")
    options = parser.parse_args(with_checkpoint(parser, _without_trainers(args))[1:])
    require_seed(options.seed_everything)
    require_checkpoint(options.ckpt_path)
    options.model.start_from = None
    for name in HELD_OUT:
        options.data[name] = None
    return options


def _without_trainers(args: Sequence[str]) -> list[str]:
    """The arguments without flags of `OF_TRAINER`, which are reported."""
    kept, unused, follows = [], [], False
    for arg in args:
        if found := FLAG.fullmatch(arg):
            unused.append(arg.partition("=")[0].removesuffix("+"))
            follows = found["value"] is None
        elif follows and not arg.startswith("--"):
            follows = False
        else:
            kept.append(arg)
            follows = False
    if unused:
        say(f"{', '.join(unused)}: without effect on predict, which needs no Trainer")
    return kept
