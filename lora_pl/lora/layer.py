"""A linear layer with an adapter beside its frozen weight."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_pl.lora.config import LoRAConfig
from lora_pl.lora.product import adapted_linear
from lora_pl.lora.variants import VARIANTS


class LoRALinear(nn.Linear):
    r"""`nn.Linear` plus a low-rank update (Hu et al., 2021, Section 4.1).

    .. math:: y = x W_0^T + b + \frac{\alpha}{r} \, (\mathrm{dropout}(x) A^T) B^T

    for LoRA itself. `weight` (out, in) and `bias` (out) are those of `base`, shared, not copied. `adapter` is trained,
    in fp32 on the base's device; at first the layer computes exactly what `base` does. `train()` and `eval()` switch
    the dropout and never touch a weight.

    Example:
        >>> layer = LoRALinear(nn.Linear(768, 768), LoRAConfig(r=4, lora_alpha=16))
        >>> layer(torch.zeros(2, 768)).shape
        torch.Size([2, 768])
    """

    base_weight: Tensor | None

    def __init__(self, base: nn.Linear, config: LoRAConfig) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        self.adapter = VARIANTS[config.variant](base, config)
        self.enabled = True
        # W0 while the update is merged into `weight`, else None
        self.register_buffer("base_weight", None, persistent=False)
        self.train(base.training)

    @property
    def merged(self) -> bool:
        """Whether `weight` is the merged one."""
        return self.base_weight is not None

    @property
    def frozen_weight(self) -> Tensor:
        """W0, (out, in), merged or not."""
        return self.weight if self.base_weight is None else self.base_weight

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out), in the dtype that the base layer alone would give."""
        if not self.enabled:
            return F.linear(x, self.frozen_weight, self.bias)
        if self.merged:
            return F.linear(x, self.weight, self.bias)
        dropout = self.adapter.lora_dropout
        factors = self.adapter.factors(self.weight, self.adapter.dtype)
        return adapted_linear(x, self.weight, self.bias, factors, dropout if self.training and dropout.p > 0 else None)

    def delta_weight(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """What merging adds to W0, (out, in), in `dtype`: (alpha / r) B A for LoRA."""
        return self.adapter.delta_weight(self.frozen_weight, dtype)

    @torch.no_grad()
    def merge(self) -> None:
        """Merge the update into `weight`: computed in fp32, rounded once to the weight's dtype.

        Does nothing if it is merged already. W0 is kept, so `unmerge` is exact.
        """
        if self.merged:
            return
        base = self.weight.detach()
        # a new Parameter: modules that share the old one keep W0
        merged = self.adapter.merged(base).to(base.dtype)
        self.weight = nn.Parameter(merged, requires_grad=self.weight.requires_grad)
        self.base_weight = base

    def unmerge(self) -> None:
        """Set `weight` back to W0, bit for bit. Does nothing if nothing is merged."""
        if self.base_weight is None:
            return
        self.weight = nn.Parameter(self.base_weight, requires_grad=self.weight.requires_grad)
        self.base_weight = None

    def extra_repr(self) -> str:
        """Sizes, rank and alpha."""
        return f"{super().extra_repr()}, r={self.adapter.r}, lora_alpha={self.adapter.lora_alpha:g}"


def lora_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """Every LoRALinear of `model` by its name, in the model's order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


@contextmanager
def disable_lora(model: nn.Module) -> Iterator[None]:
    """Within the context, every LoRALinear of `model` computes its base layer alone, merged or not."""
    before = {layer: layer.enabled for layer in lora_layers(model).values()}
    for layer in before:
        layer.enabled = False
    try:
        yield
    finally:
        for layer, enabled in before.items():
            layer.enabled = enabled


@contextmanager
def merged_lora(model: nn.Module) -> Iterator[None]:
    """Within the context, every LoRALinear of `model` is merged; afterwards those that were unmerged are so again."""
    unmerged = [layer for layer in lora_layers(model).values() if not layer.merged]
    for layer in unmerged:
        layer.merge()
    try:
        yield
    finally:
        for layer in unmerged:
            layer.unmerge()
