"""A model's weights with the adapters summed into them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lora_pl.lora import LoRALinear


@torch.no_grad()
def merged_state(encoder: nn.Module, dtype: torch.dtype, arithmetic: torch.dtype = torch.float32) -> dict[str, Tensor]:
    r"""The tensors that the encoder would have without LoRA, by the names that it then gives them.

    .. math:: W = \mathrm{round}_{dtype}\bigl(W_0 + \tfrac{\alpha}{r} B A\bigr)

    The sum is taken in `arithmetic` and rounded once; all other tensors are rounded as they are. `encoder` is left as
    it is, and the tensors are copies.
    """
    state: dict[str, Tensor] = {}
    for prefix, module in encoder.named_modules():
        own = set(module.adapter_params()) if isinstance(module, LoRALinear) else set()
        for name, tensor in module.named_parameters(recurse=False):
            if name in own:
                continue
            if isinstance(module, LoRALinear) and name == "weight":
                tensor = _merged_weight(module, arithmetic)
            state[f"{prefix}.{name}"] = tensor.detach().to(dtype, copy=True).contiguous()
    return state


def _merged_weight(layer: LoRALinear, arithmetic: torch.dtype) -> Tensor:
    base = layer.weight if layer.base_weight is None else layer.base_weight
    return base.to(arithmetic) + layer.delta_weight(arithmetic)
