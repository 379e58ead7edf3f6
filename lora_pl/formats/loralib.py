"""State dicts of loralib, the method's first implementation: `...query.lora_A`, `...query.lora_B`, and a head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora_pl.formats.foreign import ForeignAdapter, pair_up


def is_loralib(state: Mapping[str, Any]) -> bool:
    """Whether a name ends in `.lora_A`."""
    return any(name.endswith(".lora_A") for name in state)


def read_loralib(state: Mapping[str, Any], source: str) -> ForeignAdapter:
    """The adapter of a state dict that `loralib.lora_state_dict` gave; alpha is not in it."""
    layers, head = pair_up(source, state, ".lora_A", ".lora_B")
    return ForeignAdapter(source, layers, head)
