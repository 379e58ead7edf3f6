"""What one layer's adapter is, and LoRA itself."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from lora_pl.lora.config import LoRAConfig

GAUSSIAN_STD = 0.02


class Factors(NamedTuple):
    r"""One layer's update: y = gain \* (x W_0^T + scale \* (x a^T) b^T) + bias."""

    a: Tensor
    """(k, in)"""
    b: Tensor
    """(out, k)"""
    scale: float
    gain: Tensor | None = None
    """None stands for 1; (out,), or (rows, out) if the rows of x go through several adapters."""


class Adapter(nn.Module, ABC):
    """The trained parameters of one adapted layer, in fp32 on the layer's device.

    A variant declares its parameters and the factors of its update. Freezing, counting, states, merging, `AdapterBank`,
    import and export use nothing else; PEFT's names and settings are there where PEFT has the variant too.

    Args:
        base: The layer, left as it is.
        config: Rank, alpha, dropout and initialization.
    """

    axes: ClassVar[Mapping[str, tuple[str, ...]]]
    """The parameters' names, in the order of the optimizer, and their dimensions: `r`, `in` or `out`."""
    peft_settings: ClassVar[Mapping[str, Any] | None] = None
    """The fields of PEFT's `LoraConfig` that choose this variant; None where PEFT does not have it."""
    peft_names: ClassVar[Mapping[str, str]] = {}
    """PEFT's names of the parameters, below a layer."""

    def __init__(self, base: nn.Linear, config: LoRAConfig) -> None:
        super().__init__()
        self.in_features, self.out_features = base.in_features, base.out_features
        self.r, self.lora_alpha, self.scaling, self.scale = config.r, config.lora_alpha, config.scaling, config.scale
        self.lora_dropout = nn.Dropout(config.lora_dropout)
        # torch's fast path of nn.TransformerEncoderLayer calls no layer, unless some module in it has a hook
        self.register_forward_pre_hook(_never_called)

    @classmethod
    def a_names(cls) -> list[str]:
        """The names of the parameters that are A, (r, in)."""
        return [name for name, axes in cls.axes.items() if axes == ("r", "in")]

    @classmethod
    def b_names(cls) -> list[str]:
        """The names of the parameters that are B, (out, r)."""
        return [name for name, axes in cls.axes.items() if axes == ("out", "r")]

    @classmethod
    def rank_of(cls, tensors: Mapping[str, Tensor]) -> int:
        """The rank of stored parameters."""
        name, axes = next((name, axes) for name, axes in cls.axes.items() if "r" in axes)
        return tensors[name].shape[axes.index("r")]

    @abstractmethod
    def factors(self, weight: Tensor, dtype: torch.dtype) -> Factors:
        """The factors over the frozen weight W_0 (out, in), in `dtype`, differentiable in the parameters."""

    def resized(self, base: nn.Linear, config: LoRAConfig) -> Adapter:
        """An untrained one of the same layer with the rank and alpha of `config`; what has no rank is as it is here.

        It draws no random number of the caller's.
        """
        with torch.random.fork_rng([base.weight.device] if base.weight.is_cuda else []), torch.no_grad():
            adapter = type(self)(base, config)
            before = {**dict(self.named_parameters()), **dict(self.named_buffers())}
            for name, tensor in (*adapter.named_parameters(), *adapter.named_buffers()):
                if tensor.shape == before[name].shape:
                    tensor.copy_(before[name])
        adapter.lora_dropout = self.lora_dropout
        return adapter.train(self.training)

    def refresh(self, weight: Tensor) -> None:
        """Bring what is kept of W_0 up to date, after a state was loaded into it."""

    @property
    def dtype(self) -> torch.dtype:
        """The parameters'."""
        return next(self.parameters()).dtype

    def tensors(self) -> dict[str, nn.Parameter]:
        """The parameters by name, in the declared order."""
        return {name: self.get_parameter(name) for name in self.axes}

    def delta_weight(self, weight: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """W - W_0, (out, in), in `dtype`, where W is the weight of the one linear layer that computes the same."""
        a, b, scale, gain = self.factors(weight, dtype)
        update = scale * b @ a
        if gain is None:
            return update
        return gain[:, None] * update + (gain[:, None] - 1) * weight.to(dtype)

    def merged(self, weight: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """W = gain * (W_0 + scale * b a), (out, in), in `dtype`."""
        return weight.to(dtype) + self.delta_weight(weight, dtype)


def _never_called(adapter: nn.Module, args: object) -> None:
    """A hook of adapters, which have no forward."""


class LoRA(Adapter):
    r"""W = W_0 + s B A, s = alpha / r (Hu et al., 2021, Section 4.1) or alpha / sqrt(r) (`config.scaling`).

    A (r, in) starts as `config.init` says (for eva: Gaussian, until `eva_init`), B (out, r) at zero, so that the layer
    starts as its base exactly.
    """

    axes: ClassVar[Mapping[str, tuple[str, ...]]] = {"lora_A": ("r", "in"), "lora_B": ("out", "r")}
    peft_settings: ClassVar[Mapping[str, Any] | None] = {}
    peft_names: ClassVar[Mapping[str, str]] = {"lora_A": "lora_A.weight", "lora_B": "lora_B.weight"}

    def __init__(self, base: nn.Linear, config: LoRAConfig) -> None:
        super().__init__(base, config)
        device = base.weight.device
        self.lora_A = nn.Parameter(torch.empty(self.r, self.in_features, dtype=torch.float32, device=device))
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, self.r, dtype=torch.float32, device=device))
        if config.init == "kaiming_uniform":
            nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        else:
            nn.init.normal_(self.lora_A, std=GAUSSIAN_STD)

    def factors(self, weight: Tensor, dtype: torch.dtype) -> Factors:
        """a = A, b = B, scale = s."""
        return Factors(self.lora_A.to(dtype), self.lora_B.to(dtype), self.scale)
