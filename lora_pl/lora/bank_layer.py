"""A linear layer with several low-rank updates beside its frozen weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_pl.lora.config import LoRAConfig
from lora_pl.lora.errors import LoRAError
from lora_pl.lora.layer import LoRALinear, computed_dtype
from lora_pl.lora.product import low_rank_product
from lora_pl.lora.routing import Routing


@dataclass
class Current:
    """What the layers of a bank share."""

    routing: Routing | None = None
    """That of the forward that is under way."""


class LoRAWeights(nn.Module):
    """One adapter's A (r, in) and B (out, r) for one layer, drawn as `LoRALinear` draws them."""

    def __init__(self, base: nn.Linear, config: LoRAConfig) -> None:
        super().__init__()
        drawn = LoRALinear(base, config)
        self.lora_A, self.lora_B = drawn.lora_A, drawn.lora_B
        self.r, self.scaling, self.dropout = config.r, config.scaling, config.lora_dropout

    def adapter_params(self) -> tuple[str, ...]:
        """The names of this module's own parameters that are LoRA's."""
        return ("lora_A", "lora_B")


class BankLinear(nn.Linear):
    r"""`nn.Linear` plus the update of each row's own adapter; see `AdapterBank`.

    `weight` (out, in) and `bias` (out) are those of `base`, shared, not copied, and must be frozen.
    """

    def __init__(self, base: nn.Linear, current: Current) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        self.adapters = nn.ModuleDict()
        self.current = current
        self.train(base.training)

    def add(self, name: str, config: LoRAConfig) -> None:
        """Put in an adapter."""
        self.adapters[_key(name)] = LoRAWeights(self, config).train(self.training)

    def remove(self, name: str) -> None:
        """Take an adapter out where it is in."""
        if name in self:
            del self.adapters[_key(name)]

    def __contains__(self, name: str) -> bool:
        return _key(name) in self.adapters

    def adapter(self, name: str) -> LoRAWeights:
        """The weights of an adapter that is in."""
        return cast(LoRAWeights, self.adapters[_key(name)])

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out), in the dtype that the base layer alone would give.

        Raises:
            LoRAError: outside of `AdapterBank.route`, which says whose adapter is meant.
        """
        routing = self.current.routing
        if routing is None:
            raise LoRAError("this model holds a bank of adapters: run it within `with bank.route(adapters, lengths)`")
        used = {name: self.adapter(name) for name in routing.used if name in self}
        if not used:
            return F.linear(x, self.weight, self.bias)
        columns = tuple((name, weights.r) for name, weights in used.items())
        foreign = routing.foreign(tuple(x.shape[:-1]), columns, x.device)
        # (sum of r, in) and (out, sum of r): all of them in one product
        a = torch.cat([weights.lora_A * weights.scaling for weights in used.values()])
        b = torch.cat([weights.lora_B for weights in used.values()], 1)
        drops = self.training and any(weights.dropout for weights in used.values())
        one_dtype = torch.is_autocast_enabled(x.device.type) or x.dtype == self.weight.dtype == a.dtype
        if one_dtype and not drops and not self.weight.requires_grad:
            return low_rank_product(x.to(computed_dtype(x)), self.weight, self.bias, a, b, 1.0, foreign)
        y = F.linear(x, self.weight, self.bias)
        z = (self._dropped(x, used, routing) if drops else x).flatten(0, -2)
        if not torch.is_autocast_enabled(x.device.type):
            z = z.to(a.dtype)
        thin = F.linear(z, a)  # (rows, sum of r)
        if foreign is not None:
            thin = thin.masked_fill(foreign, 0)
        return y + F.linear(thin, b).view(y.shape).to(y.dtype)

    def _dropped(self, x: Tensor, used: dict[str, LoRAWeights], routing: Routing) -> Tensor:
        """x with entries dropped, each row with its own adapter's probability."""
        chances = [used[name].dropout if name in used else 0.0 for name in routing.used]
        p = torch.tensor([*chances, 0.0], device=x.device)  # the last one is the base's, number -1
        of_rows = p[routing.of_rows(tuple(x.shape[:-1]), x.device)].view(*x.shape[:-1], 1)
        kept = torch.rand(x.shape, device=x.device) >= of_rows
        return x * kept / (1 - of_rows).to(x.dtype)

    def extra_repr(self) -> str:
        """Sizes and the number of adapters."""
        return f"{super().extra_repr()}, adapters={len(self.adapters)}"


def _key(name: str) -> str:
    """The name as a ModuleDict takes it: without dots, and unlike any attribute (`half`)."""
    return "@" + name.replace("%", "%25").replace(".", "%2E")
