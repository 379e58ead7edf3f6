"""Attention's roles by the names that each architecture gives them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lora_pl.lora import LoRAConfig

if TYPE_CHECKING:
    from transformers import PretrainedConfig

ROLE_NAMES = {"distilbert": {"query": "q_lin", "key": "k_lin", "value": "v_lin"}}


def module_names(lora: LoRAConfig, config: PretrainedConfig) -> LoRAConfig:
    """`lora` with the targets `query`, `key` and `value` in the architecture's own names (DistilBERT: q_lin, ...)."""
    names = ROLE_NAMES.get(config.model_type, {})
    return replace(lora, target_modules=tuple(names.get(target, target) for target in lora.target_modules))
