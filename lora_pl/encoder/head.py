"""Classification heads on the feature of the first token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from torch import Tensor, nn

from lora_pl.encoder.architectures import stock_head

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


class ArchitectureHead(nn.Module):
    """z = out_proj(dropout(norm(f(dense(dropout(h)))))): see `StockHead`. (batch, hidden) -> (batch, outputs).

    The layers that `StockHead.pretrained` names start as the base's weights have them, where they do.
    """

    def __init__(self, config: PretrainedConfig, outputs: int) -> None:
        super().__init__()
        stock, size = stock_head(config), config.hidden_size
        self.input_dropout = nn.Dropout(stock.probability(config, stock.input_dropout))
        self.dense = nn.Linear(size, size, bias=stock.has_dense_bias(config))
        self.activation = stock.activation_of(config)
        self.norm = nn.LayerNorm(size, eps=config.norm_eps, bias=config.norm_bias) if stock.norm else nn.Identity()
        self.dropout = nn.Dropout(stock.probability(config, stock.dropout))
        self.out_proj = nn.Linear(size, outputs)
        _initialize(self.dense, config)
        _initialize(self.out_proj, config)

    def forward(self, h: Tensor) -> Tensor:
        """(batch, hidden) -> (batch, outputs)."""
        h = self.norm(self.activation(self.dense(self.input_dropout(h))))
        z: Tensor = self.out_proj(self.dropout(h))
        return z


def needs_pooler(kind: HeadKind, config: PretrainedConfig) -> bool:
    """Whether layers of the head start as the base's weights have them: the encoder's `pooler`."""
    return kind == "architecture" and bool(stock_head(config).pretrained)


def new_head(
    kind: HeadKind, config: PretrainedConfig, outputs: int, pooler: nn.Module | None = None
) -> LinearHead | ArchitectureHead:
    """The head as it is drawn, with the layers of `pooler` that its row calls pretrained."""
    if kind == "linear":
        return LinearHead(config, outputs)
    head = ArchitectureHead(config, outputs)
    for name in stock_head(config).pretrained if pooler else ():
        head.get_submodule(name).load_state_dict(pooler.get_submodule(name).state_dict())  # type: ignore[union-attr]
    return head


def take_pooler(encoder: PreTrainedModel) -> nn.Module | None:
    """The pooler, moved out of the encoder; None where there is none."""
    pooler: nn.Module | None = getattr(encoder, "pooler", None)
    if pooler is not None:
        encoder.pooler = None
    return pooler


def _initialize(linear: nn.Linear, config: PretrainedConfig) -> None:
    nn.init.normal_(linear.weight, std=getattr(config, "initializer_range", 0.02))
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
