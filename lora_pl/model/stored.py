"""What files say of their models."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_pl.data.sentence_data import SentenceData
from lora_pl.errors import UserError
from lora_pl.lora import LoRAConfig, LoRAError
from lora_pl.model.network import Network
from lora_pl.storage.checkpoint import DATA_KEY, SETTINGS_KEY, read_checkpoint
from lora_pl.storage.schema import arguments, require_json
from lora_pl.storage.settings import read_settings


def read_model(path: str | Path, model: type[Network] = Network) -> dict[str, Any]:
    """The checkpoint of a model, its settings checked against the arguments of model and data.

    Raises:
        UserError: `checkpoint...`: see `read_checkpoint` and `read_settings`.
    """
    checkpoint = read_checkpoint(path)
    data, known = checkpoint.get(DATA_KEY, {}), arguments(SentenceData.__init__)
    require_json(data, known, "checkpoint.settings", f"{path}: data.", unknown="ignore")
    return {**checkpoint, SETTINGS_KEY: model_settings(checkpoint, str(path), model=model)}


def model_settings(
    checkpoint: Mapping[str, Any],
    source: str,
    kind: str = "checkpoint",
    model: type[Network] = Network,
) -> dict[str, Any]:
    """The arguments of `model` in a checkpoint or the record of an adapter folder; see `read_settings`.

    Those that a subclass adds are taken as they are.
    """
    stored = dict(checkpoint[SETTINGS_KEY])
    added = inspect.signature(model).parameters.keys() - inspect.signature(Network).parameters.keys()
    own = {name: stored.pop(name) for name in added & stored.keys()}
    settings = read_settings(stored, Network.__init__, source, kind)
    try:
        return {**settings, "lora": LoRAConfig.of(settings["lora"]).to_dict(), **own}
    except TypeError as error:
        raise UserError(f"{kind}.version", f"{source}: written by another version of lora_pl: {error}") from None
    except LoRAError as error:
        raise UserError(f"{kind}.settings", f"{source}: model.lora.{error}") from None
