"""The number type that the frozen base is kept in."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from lora_pl.encoder.biases_and_norms import is_norm
from lora_pl.errors import UserError
from lora_pl.lora.int8 import Int8Weight, int8_is_fast

BaseDtype = Literal["auto", "float32", "bfloat16", "float16", "int8"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "int8": torch.int8}
OF_PRECISION = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def resolve_dtype(name: BaseDtype, precision: str) -> torch.dtype:
    """The dtype by name; auto is the one in which Lightning's `precision` computes products."""
    return OF_PRECISION.get(precision, torch.float32) if name == "auto" else DTYPES[name]


def cast_frozen(encoder: nn.Module, dtype: torch.dtype) -> None:
    """Convert every frozen parameter to `dtype` once, instead of at each use; norms stay in fp32."""
    for module in encoder.modules():
        kept = torch.float32 if is_norm(module) else dtype
        for parameter in module.parameters(recurse=False):
            if not parameter.requires_grad and parameter.is_floating_point() and not isinstance(parameter, Int8Weight):
                # always a copy: a single tensor left would keep the whole weight file in memory
                parameter.data = parameter.data.to(kept, copy=True)


def quantize_frozen(encoder: nn.Module, dtype: torch.dtype) -> None:
    """Convert the frozen weights of linear layers to `Int8Weight`, and what else is frozen to `dtype`.

    Raises:
        UserError: `model.base_dtype`: the encoder's device has no fast products in 8 bits.
    """
    for module in encoder.modules():
        weight = module.weight if isinstance(module, nn.Linear) else None
        if weight is None or weight.requires_grad or isinstance(weight, Int8Weight):
            continue
        if weight.device.type != "cpu" or not int8_is_fast():
            raise UserError("model.base_dtype", "int8 needs a CPU with AVX512_VNNI; take bfloat16 or auto")
        module.weight = nn.Parameter(Int8Weight(weight, dtype), requires_grad=False)
    cast_frozen(encoder, dtype)
