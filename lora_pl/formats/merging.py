"""The adapters merged: weights, and a plain module with them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lora_pl.encoder.fused import join_fused, joined_state
from lora_pl.encoder.loading import load_encoder
from lora_pl.formats.export import Export
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
                tensor = module.adapter.merged(tensor, arithmetic)
            state[f"{prefix}.{name}"] = tensor.detach().to(dtype, copy=True).contiguous()
    return joined_state(encoder, state)


class MergedClassifier(nn.Module):
    """The merged encoder and the head, as Transformers runs them: padded batches, PyTorch's own attention.

    (batch, length) ids and attention mask -> (batch, outputs).
    """

    def __init__(self, export: Export) -> None:
        super().__init__()
        self.encoder, self.head = load_encoder(export.model.hparams["encoder"]), export.model.head
        join_fused(self.encoder)
        self.encoder.load_state_dict(merged_state(export.model.encoder, export.dtype, export.merge_dtype))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """The logits."""
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **types).last_hidden_state
        logits: Tensor = self.head(hidden[:, 0])
        return logits
