"""The number type that the frozen base is kept in."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

BaseDtype = Literal["auto", "float32", "bfloat16", "float16"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
OF_PRECISION = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def resolve_dtype(name: BaseDtype, precision: str) -> torch.dtype:
    """The dtype by name; auto is the one in which Lightning's `precision` computes products."""
    return OF_PRECISION.get(precision, torch.float32) if name == "auto" else DTYPES[name]


def cast_frozen(encoder: nn.Module, dtype: torch.dtype) -> None:
    """Convert every frozen parameter to `dtype` once, instead of at each use; norms stay in fp32."""
    for module in encoder.modules():
        kept = torch.float32 if isinstance(module, nn.LayerNorm) else dtype
        for parameter in module.parameters(recurse=False):
            if not parameter.requires_grad and parameter.is_floating_point():
                # always a copy: a single tensor left would keep the whole weight file in memory
                parameter.data = parameter.data.to(kept, copy=True)
