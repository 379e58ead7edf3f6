"""The factors of many layers, cast at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import saved_tensors_hooks

from lora_pl.lora.adapter import Factors

if TYPE_CHECKING:
    from lora_pl.lora.layer import LoRALinear

# of a context (a thread, a task)
_FACTORS: ContextVar[Mapping[LoRALinear, Factors]] = ContextVar("factors", default={})  # noqa: B039  never changed


@contextmanager
def factors_cast_to(dtype: torch.dtype, layers: Sequence[LoRALinear]) -> Iterator[None]:
    """Within the context, unmerged layers compute with factors in `dtype`, which else each casts at each use.

    One operation casts them all, and one their gradients.
    """
    own = {layer: layer.adapter.factors(layer.weight, layer.adapter.dtype) for layer in layers if not layer.merged}
    if not own:
        yield
        return
    parts = [part for factors in own.values() for part in (factors.a, factors.b)]
    cast = iter(_Cast.apply(dtype, *parts))  # type: ignore[no-untyped-call]
    token = _FACTORS.set({layer: factors._replace(a=next(cast), b=next(cast)) for layer, factors in own.items()})
    try:
        yield
    finally:
        _FACTORS.reset(token)


def factors_of(layer: LoRALinear) -> Factors:
    """The layer's: those cast in this context, else its adapter's."""
    if torch.compiler.is_compiling():  # which can't trace context variables
        return layer.adapter.factors(layer.weight, layer.adapter.dtype)
    if cast := _FACTORS.get().get(layer):
        return cast
    # a checkpointed layer is computed again outside of the context, and may not save more than it did inside
    with saved_tensors_hooks(Tensor.detach, _as_it_is):
        return layer.adapter.factors(layer.weight, layer.adapter.dtype)


def _as_it_is(tensor: Tensor) -> Tensor:
    """In place of the checkpoint's hooks: what the factors save is thin, and needn't be computed again.

    It is saved detached: an operation that saved its own result as it is would never be freed.
    """
    return tensor


class _Cast(torch.autograd.Function):
    """Tensors of one type in another."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.dtype = tensors[0].dtype
        return _copies(tensors, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return None, *_copies(gradients, ctx.dtype)


def _copies(tensors: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The same in `dtype`, in one piece of memory."""
    sizes = [tensor.numel() for tensor in tensors]
    parts = torch.split(tensors[0].new_empty(sum(sizes), dtype=dtype), sizes)
    copies = tuple(part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True))
    torch._foreach_copy_(copies, list(tensors))
    return copies
