"""The variants of LoRA by name."""

from lora_pl.lora.adapter import Adapter, LoRA
from lora_pl.lora.dora import DoRA

VARIANTS: dict[str, type[Adapter]] = {"lora": LoRA, "dora": DoRA}
