"""A linear layer with an adapter beside its frozen weight."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_pl.lora.casting import factors_of
from lora_pl.lora.config import LoRAConfig
from lora_pl.lora.product import adapted_linear
from lora_pl.lora.variants import VARIANTS

HOOKS = ("_forward_", "_backward_", "_is_full_backward_")
"""How the attributes of `nn.Module` begin that hold hooks of a forward and a backward."""

# of a context (a thread, a task), so that others go on with the layers as they are: the weight to compute with alone
_WEIGHTS: ContextVar[Mapping[LoRALinear, Tensor]] = ContextVar("weights", default={})  # noqa: B039  never changed
_used = False  # whether it ever held one: torch.compile can't trace context variables, and until then need not


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
        share(base, self)
        self.adapter = VARIANTS[config.variant](base, config)
        self.register_buffer("_merged_weight", None, persistent=False)
        self.register_load_state_dict_post_hook(LoRALinear.refresh)  # type: ignore[no-untyped-call]
        self.train(base.training)

    @property
    def merged_weight(self) -> Tensor | None:
        """(out, in), what the layer computes with alone: W where it is merged, by `merge` or by `merged_lora` in this
        context, and W_0 within `disable_lora`; else None."""
        return _WEIGHTS.get().get(self, self._merged_weight) if _used else self._merged_weight

    @property
    def merged(self) -> bool:
        """Whether there is a `merged_weight`."""
        return self.merged_weight is not None

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out), in the dtype that the base layer alone would give."""
        merged = self.merged_weight
        if merged is not None:
            return F.linear(x, merged, self.bias)
        dropout = self.adapter.lora_dropout
        drops = self.training and dropout.p > 0
        return adapted_linear(x, self.weight, self.bias, factors_of(self), dropout if drops else None)

    def delta_weight(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """What merging adds to W0, (out, in), in `dtype`: s B A for LoRA."""
        return self.adapter.delta_weight(self.weight, dtype)

    @torch.inference_mode(False)  # the weight outlives the caller's inference mode
    def merge(self) -> None:
        """Compute with the merged weight from now on: W in fp32, rounded once to the weight's dtype.

        Does nothing if it is merged already. A state that is loaded later is merged too.
        """
        if self._merged_weight is None:
            self._merged_weight = _merged_weight(self, self.weight.dtype)

    def unmerge(self) -> None:
        """The reverse of `merge`."""
        self._merged_weight = None

    def refresh(self, incompatible_keys: Any = None) -> None:
        """Bring what is derived from weight and adapter up to date, after a state was loaded into them."""
        self.adapter.refresh(self.weight)
        if self._merged_weight is not None:
            self.unmerge()
            self.merge()

    def extra_repr(self) -> str:
        """Sizes, rank and alpha."""
        return f"{super().extra_repr()}, r={self.adapter.r}, lora_alpha={self.adapter.lora_alpha:g}"


def share(base: nn.Linear, layer: nn.Linear) -> None:
    """Give `layer` the sizes, weight, bias, mode and hooks of `base`, not copies: a hook's handle still removes it."""
    layer.in_features, layer.out_features = base.in_features, base.out_features
    layer.weight, layer.bias = base.weight, base.bias
    layer.training = base.training
    vars(layer).update({name: value for name, value in vars(base).items() if name.startswith(HOOKS)})


def lora_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """Every LoRALinear of `model` by its name, in the model's order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


@contextmanager
def disable_lora(model: nn.Module) -> Iterator[None]:
    """Within the context, every LoRALinear of `model` computes its base layer alone, merged or not.

    That is the pretrained model where adapters alone were trained: what was trained in place, such as a bias, keeps its
    trained values. As `merged_lora`, it holds for this thread (and asyncio task) alone.
    """
    with _computing_with({layer: layer.weight for layer in lora_layers(model).values()}):
        yield


@contextmanager
def merged_lora(model: nn.Module, dtype: torch.dtype | None = None) -> Iterator[None]:
    """Within the context, every LoRALinear of `model` computes with its merged weight, in this thread alone.

    The weights are those of the moment it is entered; layers that are merged already stay as they are.

    Args:
        model: Nothing in it is changed.
        dtype: What the merged weights are rounded to; by default each layer's own.
    """
    unmerged = [layer for layer in lora_layers(model).values() if not layer.merged]
    with _computing_with({layer: _merged_weight(layer, dtype or layer.weight.dtype) for layer in unmerged}):
        yield


@contextmanager
def _computing_with(weights: Mapping[LoRALinear, Tensor]) -> Iterator[None]:
    global _used
    _used = True
    token = _WEIGHTS.set({**_WEIGHTS.get(), **weights})
    try:
        yield
    finally:
        _WEIGHTS.reset(token)


@torch.no_grad()
def _merged_weight(layer: LoRALinear, dtype: torch.dtype) -> Tensor:
    """W, (out, in): computed in fp32, or fp64 if the weight is, rounded once to `dtype`."""
    exact = torch.promote_types(layer.weight.dtype, torch.float32)
    return layer.adapter.merged(layer.weight, exact).to(dtype)
