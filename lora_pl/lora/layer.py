"""A linear layer with a low-rank update beside its frozen weight."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_pl.lora.config import LoRAConfig
from lora_pl.lora.product import low_rank_product

GAUSSIAN_STD = 0.02


class LoRALinear(nn.Linear):
    r"""`nn.Linear` plus a low-rank update (Hu et al., 2021, Section 4.1).

    .. math:: y = x W_0^T + b + \frac{\alpha}{r} \, (\mathrm{dropout}(x) A^T) B^T

    `weight` (out, in) and `bias` (out) are those of `base`, shared, not copied. `lora_A` (r, in) starts Gaussian,
    `lora_B` (out, r) at zero, so that the layer starts as `base` exactly. Both are fp32 on the base's device,
    whatever the base's dtype. `train()` and `eval()` switch the dropout and never touch a weight.

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
        self.r, self.lora_alpha, self.scaling = config.r, config.lora_alpha, config.scaling
        self.lora_dropout = nn.Dropout(config.lora_dropout)
        self.lora_A = nn.Parameter(self._fp32(self.r, self.in_features))
        self.lora_B = nn.Parameter(self._fp32(self.out_features, self.r))
        self.enabled = True
        # W0 while the update is merged into `weight`, else None
        self.register_buffer("base_weight", None, persistent=False)
        self.train(base.training)
        self.reset_lora_parameters(config)

    def _fp32(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self.weight.device)

    def reset_lora_parameters(self, config: LoRAConfig) -> None:
        """Draw A as `config.init` says and set B to zero."""
        if config.init == "gaussian":
            nn.init.normal_(self.lora_A, std=GAUSSIAN_STD)
        else:
            nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B)

    def adapter_params(self) -> tuple[str, ...]:
        """The names of this module's own parameters that are LoRA's."""
        return ("lora_A", "lora_B")

    @property
    def merged(self) -> bool:
        """Whether `weight` holds W0 + delta_weight()."""
        return self.base_weight is not None

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out), in the dtype that the base layer alone would give."""
        if self.base_weight is not None and not self.enabled:
            return F.linear(x, self.base_weight, self.bias)
        if self.merged or not self.enabled:
            return F.linear(x, self.weight, self.bias)
        if self._is_one_product(x):
            return low_rank_product(
                x.to(computed_dtype(x)), self.weight, self.bias, self.lora_A, self.lora_B, self.scaling
            )
        y = F.linear(x, self.weight, self.bias)
        return y + self._update(x).to(y.dtype)

    def _is_one_product(self, x: Tensor) -> bool:
        """Whether x is the input of both terms, gradients are asked for, and all is computed in one dtype."""
        if not torch.is_grad_enabled() or not self.lora_A.requires_grad or self.weight.requires_grad:
            return False
        drops = self.training and self.lora_dropout.p > 0
        one_dtype = torch.is_autocast_enabled(x.device.type) or x.dtype == self.weight.dtype == self.lora_A.dtype
        return one_dtype and not drops

    def _update(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out): (alpha / r) (dropout(x) A^T) B^T."""
        x = self.lora_dropout(x)
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(self.lora_A.dtype)
        # the scaling multiplies the thin (..., r) product
        return F.linear(F.linear(x, self.lora_A) * self.scaling, self.lora_B)

    def delta_weight(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """(alpha / r) B A, shape (out, in), computed in `dtype`."""
        return self.scaling * (self.lora_B.to(dtype) @ self.lora_A.to(dtype))

    @torch.no_grad()
    def merge(self) -> None:
        """Set `weight` to W0 + delta_weight(): summed in fp32, rounded once to the weight's dtype.

        Does nothing where the update is merged already. W0 is kept aside, so `unmerge` is exact.
        """
        if self.merged:
            return
        base = self.weight.detach()
        merged = (base.float() + self.delta_weight()).to(base.dtype)
        # a new Parameter: modules that share the old one keep W0
        self.weight = nn.Parameter(merged, requires_grad=self.weight.requires_grad)
        self.base_weight = base

    def unmerge(self) -> None:
        """Set `weight` back to W0, bit for bit. Does nothing where nothing is merged."""
        if self.base_weight is None:
            return
        self.weight = nn.Parameter(self.base_weight, requires_grad=self.weight.requires_grad)
        self.base_weight = None

    def extra_repr(self) -> str:
        """Sizes, rank and alpha."""
        return f"{super().extra_repr()}, r={self.r}, lora_alpha={self.lora_alpha:g}"


def computed_dtype(x: Tensor) -> torch.dtype:
    """What a product with x is computed in: autocast's type where it is on, else x's own."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


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
    """Within the context, every LoRALinear of `model` is merged; afterwards those are unmerged that were before."""
    apart = [layer for layer in lora_layers(model).values() if not layer.merged]
    for layer in apart:
        layer.merge()
    try:
        yield
    finally:
        for layer in apart:
            layer.unmerge()
