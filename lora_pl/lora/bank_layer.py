"""A linear layer with several adapters beside its frozen weight."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_pl.lora.adapter import Adapter, Factors
from lora_pl.lora.config import LoRAConfig
from lora_pl.lora.errors import LoRAError
from lora_pl.lora.layer import share
from lora_pl.lora.product import adapted_linear, computed_in
from lora_pl.lora.routing import Routes, Routing
from lora_pl.lora.transfer import transfer
from lora_pl.lora.variants import VARIANTS


class BankLinear(nn.Linear):
    r"""`nn.Linear` plus the update of each row's own adapter; see `AdapterBank`.

    `weight` (out, in) and `bias` (out) are those of `base`, shared, not copied, and must be frozen.
    """

    def __init__(self, base: nn.Linear, routes: Routes) -> None:
        nn.Module.__init__(self)
        share(base, self)
        self.adapters = nn.ModuleDict()
        self._routes = routes
        self.register_load_state_dict_post_hook(BankLinear._refresh)  # type: ignore[no-untyped-call]

    def add(self, name: str, config: LoRAConfig) -> None:
        """Add an adapter, drawn as `LoRALinear` draws it."""
        self.adapters[module_key(name)] = VARIANTS[config.variant](self, config).train(self.training)

    def remove(self, name: str) -> None:
        """Remove an adapter if it is here."""
        if name in self:
            del self.adapters[module_key(name)]

    def __contains__(self, name: str) -> bool:
        return module_key(name) in self.adapters

    def adapter(self, name: str) -> Adapter:
        """An adapter of this layer."""
        return cast(Adapter, self.adapters[module_key(name)])

    def _refresh(self, incompatible_keys: object) -> None:
        for adapter in self.adapters.values():
            cast(Adapter, adapter).refresh(self.weight)

    def is_finite(self, name: str) -> bool:
        """Whether the factors of an adapter are finite in the base's dtype."""
        adapter = self.adapter(name)
        a, b, scale, gain = adapter.factors(self.weight, adapter.dtype)
        return all(each.to(self.weight.dtype).isfinite().all() for each in (scale * a, b, gain) if each is not None)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out), in the dtype that the base layer alone would give.

        Raises:
            LoRAError: adapter: called outside of `AdapterBank.route`.
        """
        routing = self._routes.current
        if routing is None:
            raise LoRAError(
                "adapter", "this model holds a bank of adapters; call it within `with bank.route(adapters, lengths)`"
            )
        used = {name: self.adapter(name) for name in routing.used if name in self}
        if not used:
            return F.linear(x, self.weight, self.bias)
        factors = {name: adapter.factors(self.weight, adapter.dtype) for name, adapter in used.items()}
        columns = tuple((name, own.b.shape[1]) for name, own in factors.items())
        mask = routing.mask(tuple(x.shape[:-1]), columns, x.device)
        drops = self.training and any(adapter.lora_dropout.p for adapter in used.values())
        dropout = partial(self._dropped, used=used, routing=routing) if drops else None
        joined = self._joined(x, factors, routing)
        if mask is not None:
            joined = _contained(joined, computed_in(x, joined.a.dtype))
        return adapted_linear(x, self.weight, self.bias, joined, dropout, mask)

    def _joined(self, x: Tensor, factors: Mapping[str, Factors], routing: Routing) -> Factors:
        """a (sum of k, in) and b (out, sum of k) of all adapters, and the gain of each row's own."""
        scale = 1.0
        if len(factors) == 1:
            ((a, b, scale, _),) = factors.values()
        else:
            a = torch.cat([own.a * own.scale for own in factors.values()])
            b = torch.cat([own.b for own in factors.values()], 1)
        gains = {name: own.gain for name, own in factors.items() if own.gain is not None}
        return Factors(a, b, scale, self._gain_of_rows(x, gains, routing) if gains else None)

    def _gain_of_rows(self, x: Tensor, gains: Mapping[str, Tensor], routing: Routing) -> Tensor:
        """(rows, out): the gain of each row's own adapter; 1 for adapters without one and for the base alone."""
        one = torch.ones_like(next(iter(gains.values())))
        table = torch.stack([one, *(gains.get(name, one) for name in routing.used)])
        # the base alone has the number -1
        return F.embedding(routing.of_rows(tuple(x.shape[:-1]), x.device) + 1, table)

    def _dropped(self, x: Tensor, used: Mapping[str, Adapter], routing: Routing) -> Tensor:
        """x with entries dropped, each row with its own adapter's probability."""
        if len({adapter.lora_dropout.p for adapter in used.values()}) == 1:  # other rows use no column of theirs
            return cast(Tensor, next(iter(used.values())).lora_dropout(x))
        chances = [used[name].lora_dropout.p if name in used else 0.0 for name in routing.used]
        p = transfer(torch.tensor([*chances, 0.0]), x.device)  # the last one is the base's, number -1
        of_rows = p[routing.of_rows(tuple(x.shape[:-1]), x.device)].view(*x.shape[:-1], 1)
        kept = torch.rand(x.shape, device=x.device) >= of_rows
        return x * kept / (1 - of_rows).to(x.dtype)


def _contained(factors: Factors, dtype: torch.dtype) -> Factors:
    """The same, but where a column of b overflows in `dtype`, x a^T is NaN instead.

    The mask keeps x a^T to the rows of its own adapter; 0 * inf in the product with b would reach all rows.
    """
    finite = factors.b.detach().to(dtype).isfinite()
    if finite.device.type == "cpu" and finite.all():  # elsewhere the answer would stop the queue
        return factors
    overflows = ~finite.all(0)  # (k,)
    return factors._replace(
        a=factors.a.masked_fill(overflows[:, None], torch.nan), b=factors.b.masked_fill(overflows, 0)
    )


def module_key(name: str) -> str:
    """A name as a ModuleDict takes it: without dots, and unlike any attribute (`half`)."""
    return "@" + name.replace("%", "%25").replace(".", "%2E")
