"""The product with W0 and its low-rank update as one differentiable operation."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def low_rank_product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora_A: Tensor,
    lora_B: Tensor,
    scaling: float,
    foreign: Tensor | None = None,
) -> Tensor:
    """y = x W0^T + b + scaling (x A^T) B^T, differentiable in x, A and B; W0 and b are constants.

    The update is added inside its own matrix product, and the backward keeps x and x A^T (thin) alone and never forms
    a gradient of W's size.

    Args:
        x: (..., in), in the dtype to compute in.
        weight: W0, (out, in).
        bias: b, (out,).
        lora_A: A, (r, in), fp32.
        lora_B: B, (out, r), fp32.
        scaling: alpha / r.
        foreign: (rows of x, r), bool: the entries of x A^T that count as zero, for rows that take a part of A and B
            alone; None where every row takes all of them.

    Returns:
        (..., out), in the dtype of x; the gradients of A and B are fp32.
    """
    rows = x.flatten(0, -2)
    y = _LowRankProduct.apply(rows, weight, bias, lora_A, lora_B, scaling, foreign)  # type: ignore[no-untyped-call]
    return cast(Tensor, y).view(*x.shape[:-1], -1)


class _LowRankProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        lora_A: Tensor,
        lora_B: Tensor,
        scaling: float,
        foreign: Tensor | None,
    ) -> Tensor:
        weight, a, b = (w.to(x.dtype) for w in (weight, lora_A * scaling, lora_B))
        thin = x @ a.t()  # (tokens, r)
        if foreign is not None:
            thin.masked_fill_(foreign, 0)
        ctx.save_for_backward(x, weight, thin, lora_A, lora_B, foreign)
        ctx.scaling = scaling
        return F.linear(x, weight, None if bias is None else bias.to(x.dtype)).addmm_(thin, b.t())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, thin, lora_A, lora_B, foreign = ctx.saved_tensors
        a, b = (w.to(x.dtype) for w in (lora_A * ctx.scaling, lora_B))
        d_thin = dy @ b  # (tokens, r)
        if foreign is not None:
            d_thin.masked_fill_(foreign, 0)
        d_a = (d_thin.t() @ x).to(lora_A.dtype) * ctx.scaling
        d_b = (dy.t() @ thin).to(lora_B.dtype)
        d_x = (dy @ weight).addmm_(d_thin, a) if ctx.needs_input_grad[0] else None
        return d_x, None, None, d_a, d_b, None, None
