"""What a checkpoint says of the model and the data, as defaults that a configuration and flags override."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lora_pl.reporting import say
from lora_pl.training.run_config import FROM_DATA, FROM_MODEL

OWN_FILES = ("train_file", "validation_file")


def option_value(args: Sequence[str], *options: str) -> str | None:
    """The value of `OPTION VALUE` or `OPTION=VALUE`, the last one where there are several."""
    value = None
    for argument, following in zip(args, [*args[1:], None], strict=True):
        name, equals, rest = argument.partition("=")
        if name in options:
            value = rest if equals else following
    return value


def early_value(args: Sequence[str], key: str) -> str | None:
    """The value of `--KEY` among the flags, else of KEY in the file that `--config` names, before all is parsed."""
    given = option_value(args, f"--{key}")
    config = option_value(args, "--config", "-c")
    if given is not None or config is None:
        return given
    try:
        values = yaml.safe_load(Path(config).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError):  # the parser tells what is wrong
        return None
    value = values.get(key) if isinstance(values, dict) else None
    return value if isinstance(value, str) else None


def checkpoint_defaults(
    checkpoint: Mapping[str, Any], args: Sequence[str], known: Collection[str] | None = None
) -> dict[str, Any]:
    """Parser defaults by key (`model.lora.r`, `data.source`, ...) from the hyper-parameters in a checkpoint.

    Own files that the run was trained on give way where `--data.source` is among the flags. Options that are not
    `known` (the checkpoint is of another version) are left out, and named.
    """
    model = dict(checkpoint["hyper_parameters"])
    lora = model.pop("lora", {})  # its fields are options, its patterns' keys are names of layers
    data = dict(checkpoint.get("datamodule_hyper_parameters", {}))
    data |= {key: model[key] for key in FROM_DATA if key != "pairs"}
    if option_value(args, "--data.source") is not None:
        data |= dict.fromkeys(OWN_FILES)
    defaults = {f"model.{key}": value for key, value in model.items() if key not in FROM_DATA}
    defaults |= {f"model.lora.{key}": value for key, value in lora.items()}
    defaults |= {f"data.{key}": value for key, value in data.items() if key not in FROM_MODEL}
    foreign = [] if known is None else [key for key in defaults if key not in known]
    if foreign:
        say(f"the checkpoint's {', '.join(foreign)} is no option of this version and is left out")
    return {key: value for key, value in defaults.items() if key not in foreign}
