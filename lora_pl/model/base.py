"""The frozen encoder that adapters share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lora_pl.data.batches import BATCH_TOKENS, Batch, Batching, indices_of_like_length, make_batch
from lora_pl.data.tokens import Tokens, tokenize
from lora_pl.encoder.architectures import architecture_of, module_names
from lora_pl.encoder.dropout import use_bulk_dropout
from lora_pl.encoder.dtype import cast_frozen, quantize_frozen
from lora_pl.encoder.features import FirstTokenFeatures
from lora_pl.encoder.fingerprint import base_fingerprints
from lora_pl.encoder.graphs import GraphedRows, cuda_graphs
from lora_pl.encoder.head import ArchitectureHead, HeadKind, LinearHead, new_head
from lora_pl.encoder.loading import load_encoder, load_tokenizer, max_tokens, pretrained_head_layers
from lora_pl.encoder.packing import Packing
from lora_pl.errors import UserError
from lora_pl.lora import LoRAConfig, factors_cast_to, inject_lora, lora_layers
from lora_pl.model.precision import cpu_has_bf16

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Base:
    """An encoder with its tokenizer: loaded once, frozen, and shared by any number of adapters and heads.

    It is no `nn.Module`: a module that holds a base registers the encoder under its own name for it.

    Args:
        name: A hub name, a folder, or package://NAME/PATH.
        encoder: In fp32, as loaded.
        tokenizer: The encoder's.
        pretrained: Layers that an architecture head starts from (BERT's pooler).
    """

    def __init__(
        self,
        name: str,
        encoder: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        pretrained: Mapping[str, nn.Module] | None = None,
    ) -> None:
        self.encoder, self.tokenizer, self.config, self.pretrained = encoder, tokenizer, encoder.config, pretrained
        self.fingerprints = base_fingerprints(name, encoder, tokenizer)
        """`{"encoder", "weights", "vocabulary"}`: how a checkpoint identifies its base."""
        self.reader = FirstTokenFeatures(encoder)
        self.batching: Batching = "packed" if architecture_of(self.config).packed else "padded"
        """packed, or padded if the encoder can't be packed"""
        self.weights = self.dtype = torch.float32
        """The dtype of the frozen weights, and the one computed in; they differ for int8. Norms are fp32."""
        self.graphs: GraphedRows | None = None
        """What computes short packed rows in training, after `use_graphs`."""

    @classmethod
    def load(cls, name: str, dropout: float | None = None, head: HeadKind = "linear") -> Base:
        """The pretrained encoder in fp32, frozen, in train mode. Draws no random number.

        Args:
            name: A hub name, a folder, or package://NAME/PATH.
            dropout: On hidden states and attention; by default the encoder's configuration's.
            head: The kind of head to come: an architecture's own may start from pretrained layers.

        Raises:
            UserError: `model.encoder`: it can't be loaded; `model.head`: it has no head of this kind.
        """
        pretrained = pretrained_head_layers(name) if head == "architecture" else None
        encoder = load_encoder(name, dropout=dropout).requires_grad_(False)
        return cls(name, encoder, load_tokenizer(name), pretrained)

    @property
    def device(self) -> torch.device:
        """The encoder's."""
        device: torch.device = next(self.encoder.parameters()).device
        return device

    @property
    def max_tokens(self) -> int:
        """The longest sequence, special tokens included, that the encoder has positions for."""
        return max_tokens(self.config)

    def new_head(self, kind: HeadKind, outputs: int) -> LinearHead | ArchitectureHead:
        """A head, drawn at random but for the pretrained layers it starts from."""
        return new_head(kind, self.config, outputs, self.pretrained)

    def resolve(self, lora: LoRAConfig) -> LoRAConfig:
        """`lora` with roles (query, value, ...) among its targets replaced by the names of the encoder's layers."""
        return module_names(lora, self.config)

    def inject(self, lora: LoRAConfig) -> list[str]:
        """Inject LoRA into the encoder and return the adapted layers' names; see `inject_lora`."""
        adapted = inject_lora(self.encoder, self.resolve(lora))
        use_bulk_dropout(self.encoder)  # the adapters' own
        return adapted

    def cast(self, dtype: torch.dtype) -> None:
        """Convert the frozen weights to `dtype` and compute in it (for int8 see `Int8Weight`); norms stay fp32.

        Does nothing for fp32 (rounded weights stay rounded) or if no weight is frozen.
        """
        if dtype != torch.float32 and not all(parameter.requires_grad for parameter in self.encoder.parameters()):
            self.weights = self.dtype = dtype
            if dtype == torch.int8:
                self.dtype = torch.bfloat16 if cpu_has_bf16() else torch.float32
                quantize_frozen(self.encoder, self.dtype)
            else:
                cast_frozen(self.encoder, dtype)

    def autocast(self) -> AbstractContextManager[Any]:
        """Autocast to the frozen weights' dtype if that is 16-bit; otherwise the caller's own setting holds."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def _factors_cast(self) -> AbstractContextManager[Any]:
        """All layers' factors in autocast's type, where it is on."""
        kind = self.device.type
        if not torch.is_autocast_enabled(kind):
            return nullcontext()
        return factors_cast_to(torch.get_autocast_dtype(kind), list(lora_layers(self.encoder).values()))

    def features(self, batch: Batch) -> Tensor:
        """The feature of each sentence's first token, (batch, hidden), fp32."""
        ids, types = batch.input_ids, batch.token_type_ids
        if batch.attention_mask is not None:
            with self.autocast(), self._factors_cast():
                return self.reader.of_padded(ids, types, batch.attention_mask).float()
        packing = Packing(batch.lengths, ids.device, batch.filler, batch.pads)
        if self.graphs and batch.filler and packing.short and self.encoder.training and torch.is_grad_enabled():
            features = self.graphs(ids, types, packing)
        else:
            features = self._of_packed(ids, types, packing)
        return features[: len(batch)].float()

    def _of_packed(self, input_ids: Tensor, token_type_ids: Tensor, packing: Packing) -> Tensor:
        with self.autocast(), self._factors_cast():
            return self.reader.of_packed(input_ids, token_type_ids, packing)

    def use_graphs(self) -> None:
        """Train by CUDA graphs, captured from now on, with the encoder where it is; see `GraphedRows`.

        Raises:
            UserError: `model.graphs`: the encoder is not on a GPU, can't be captured, or is all frozen.
        """
        if not any(parameter.requires_grad for parameter in self.encoder.parameters()):
            raise UserError("model.graphs", "graphs are for training the encoder, and it is frozen; leave it out")
        if architecture_of(self.config).reads_back:
            raise UserError("model.graphs", f"{self.config.model_type} reads back from the GPU; leave it out")
        self.graphs = GraphedRows(self.encoder, self._of_packed, cuda_graphs(self.device))

    def tokenize(self, columns: Sequence[Sequence[str]], max_length: int) -> Tokens:
        """One text column, or two for pairs, cut to `max_length` tokens."""
        return tokenize(self.tokenizer, columns, min(max_length, self.max_tokens))

    def batches(
        self, tokens: Tokens, budget: int = BATCH_TOKENS, batching: Batching | None = None
    ) -> Iterator[tuple[Batch, list[int]]]:
        """Batches of like length and at most `budget` tokens on the base's device, each with its sentences' indices.

        `batching` defaults to what the encoder takes.
        """
        kind = batching or self.batching
        for indices in indices_of_like_length(tokens.lengths, budget, kind):
            yield make_batch(tokens, indices, kind, self.tokenizer.pad_token_id).to(self.device), indices
