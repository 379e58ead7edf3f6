"""What a checkpoint says of the model and the data, as defaults that a configuration and flags override."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lora_pl.checkpoint import read_checkpoint

FROM_DATA = ("task", "label_names", "max_length", "pairs")  # the model gets these from the data
OWN_FILES = ("train_file", "validation_file")


def option_value(args: Sequence[str], *options: str) -> str | None:
    """The value of `OPTION VALUE` or `OPTION=VALUE`, the last one where there are several."""
    value = None
    for argument, following in zip(args, [*args[1:], None], strict=True):
        name, equals, rest = argument.partition("=")
        if name in options:
            value = rest if equals else following
    return value


def checkpoint_defaults(path: str, args: Sequence[str]) -> dict[str, Any]:
    """Parser defaults by key (`model.lora.r`, `data.source`, ...) from the hyper-parameters in a checkpoint.

    Own files that the run was trained on give way where `--data.source` is among the flags.
    """
    checkpoint = read_checkpoint(path)
    model = checkpoint["hyper_parameters"]
    data = dict(checkpoint.get("datamodule_hyper_parameters", {}))
    data |= {key: model[key] for key in FROM_DATA if key != "pairs"}
    if option_value(args, "--data.source") is not None:
        data |= dict.fromkeys(OWN_FILES)
    defaults = {f"model.{key}": value for key, value in _flat(model).items() if key not in FROM_DATA}
    return defaults | {f"data.{key}": value for key, value in data.items() if key not in ("encoder", "seed")}


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, Mapping) else {key: value}
    return flat
