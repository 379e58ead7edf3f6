"""The feature of each sentence's first token, from a packed row or from a padded batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from lora_pl.encoder.architectures import LastBlock, architecture_of
from lora_pl.encoder.attention import use_packed_attention
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
        self._first_position = architecture.first_position(encoder.config)
        self._packed = architecture.packed
        self._last_layer: _LastLayer | None = None
        use_bulk_dropout(encoder)
        if self._packed:
            use_packed_attention(encoder)
            self._last_layer = _LastLayer(encoder, architecture.last_block) if architecture.last_block else None

    def of_packed(self, input_ids: Tensor, token_type_ids: Tensor, packing: Packing) -> Tensor:
        """(1, tokens), (1, tokens) -> (sentences, hidden).

        Raises:
            UserError: data.batching: this architecture takes no packed rows.
        """
        if not self._packed:
            kind = self.encoder.config.model_type
            raise UserError("data.batching", f"{kind} takes no packed rows; use --data.batching padded")
        # a mask of four dimensions is taken as it is, and attention over a packed row reads none
        inputs = {"attention_mask": input_ids.new_empty(1, 1, 1, 0), "packing": packing}
        positions = packing.positions + self._first_position
        hidden = self._run(input_ids, token_type_ids, position_ids=positions, **inputs)[0]
        return hidden if self._last_layer else hidden.index_select(0, packing.starts)

    def of_padded(self, input_ids: Tensor, token_type_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(batch, length), (batch, length), (batch, length) -> (batch, hidden)."""
        return self._run(input_ids, token_type_ids, attention_mask=attention_mask)[:, 0]

    def _run(self, input_ids: Tensor, token_type_ids: Tensor, **inputs: Any) -> Tensor:
        if self._has_types:
            inputs["token_type_ids"] = token_type_ids
        hidden: Tensor = self.encoder(input_ids=input_ids, **inputs).last_hidden_state
        return hidden


class _LastLayer:
    """Drops the last layer's rows that nothing reads.

    What follows attention works row by row, so only the first tokens' rows are handed on. A pair of hooks: the layer
    gets the packing, its attention's output block the rows.
    """

    def __init__(self, encoder: nn.Module, names: LastBlock) -> None:
        self._packing: Packing | None = None
        *_, layer = encoder.get_submodule(names.layers).children()
        output = layer.get_submodule(names.output)
        layer.register_forward_pre_hook(self._remember, with_kwargs=True)
        output.register_forward_pre_hook(self._select)

    def _remember(self, layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self._packing = kwargs.get("packing")

    def _select(self, output: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """(attention's output, residual), each (1, tokens, hidden) -> the same, (1, sentences, hidden)."""
        if self._packing is None:
            return None
        starts = self._packing.starts
        return tuple(rows.index_select(1, starts) for rows in args)
