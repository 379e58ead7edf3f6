"""A checkpoint's settings as defaults, which a configuration and flags override."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from lora_pl.data.held_out import VALIDATES
from lora_pl.encoder.source import require_own_package
from lora_pl.errors import UserError
from lora_pl.reporting import say
from lora_pl.storage.checkpoint import DATA_KEY, SETTINGS_KEY
from lora_pl.storage.settings import EVALUATED, FROM_DATA, FROM_MODEL, TRAINED
from lora_pl.storage.yaml_file import read_options


def option_value(args: Sequence[str], *options: str) -> str | None:
    """The value of `OPTION VALUE` or `OPTION=VALUE`, the last one where there are several."""
    value = None
    for argument, following in zip(args, [*args[1:], None], strict=True):
        name, equals, rest = argument.partition("=")
        if name in options:
            value = rest if equals else following
    return value


def early_value(args: Sequence[str], key: str) -> str | None:
    """The value of `--KEY`, else of KEY in the file of `--config`, before they are parsed."""
    given = option_value(args, f"--{key}")
    config = option_value(args, "--config", "-c")
    if given is not None or config is None:
        return given
    try:
        value = read_options(config).get(key)
    except (OSError, UserError):  # the parser will report it
        return None
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
