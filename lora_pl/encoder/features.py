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

    On a packed row nothing is computed that these features do not depend on: no padding token, and in the last layer
    no more than keys and values for the tokens that are not first. The encoder's dropout is drawn in bulk.

    Args:
        encoder: Its attention is switched to one that takes packed rows too, where the architecture allows it.
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
            UserError: sentences of this architecture can't lie in one row.
        """
        if not self._packed:
            kind = self.encoder.config.model_type
            raise UserError("data.batching", f"{kind} takes no packed rows; take --data.batching padded")
        # a mask of four dimensions is taken as it is, and attention over a packed row reads none
        inputs = {"attention_mask": input_ids.new_empty(1, 1, 1, 0), "packing": packing}
        positions = packing.positions + self._first_position
        hidden = self._run(input_ids, token_type_ids, position_ids=positions, **inputs)[0]
        return hidden if self._last_layer else hidden.index_select(0, packing.starts)

    def of_padded(self, input_ids: Tensor, token_type_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(batch, length), (batch, length), (batch, length) -> (batch, hidden)."""
        return self._run(input_ids, token_type_ids, attention_mask=attention_mask)[:, 0]

    def products(self, tokens: int, sentences: int) -> int:
        """Multiply-adds of all linear layers in a forward pass over a packed row.

        Attention's products of queries and keys are left out: they are some 2% on SST-2's short sentences.
        """
        total = _linear_weights(self.encoder)
        after_attention = self._last_layer.weights if self._last_layer else 0
        return tokens * (total - after_attention) + sentences * after_attention

    def _run(self, input_ids: Tensor, token_type_ids: Tensor, **inputs: Any) -> Tensor:
        if self._has_types:
            inputs["token_type_ids"] = token_type_ids
        hidden: Tensor = self.encoder(input_ids=input_ids, **inputs).last_hidden_state
        return hidden


class _LastLayer:
    """Lets the last layer's rows that nothing reads end after attention.

    What follows attention works row by row, so the first tokens' rows alone are handed on. A pair of hooks: the layer
    is given the packing, its attention's output block is given the rows.
    """

    def __init__(self, encoder: nn.Module, names: LastBlock) -> None:
        self._packing: Packing | None = None
        *_, layer = encoder.get_submodule(names.layers).children()
        attention, output = (layer.get_submodule(name) for name in (names.attention, names.output))
        self.weights = _linear_weights(layer) - _linear_weights(attention) + _linear_weights(output)
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


def _linear_weights(module: nn.Module) -> int:
    return sum(child.weight.numel() for child in module.modules() if isinstance(child, nn.Linear))
