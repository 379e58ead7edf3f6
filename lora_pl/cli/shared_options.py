"""What the verbs with a model and data share: links between options, and the options of a checkpoint."""

from __future__ import annotations

from argparse import SUPPRESS
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from lora_pl.cli.checkpoint_defaults import checkpoint_defaults, early_value, option_value
from lora_pl.cli.parser import Parser
from lora_pl.data.sentence_data import SentenceData
from lora_pl.errors import UsageError
from lora_pl.model.stored import read_model
from lora_pl.training.run_options import OPTIONS

LINKED: dict[str, Callable[[SentenceData], Any]] = {
    "task": lambda data: data.task.name,
    "label_names": lambda data: data.label_names,
    "pairs": lambda data: data.pairs,
}
"""The model's settings that the data determine when they have been read."""
OF_FIT = ("run_name", "resume", "force", *OPTIONS)
"""Options of `fit` alone; the other verbs ignore them in a configuration, so that a run's own config.yaml serves."""
OF_TRAINING = r"model\.(?!(encoder|base_dtype)$).+|data\.(task|label_names|train_.+|batch_size|num_workers)"
"""Options that the other verbs read and do not use."""
STORED = r"model\..+|data\.(?!(eval_batch_tokens|cache_dir)$).+"
"""Options whose defaults are a checkpoint's, where a verb needs one."""


def link_model_and_data(parser: ArgumentParser) -> None:
    """Give each the settings of the other."""
    parser.link_arguments("model.encoder", "data.encoder")
    parser.link_arguments("data.max_length", "model.max_length")
    parser.link_arguments("seed_everything", "data.seed", compute_fn=int)
    for name, of_data in LINKED.items():
        parser.link_arguments("data", f"model.{name}", compute_fn=of_data, apply_on="instantiate")


def ignore_options_of_fit(parser: ArgumentParser) -> None:
    """Read them in a configuration."""
    for name in OF_FIT:
        parser.add_argument(f"--{name}", type=Any, help=SUPPRESS)


def refuse_options_of_fit(args: Sequence[str]) -> None:
    """Raise a UsageError, `usage`, where one is given as a flag."""
    if own := [name for name in OF_FIT if any(arg.startswith(f"--{name}") for arg in args)]:
        raise UsageError("usage", f"there is no option --{own[0]}; it is one of fit's")


def with_checkpoint(parser: Parser, args: list[str]) -> list[str]:
    """The arguments, over the settings of the checkpoint that they or their configuration name; see `take_defaults`.

    Raises:
        UsageError: `model.start_from` is given beside a checkpoint.
    """
    if (checkpoint := early_value(args, "ckpt_path")) is None:
        return args
    if option_value(args, "--model.start_from"):
        raise UsageError("model.start_from", "the weights are those of --ckpt_path; leave one of the two out")
    take_defaults(parser, checkpoint, args)
    # last, as a saved configuration says `ckpt_path: null`
    return [*args, "--ckpt_path", checkpoint]


def take_defaults(parser: Parser, checkpoint: str | Path, args: Sequence[str]) -> None:
    """Make the checkpoint's settings the parser's defaults; see `read_model` and `checkpoint_defaults`."""
    parser.set_defaults(checkpoint_defaults(read_model(checkpoint), args, parser.known_keys()))


def require_seed(seed: Any) -> None:
    """Raise a UsageError, `seed_everything`, unless it is a seed of every generator."""
    if isinstance(seed, bool) or (isinstance(seed, int) and not 0 <= seed < 1 << 32):
        raise UsageError("seed_everything", f"expected 0 to {(1 << 32) - 1}, got {seed}")


def require_checkpoint(path: Any) -> None:
    """Raise a UsageError, `ckpt_path`, if none is given."""
    if not path:
        raise UsageError("ckpt_path", "expected --ckpt_path checkpoints/NAME/best.ckpt, got none")
