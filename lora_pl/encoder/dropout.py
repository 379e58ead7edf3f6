"""Dropout whose mask is drawn in bulk on the CPU."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

BITS = 15  # an element is kept with a probability that is a multiple of 2^-15
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class BulkDropout(nn.Dropout):
    """`nn.Dropout` without PyTorch's kernel on the CPU, which draws element by element.

    Four elements share a 64-bit draw, and the mask is applied to the numbers' bits: some ten times as fast. Each
    element is dropped with probability p (to 2^-15) independently of all others, and the others are scaled by
    1 / (1 - p). The draws depend on torch's own generator alone, so seeds and restored states work.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x with elements dropped while training, else x."""
        if not self.training or self.p == 0 or not draws_in_bulk(x) or torch.compiler.is_compiling():
            return F.dropout(x, self.p, self.training)
        return cast(Tensor, _Drop.apply(x, self.p))  # type: ignore[no-untyped-call]


def use_bulk_dropout(model: nn.Module) -> None:
    """Replace every `nn.Dropout` of `model` by a `BulkDropout` of the same probability."""
    for module in model.modules():
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, BulkDropout(child.p).train(child.training))


def draws_in_bulk(x: Tensor) -> bool:
    """Whether `drop` has its own implementation for x's device and dtype."""
    return x.device.type == "cpu" and x.is_floating_point() and x.element_size() in INTEGERS


def drop(x: Tensor, p: float) -> tuple[Tensor, Tensor, float]:
    """(y, mask, scale), where scale * y is dropout(x): on the CPU y is x where it is kept, elsewhere it is scaled.

    The caller scales, which costs nothing as the factor of a product.
    """
    if not draws_in_bulk(x):
        return *torch.native_dropout(x, p, True), 1.0
    mask = _random_int16(x.numel()).view(x.shape)
    return drop_again(x, mask, p), mask, (1 << BITS) / max(_kept(p), 1)


def drop_again(x: Tensor, mask: Tensor, p: float) -> Tensor:
    """y of `drop` under a mask of its; scaled as y is, and applied to a gradient, the backward of `drop`."""
    if not draws_in_bulk(x):
        return cast(Tensor, torch.ops.aten.native_dropout_backward(x, mask, 1 / (1 - p) if p < 1 else 0.0))
    bits = INTEGERS[x.element_size()]
    # of 2^16 draws, two for each of 2^15, those above the threshold keep an element
    threshold = max((1 << BITS) - 1 - 2 * _kept(p), -1 << BITS)
    kept = torch.ops.aten.threshold_backward(x.contiguous().view(bits), mask.to(bits), threshold)
    return cast(Tensor, kept.view(x.dtype))


class _Drop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        y, mask, ctx.scale = drop(x, p)
        ctx.save_for_backward(mask)
        ctx.p = p
        return y.mul_(ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return drop_again(grad, mask, ctx.p).mul_(ctx.scale), None


def _kept(p: float) -> int:
    """How many of 2^15 equally likely draws keep an element; none only if p is 1."""
    return max(math.ceil(1 - p), round((1 - p) * (1 << BITS)))


def _random_int16(count: int) -> Tensor:
    """Uniform int16 from a generator that is seeded by one draw of torch's."""
    seed = int(torch.randint(2**62, ()).numpy())  # on the CPU, where nothing waits for it
    words = np.random.SFC64(seed).random_raw(-(-count // 4))
    return torch.from_numpy(words).view(torch.int16)[:count]
