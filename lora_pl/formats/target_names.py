"""Short names for the adapted layers of a model."""

from __future__ import annotations

import re
from collections.abc import Collection

from torch import nn

from lora_pl.lora import lora_layers


def shortest_targets(model: nn.Module) -> list[str]:
    """The shortest names that match the adapted layers of `model` and no other linear layer."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return targets_of(list(lora_layers(model)), linear)


def targets_of(adapted: Collection[str], linear: Collection[str]) -> list[str]:
    """The last parts of names (`query`), else what follows the layer's number (`attention.self.query`), else the
    whole names: whatever matches the layers `adapted` and none else of `linear`."""
    for shorten in (_last_part, _after_number):
        targets = dict.fromkeys(map(shorten, adapted))
        if {name for name in linear if any(f".{name}".endswith(f".{target}") for target in targets)} == set(adapted):
            return list(targets)
    return list(adapted)


def _last_part(name: str) -> str:
    return name.rpartition(".")[2]


def _after_number(name: str) -> str:
    return re.sub(r"^.*\.\d+\.", "", name)
