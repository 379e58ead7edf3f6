"""Classification heads on the feature of the first token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_pl.errors import UserError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

HeadKind = Literal["linear", "architecture"]


class LinearHead(nn.Linear):
    """z = h W^T + b on the first token's feature h: (batch, hidden) -> (batch, outputs).

    W is drawn with the encoder's `initializer_range`, b is zero.
    """

    def __init__(self, config: PretrainedConfig, outputs: int) -> None:
        super().__init__(config.hidden_size, outputs)
        _initialize(self, config)


@dataclass(frozen=True)
class HeadShape:
    """How an architecture's own head differs from the others'."""

    activation: Callable[[Tensor], Tensor]
    drops_input: bool
    dense_from_pooler: bool = False


ROBERTA = HeadShape(torch.tanh, drops_input=True)
HEAD_SHAPES = {
    "roberta": ROBERTA,
    "xlm-roberta": ROBERTA,
    "camembert": ROBERTA,
    "bert": HeadShape(torch.tanh, drops_input=False, dense_from_pooler=True),
    "distilbert": HeadShape(F.relu, drops_input=False),
    "electra": HeadShape(F.gelu, drops_input=True),
}


class ArchitectureHead(nn.Module):
    """z = out_proj(dropout(f(dense(h)))), as Transformers' `...ForSequenceClassification` of the same architecture.

    RoBERTa, XLM-R: f = tanh, ELECTRA: f = GELU, both with dropout on h too; BERT: f = tanh, `dense` starts as its
    pretrained pooler; DistilBERT: f = ReLU. (batch, hidden) -> (batch, outputs).
    """

    def __init__(self, config: PretrainedConfig, outputs: int) -> None:
        super().__init__()
        self.shape = head_shape(config)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(_head_dropout(config))
        self.out_proj = nn.Linear(config.hidden_size, outputs)
        _initialize(self.dense, config)
        _initialize(self.out_proj, config)

    def forward(self, h: Tensor) -> Tensor:
        """(batch, hidden) -> (batch, outputs)."""
        if self.shape.drops_input:
            h = self.dropout(h)
        z: Tensor = self.out_proj(self.dropout(self.shape.activation(self.dense(h))))
        return z


def head_shape(config: PretrainedConfig) -> HeadShape:
    """The row of `HEAD_SHAPES`; a UserError for an architecture that has none."""
    if config.model_type not in HEAD_SHAPES:
        known = ", ".join(HEAD_SHAPES)
        raise UserError(f"head: architecture is known for {known}, not for {config.model_type}; take head: linear")
    return HEAD_SHAPES[config.model_type]


def needs_pooler(kind: HeadKind, config: PretrainedConfig) -> bool:
    """Whether the head starts from the encoder's pretrained pooler."""
    return kind == "architecture" and head_shape(config).dense_from_pooler


def new_head(kind: HeadKind, config: PretrainedConfig, outputs: int) -> LinearHead | ArchitectureHead:
    """The head as it is drawn."""
    return LinearHead(config, outputs) if kind == "linear" else ArchitectureHead(config, outputs)


def make_head(kind: HeadKind, encoder: PreTrainedModel, outputs: int) -> LinearHead | ArchitectureHead:
    """The head for `encoder`; where it starts from the encoder's pooler, the pooler moves out of the encoder."""
    head = new_head(kind, encoder.config, outputs)
    if isinstance(head, ArchitectureHead) and needs_pooler(kind, encoder.config):
        head.dense.load_state_dict(encoder.pooler.dense.state_dict())
        encoder.pooler = None
    return head


def _head_dropout(config: PretrainedConfig) -> float:
    names = ("classifier_dropout", "seq_classif_dropout", "hidden_dropout_prob")
    return next((float(p) for name in names if (p := getattr(config, name, None)) is not None), 0.0)


def _initialize(linear: nn.Linear, config: PretrainedConfig) -> None:
    nn.init.normal_(linear.weight, std=getattr(config, "initializer_range", 0.02))
    nn.init.zeros_(linear.bias)
