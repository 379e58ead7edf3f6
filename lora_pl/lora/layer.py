"""A linear layer with an adapter beside its frozen weight."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_pl.lora.config import LoRAConfig
from lora_pl.lora.product import adapted_linear
from lora_pl.lora.variants import VARIANTS

# of a context (a thread, a task), so that others go on with the layers as they are
_DISABLED: ContextVar[frozenset[LoRALinear]] = ContextVar("disabled", default=frozenset())
_MERGED: ContextVar[Mapping[LoRALinear, Tensor]] = ContextVar("merged", default={})  # noqa: B039  never changed


class LoRALinear(nn.Linear):
    r"""`nn.Linear` plus a low-rank update (Hu et al., 2021, Section 4.1).

    .. math:: y = x W_0^T + b + \frac{\alpha}{r} \, (\mathrm{dropout}(x) A^T) B^T

    for LoRA itself. `weight` (out, in) and `bias` (out) are those of `base`, shared, not copied. `adapter` is trained,
    in fp32 on the base's device; at first the layer computes exactly what `base` does. `weight` is always W_0:
    `merge` keeps the sum beside it, and `train()` and `eval()` switch the dropout alone.

    Example:
        >>> layer = LoRALinear(nn.Linear(768, 768), LoRAConfig(r=4, lora_alpha=16))
        >>> layer(torch.zeros(2, 768)).shape
        torch.Size([2, 768])
    """

    _merged_weight: Tensor | None

    def __init__(self, base: nn.Linear, config: LoRAConfig) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        self.adapter = VARIANTS[config.variant](base, config)
        self.register_buffer("_merged_weight", None, persistent=False)
        self.register_load_state_dict_post_hook(_merge_again)  # type: ignore[no-untyped-call]
        self.train(base.training)

    @property
    def merged_weight(self) -> Tensor | None:
        """W, (out, in), where the layer is merged: by `merge`, or by `merged_lora` in this context; else None."""
        return _MERGED.get().get(self, self._merged_weight)

    @property
    def merged(self) -> bool:
        """Whether the layer computes with the merged weight."""
        return self.merged_weight is not None

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out), in the dtype that the base layer alone would give."""
        if self in _DISABLED.get():
            return F.linear(x, self.weight, self.bias)
        merged = self.merged_weight
        if merged is not None:
            return F.linear(x, merged, self.bias)
        dropout = self.adapter.lora_dropout
        factors = self.adapter.factors(self.weight, self.adapter.dtype)
        return adapted_linear(x, self.weight, self.bias, factors, dropout if self.training and dropout.p > 0 else None)

    def delta_weight(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """What merging adds to W0, (out, in), in `dtype`: s B A for LoRA."""
        return self.adapter.delta_weight(self.weight, dtype)

    def merge(self) -> None:
        """Compute with the merged weight from now on: W in fp32, rounded once to the weight's dtype.

        Does nothing if it is merged already. A state that is loaded later is merged too.
        """
        if self._merged_weight is None:
            self._merge()

    @torch.inference_mode(False)  # the weight outlives the caller's inference mode
    def _merge(self) -> None:
        self._merged_weight = _merged_weight(self, self.weight.dtype)

    def unmerge(self) -> None:
        """The reverse of `merge`."""
        self._merged_weight = None

    def extra_repr(self) -> str:
        """Sizes, rank and alpha."""
        return f"{super().extra_repr()}, r={self.adapter.r}, lora_alpha={self.adapter.lora_alpha:g}"


def lora_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """Every LoRALinear of `model` by its name, in the model's order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


@contextmanager
def disable_lora(model: nn.Module) -> Iterator[None]:
    """Within the context, every LoRALinear of `model` computes its base layer alone, merged or not.

    As `merged_lora`, it holds for this thread (and asyncio task) alone.
    """
    token = _DISABLED.set(_DISABLED.get().union(lora_layers(model).values()))
    try:
        yield
    finally:
        _DISABLED.reset(token)


@contextmanager
def merged_lora(model: nn.Module, dtype: torch.dtype | None = None) -> Iterator[None]:
    """Within the context, every LoRALinear of `model` computes with its merged weight, in this thread alone.

    The weights are those of the moment it is entered; layers that are merged already stay as they are.

    Args:
        model: Nothing in it is changed.
        dtype: What the merged weights are rounded to; by default each layer's own.
    """
    unmerged = [layer for layer in lora_layers(model).values() if not layer.merged]
    merged = {layer: _merged_weight(layer, dtype or layer.weight.dtype) for layer in unmerged}
    token = _MERGED.set({**_MERGED.get(), **merged})
    try:
        yield
    finally:
        _MERGED.reset(token)


def merge_again(model: nn.Module) -> None:
    """Bring the merged weights of `model` up to date with its adapters."""
    for layer in lora_layers(model).values():
        _merge_again(layer)


def _merge_again(layer: nn.Module, incompatible_keys: Any = None) -> None:
    if isinstance(layer, LoRALinear) and layer._merged_weight is not None:
        layer._merge()


@torch.no_grad()
def _merged_weight(layer: LoRALinear, dtype: torch.dtype) -> Tensor:
    """W, (out, in): computed in fp32, or fp64 if the weight is, rounded once to `dtype`."""
    exact = torch.promote_types(layer.weight.dtype, torch.float32)
    return layer.adapter.merged(layer.weight, exact).to(dtype)
