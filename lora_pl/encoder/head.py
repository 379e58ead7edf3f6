"""Classification heads on the feature of the first token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from torch import Tensor, nn

from lora_pl.encoder.architectures import stock_head

if TYPE_CHECKING:
    from transformers import PretrainedConfig

HeadKind = Literal["linear", "architecture"]


class LinearHead(nn.Linear):
    """z = h W^T + b on the first token's feature h: (batch, hidden) -> (batch, outputs).

    W is drawn with the encoder's `initializer_range`, b is zero.
    """

    def __init__(self, config: PretrainedConfig, outputs: int) -> None:
        super().__init__(config.hidden_size, outputs)
        _initialize(self, config)


class ArchitectureHead(nn.Module):
    """z = out_proj(dropout(norm(f(dense(dropout(h)))))): see `StockHead`. (batch, hidden) -> (batch, outputs)."""

    def __init__(self, config: PretrainedConfig, outputs: int) -> None:
        super().__init__()
        from transformers.activations import ACT2FN

        stock, size = stock_head(config), config.hidden_size
        self.input_dropout = nn.Dropout(stock.probability(config, stock.input_dropout))
        self.dense = nn.Linear(size, size, bias=stock.dense_bias is None or getattr(config, stock.dense_bias))
        self.activation = ACT2FN[stock.activation_name(config)]
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


def new_head(
    kind: HeadKind, config: PretrainedConfig, outputs: int, pretrained: Mapping[str, nn.Module] | None = None
) -> LinearHead | ArchitectureHead:
    """A head drawn at random; layers of an architecture head start from those in `pretrained`."""
    if kind == "linear":
        return LinearHead(config, outputs)
    head = ArchitectureHead(config, outputs)
    for name, layer in (pretrained or {}).items():
        head.get_submodule(name).load_state_dict(layer.state_dict())
    return head


def _initialize(linear: nn.Linear, config: PretrainedConfig) -> None:
    nn.init.normal_(linear.weight, std=getattr(config, "initializer_range", 0.02))
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
