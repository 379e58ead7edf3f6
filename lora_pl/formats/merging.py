"""An encoder's weights with the adapters merged."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lora_pl.encoder.fused import joined_state
from lora_pl.lora import Adapter, LoRALinear


@torch.no_grad()
def merged_state(encoder: nn.Module, dtype: torch.dtype, arithmetic: torch.dtype = torch.float32) -> dict[str, Tensor]:
    r"""The tensors of the encoder with its adapters merged, by Transformers' names.

    .. math:: W = \mathrm{round}_{dtype}\bigl(W_0 + \tfrac{\alpha}{r} B A\bigr)

    for LoRA itself, else `Adapter.merged`, in `arithmetic` and rounded once; all other tensors are rounded. The tensors
    are copies, and `encoder` is left as it is.
    """
    state: dict[str, Tensor] = {}
    for prefix, module in encoder.named_modules():
        if isinstance(module, Adapter):
            continue
        for name, tensor in module.named_parameters(recurse=False):
            if isinstance(module, LoRALinear) and name == "weight":
                tensor = module.adapter.merged(module.frozen_weight, arithmetic)
            state[f"{prefix}.{name}"] = tensor.detach().to(dtype, copy=True).contiguous()
    return joined_state(encoder, state)
