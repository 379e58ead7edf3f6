"""A model's weights with the adapters summed into them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lora_pl.lora import Adapter, LoRALinear


@torch.no_grad()
def merged_state(encoder: nn.Module, dtype: torch.dtype, arithmetic: torch.dtype = torch.float32) -> dict[str, Tensor]:
    r"""The tensors that the encoder would have without LoRA, by the names that it then gives them.

    .. math:: W = \mathrm{round}_{dtype}\bigl(W_0 + \tfrac{\alpha}{r} B A\bigr)

    or as another variant's `Adapter.merged` says, in `arithmetic`, rounded once; all other tensors are rounded as they
    are. `encoder` is left as it is, and the tensors are copies.
    """
    state: dict[str, Tensor] = {}
    for prefix, module in encoder.named_modules():
        if isinstance(module, Adapter):
            continue
        for name, tensor in module.named_parameters(recurse=False):
            if isinstance(module, LoRALinear) and name == "weight":
                tensor = module.adapter.merged(module.frozen_weight, arithmetic)
            state[f"{prefix}.{name}"] = tensor.detach().to(dtype, copy=True).contiguous()
    return state
