"""Attention's roles by the names that each architecture gives them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lora_pl.lora import LoRAConfig

if TYPE_CHECKING:
    from transformers import PretrainedConfig

ROLE_NAMES = {"distilbert": {"query": "q_lin", "key": "k_lin", "value": "v_lin"}}


def module_names(lora: LoRAConfig, config: PretrainedConfig) -> LoRAConfig:
    """`lora` with the names `query`, `key` and `value` in the architecture's own (DistilBERT: q_lin, ...)."""
    names = ROLE_NAMES.get(config.model_type, {})
    return replace(
        lora,
        target_modules=tuple(names.get(target, target) for target in lora.target_modules),
        rank_pattern={names.get(name, name): r for name, r in lora.rank_pattern.items()},
        alpha_pattern={names.get(name, name): alpha for name, alpha in lora.alpha_pattern.items()},
    )
