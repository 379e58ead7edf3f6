"""LoRA (Hu et al., 2021) for any model with linear layers; knows torch and nothing else of the project."""

from lora_pl.lora.adapter import Adapter, Factors
from lora_pl.lora.bank import AdapterBank
from lora_pl.lora.casting import factors_cast_to
from lora_pl.lora.config import LoRAConfig
from lora_pl.lora.errors import LoRAError
from lora_pl.lora.eva import InputMoments, eva_init, eva_matrices
from lora_pl.lora.injection import inject_lora, mark_only_lora_as_trainable, remove_lora
from lora_pl.lora.layer import LoRALinear, disable_lora, lora_layers, merged_lora
from lora_pl.lora.state import adapter_state_dict, load_adapter_state_dict
from lora_pl.lora.variants import VARIANTS

__all__ = [
    "VARIANTS",
    "Adapter",
    "AdapterBank",
    "Factors",
    "InputMoments",
    "LoRAConfig",
    "LoRAError",
    "LoRALinear",
    "adapter_state_dict",
    "disable_lora",
    "eva_init",
    "eva_matrices",
    "factors_cast_to",
    "inject_lora",
    "load_adapter_state_dict",
    "lora_layers",
    "mark_only_lora_as_trainable",
    "merged_lora",
    "remove_lora",
]
