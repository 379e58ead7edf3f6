"""The product with a frozen weight and the update beside it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from lora_pl.lora.adapter import Factors


def adapted_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    factors: Factors,
    dropout: Callable[[Tensor], Tensor] | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """y = gain * (x W0^T + scale * (x a^T) b^T) + bias.

    If everything is computed in one dtype and W0 is frozen, product and update are one operation, whose backward keeps
    x and x a^T (thin) and never forms a gradient of W's size. With a mask, inf and NaN in a row reach the gradients of
    its own columns alone.

    Args:
        x: (..., in).
        weight: W0, (out, in).
        bias: (out,), frozen or trained in place; frozen with a mask.
        factors: a, b, gain and scale.
        dropout: Applied to x in x a^T.
        mask: (rows of x, k), bool: the entries of x a^T to set to zero, for rows that use only some columns of a and b.

    Returns:
        (..., out), in the dtype that the linear layer alone would give.
    """
    if (dropout is None or mask is not None) and _is_one_operation(x, weight, factors):
        size = math.prod(x.shape[:-1]), x.shape[-1]
        rows = x.to(computed_in(x, x.dtype)).reshape(size)
        branch = None if dropout is None else dropout(x).to(rows.dtype).reshape(size)
        y = _FrozenProduct.apply(rows, branch, weight, bias, factors.a, factors.b, factors.scale, mask)  # type: ignore[no-untyped-call]
        y = cast(Tensor, y).view(*x.shape[:-1], weight.shape[0])
    else:
        y = _two_products(x, weight, bias, factors, dropout, mask)
    return y if factors.gain is None else _with_gain(y, bias, factors.gain)


def _is_one_operation(x: Tensor, weight: Tensor, factors: Factors) -> bool:
    """Whether W0 needs no gradient, and everything is computed in one dtype."""
    if torch.is_grad_enabled() and weight.requires_grad:
        return False
    return _is_autocast(x) or x.dtype == weight.dtype == factors.a.dtype


def computed_in(x: Tensor, dtype: torch.dtype) -> torch.dtype:
    """The type of products with x: autocast's, else `dtype`."""
    return torch.get_autocast_dtype(x.device.type) if _is_autocast(x) else dtype


def _is_autocast(x: Tensor) -> bool:
    # autocast leaves fp64 as it is
    return torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64


def _two_products(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    factors: Factors,
    dropout: Callable[[Tensor], Tensor] | None,
    mask: Tensor | None,
) -> Tensor:
    y = F.linear(x, weight, bias)
    branch = x if dropout is None else dropout(x)
    if not _is_autocast(x):
        branch = branch.to(factors.a.dtype)
    thin = F.linear(branch, factors.a)  # (..., k)
    if mask is not None:
        thin = thin.masked_fill(mask.view(thin.shape), 0)
    return torch.add(y, F.linear(thin, factors.b).to(y.dtype), alpha=factors.scale)


def _with_gain(y: Tensor, bias: Tensor | None, gain: Tensor) -> Tensor:
    """gain * (y - bias) + bias as y + (gain - 1) * (y - bias), which is y to the last bit where the gain is 1."""
    change = (gain - 1).to(y.dtype)
    if change.dim() == 2:  # by row
        change = change.view(y.shape)
    return torch.addcmul(y, y if bias is None else y - bias.to(y.dtype), change)


class _FrozenProduct(torch.autograd.Function):
    """x W0^T + bias + scale * (branch a^T) b^T, differentiable in all but W0; (rows, in) -> (rows, out).

    The branch is x itself where it is None.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        branch: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        scale: float,
        mask: Tensor | None,
    ) -> Tensor:
        weight, own_a, own_b = (w.to(x.dtype) for w in (weight, a, b))
        thin = (x if branch is None else branch) @ own_a.t()  # (rows, k)
        if mask is not None:
            thin.masked_fill_(mask, 0)
        ctx.save_for_backward(x if branch is None else branch, weight, thin, own_a, own_b, mask)
        ctx.scale, ctx.dtype, ctx.of_bias = scale, a.dtype, None if bias is None else bias.dtype
        return F.linear(x, weight, None if bias is None else bias.to(x.dtype)).addmm_(thin, own_b.t(), alpha=scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        branch, weight, thin, a, b, mask = ctx.saved_tensors
        # beta = 0 leaves the first operand out, and the scale is the product's own
        d_thin = torch.addmm(thin, dy, b, beta=0, alpha=ctx.scale)  # (rows, k)
        d_x = dy @ weight if ctx.needs_input_grad[0] else None
        d_bias = dy.sum(0, dtype=ctx.of_bias) if ctx.needs_input_grad[3] else None
        if mask is not None:
            d_thin.masked_fill_(mask, 0)
        d_a, d_b = _of_factors(d_thin, branch, dy, thin, b, ctx.scale)
        if mask is not None and not _are_finite(d_a, d_b, a):
            # 0 * inf is NaN; the row's own columns have it from thin and d_thin
            dy, branch, a = (_finite_rows(tensor) for tensor in (dy, branch, a))
            d_a, d_b = _of_factors(d_thin, branch, dy, thin, b, ctx.scale)
        d_branch = None
        if ctx.needs_input_grad[1]:
            d_branch = d_thin @ a
        elif d_x is not None:
            d_x.addmm_(d_thin, a)
        return d_x, d_branch, None, d_bias, d_a.to(ctx.dtype), d_b.to(ctx.dtype), None, None


def _of_factors(
    d_thin: Tensor, branch: Tensor, dy: Tensor, thin: Tensor, b: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """The gradients of a (k, in) and b (out, k)."""
    return d_thin.t() @ branch, torch.addmm(b, dy.t(), thin, beta=0, alpha=scale)


def _are_finite(*tensors: Tensor) -> bool:
    """Whether small tensors are, if they are on the CPU; elsewhere the answer would stop the queue."""
    return all(tensor.device.type == "cpu" and math.isfinite(tensor.sum()) for tensor in tensors)


def _finite_rows(x: Tensor) -> Tensor:
    """x with 0 in rows that have an inf or NaN."""
    width = x.shape[-1]
    finite = (x @ x.new_full((width, 1), 1 / width)).isfinite()  # the means: a product is the fastest look at a row
    return x.masked_fill(~finite, 0)
