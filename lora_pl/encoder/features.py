"""The feature of each sentence's first token, from a packed row or from a padded batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from lora_pl.encoder.architectures import architecture_of
from lora_pl.encoder.attention import NAME, register_packed_attention, take_packing
from lora_pl.encoder.dropout import use_bulk_dropout
from lora_pl.encoder.packing import Packing
from lora_pl.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class FirstTokenFeatures:
    """Runs an encoder and reads the last hidden state of every sentence's first token (`<s>`, `[CLS]`).

    On a packed row nothing is computed that these features do not depend on: no padding, and in the last layer only
    keys and values of the tokens that are not first. The encoder's dropout is drawn in bulk.

    Args:
        encoder: Its attention is switched to one that takes packed rows too, if the architecture allows it.
    """

    def __init__(self, encoder: PreTrainedModel) -> None:
        self.encoder = encoder
        architecture = architecture_of(encoder.config)
        self._has_types = architecture.has_token_types(encoder.config)
        self._padding: int | None = encoder.config.pad_token_id if architecture.positions_after_padding else None
        self._packed = architecture.packed
        use_bulk_dropout(encoder)
        if self._packed:
            register_packed_attention()
            encoder.set_attn_implementation(NAME)
        if self._packed and architecture.blocks:
            *_, last = encoder.get_submodule(architecture.blocks).children()
            last.get_submodule("attention.output").register_forward_pre_hook(_first_tokens)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = state
        if self._packed:
            register_packed_attention()  # unpickled in another process, which has not

    def of_packed(self, input_ids: Tensor, token_type_ids: Tensor, packing: Packing) -> Tensor:
        """(1, tokens), (1, tokens) -> (sentences, hidden).

        Raises:
            UserError: data.batching: this architecture takes no packed rows.
        """
        if not self._packed:
            kind = self.encoder.config.model_type
            raise UserError("data.batching", f"{kind} takes no packed rows; use --data.batching padded")
        # a mask of four dimensions is taken as it is, and attention over a packed row reads none
        inputs = {"attention_mask": input_ids[:, None, None, :0], "packing": packing}
        hidden = self._run(input_ids, token_type_ids, position_ids=packing.positions(self._padding), **inputs)
        hidden = hidden.squeeze(0)
        # torch.compile may leave out the hook that drops the other rows
        return hidden if len(hidden) == len(packing.lengths) else hidden.index_select(0, packing.starts)

    def of_padded(self, input_ids: Tensor, token_type_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(batch, length), (batch, length), (batch, length) -> (batch, hidden)."""
        return self._run(input_ids, token_type_ids, attention_mask=attention_mask)[:, 0]

    def _run(self, input_ids: Tensor, token_type_ids: Tensor, **inputs: Any) -> Tensor:
        if self._has_types:
            inputs["token_type_ids"] = token_type_ids
        hidden: Tensor = self.encoder(input_ids=input_ids, **inputs).last_hidden_state
        return hidden


def _first_tokens(output: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """(attention's output, residual), each (1, tokens, hidden) -> the same, (1, sentences, hidden)."""
    packing = take_packing()
    return None if packing is None else tuple(rows.index_select(1, packing.starts) for rows in args)
