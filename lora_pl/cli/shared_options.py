"""What the verbs with a model and data share: links between options, and a checkpoint's settings as their defaults."""

from __future__ import annotations

from argparse import SUPPRESS
from collections import ChainMap
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from lora_pl.cli.parser import Parser
from lora_pl.data.held_out import VALIDATES
from lora_pl.data.sentence_data import SentenceData
from lora_pl.encoder.source import require_own_package
from lora_pl.errors import UsageError, UserError
from lora_pl.model.stored import read_model
from lora_pl.reporting import say
from lora_pl.storage.checkpoint import DATA_KEY, SETTINGS_KEY
from lora_pl.storage.settings import EVALUATED, FROM_DATA, FROM_MODEL, TRAINED
from lora_pl.storage.yaml_file import read_options
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


def option_values(args: Sequence[str], *options: str) -> list[str | None]:
    """The values of `OPTION VALUE` and `OPTION=VALUE`, in their order."""
    found = []
    for argument, following in zip(args, [*args[1:], None], strict=True):
        name, equals, rest = argument.partition("=")
        if name in options:
            found.append(rest if equals else following)
    return found


def option_value(args: Sequence[str], *options: str) -> str | None:
    """The last of `option_values`; None where there is none."""
    return next(reversed(option_values(args, *options)), None)


def early_value(args: Sequence[str], key: str) -> str | None:
    """The value of `--KEY`, else of KEY in the files of `--config`, before they are parsed."""
    if (given := option_value(args, f"--{key}")) is not None:
        return given
    try:
        files = [read_options(file) for file in option_values(args, "--config", "-c") if file]
    except (OSError, UserError):  # the parser will report it
        return None
    value = ChainMap(*reversed(files)).get(key)
    return value if isinstance(value, str) else None


def checkpoint_defaults(checkpoint: Mapping[str, Any], args: Sequence[str], known: Collection[str]) -> dict[str, Any]:
    """Parser defaults by key (`model.lora.r`, `data.source`, ...) from the hyper-parameters of a checkpoint.

    `--data.source` in `args` replaces the run's own files, one of `VALIDATES` the run's way to validate, also in
    `test`, and `--data.label_column` its `label_columns`. Options of the data that are not `known` are named and left
    out: another version's, or those of a data module of the user's own.

    Raises:
        UserError: `model.encoder`: the checkpoint names an encoder inside another package, and `args` give none.
    """
    model = dict(checkpoint[SETTINGS_KEY])
    if option_value(args, "--model.encoder") is None:
        require_own_package(model["encoder"])
    lora = model.pop("lora")  # its fields are options, its patterns' keys are names of layers
    stored = {key: value for key, value in checkpoint.get(DATA_KEY, {}).items() if key not in FROM_MODEL}
    if foreign := [f"data.{key}" for key in stored if f"data.{key}" not in known]:
        say(f"checkpoint: ignored, as there is no option {', '.join(foreign)}")
    obeyed = (*EVALUATED, *TRAINED) if args[0] == "fit" else EVALUATED
    data = {key: value for key, value in stored.items() if key in obeyed}
    data |= {key: model[key] for key in FROM_DATA if key != "pairs"}
    if option_value(args, "--data.source") is not None:
        data |= dict.fromkeys(("train_file", "validation_file", "test_file"))
    if any(option_value(args, f"--data.{name}") is not None for name in VALIDATES):
        data |= dict.fromkeys((*VALIDATES, "fold", *(["test_file"] if args[0] == "test" else [])))
    if option_value(args, "--data.label_column") is not None:
        data["label_columns"] = None
    seed = checkpoint.get(DATA_KEY, {}).get("seed")
    defaults = {} if seed is None else {"seed_everything": seed}
    defaults |= {f"model.{key}": value for key, value in model.items() if key not in FROM_DATA}
    defaults |= {f"model.lora.{key}": value for key, value in lora.items()}
    return defaults | {f"data.{key}": value for key, value in data.items()}


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
