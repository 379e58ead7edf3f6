"""Attention over a packed row, registered with Transformers' AttentionInterface."""

from __future__ import annotations

import os
from contextvars import ContextVar
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from lora_pl.encoder.dropout import drop, drop_again
from lora_pl.encoder.packing import Grouping, Packing

NAME = "lora_pl_packed"
"""The attention's name in a configuration's `attn_implementation`."""
# of a thread; when a checkpointed layer is computed again too, its attention comes before its output block
_LAST: ContextVar[Packing | None] = ContextVar("packing", default=None)


def register_packed_attention() -> None:
    """Let Transformers find the attention by `NAME`, in this process.

    An encoder that uses it takes a packed row by `encoder(..., packing=Packing(lengths))`; without `packing` nothing
    changes. Packed rows have many shapes, and on a CPU PyTorch would keep 1,024 descriptions of products beside
    oneDNN's own: the environment's LRU_CACHE_CAPACITY becomes 64 where it is not set.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    os.environ.setdefault("LRU_CACHE_CAPACITY", "64")  # read at the first product
    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    packing: Packing | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """softmax(q k^T * scaling) v within each sentence of a packed row, and within the window if there is one.

    Without `packing` the input is padded: PyTorch's own attention computes it, with `attention_mask` and `kwargs`.

    Args:
        module: The attention layer.
        query: (1, heads, tokens, head size), as key and value.
        key: See query.
        value: See query.
        attention_mask: For padded input; it contains the window.
        scaling: By default 1 / sqrt(head size).
        dropout: On the attention's probabilities.
        packing: The row's sentences.
        sliding_window: A token attends to those less than this many places away.
        kwargs: For padded input.

    Returns:
        (1, tokens, heads, head size), and no probabilities.
    """
    _LAST.set(packing)
    if packing is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        y, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return y, None
    if len(packing.lengths) == 1 and sliding_window is None:
        return F.scaled_dot_product_attention(query, key, value, None, dropout, scale=scaling).transpose(1, 2), None
    _, heads, tokens, size = query.shape
    scale = size**-0.5 if scaling is None else scaling
    q, k, v = (x.transpose(1, 2).reshape(tokens * heads, size) for x in (query, key, value))
    if not packing.static and _has_kernel(query, dropout):
        q, k, v = (x.view(tokens, heads, size) for x in (q, k, v))
        return _by_kernel(q, k, v, packing, scale, sliding_window)[None], None
    if _in_rectangle(packing):
        y = packing.rectangle(sliding_window, query.dtype).attend(q, k, v, scale, dropout)
    else:
        grouping = packing.grouping(heads, sliding_window, query.dtype)
        y = _GroupedAttention.apply(q, k, v, grouping, scale, dropout)  # type: ignore[no-untyped-call]
    return cast(Tensor, y).view(1, tokens, heads, size), None


def take_packing() -> Packing | None:
    """The packing of this thread's last attention, once: for what follows it and is not given its arguments."""
    packing = _LAST.get()
    _LAST.set(None)
    return packing


def _has_kernel(query: Tensor, dropout: float) -> bool:
    """Whether PyTorch's variable-length kernel takes this: on a GPU, in half precision, without dropout."""
    return query.device.type == "cuda" and dropout == 0 and query.dtype in (torch.bfloat16, torch.float16)


def _in_rectangle(packing: Packing) -> bool:
    """Whether attention is one launch over padded sentences: on a GPU, where launches cost more than padding."""
    return packing.static or (packing.device.type == "cuda" and packing.short)


def _by_kernel(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, scale: float, sliding_window: int | None
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    lengths, longest = packing.cumulative_lengths, packing.longest
    farthest = -1 if sliding_window is None else sliding_window - 1
    y = varlen_attn(
        query, key, value, lengths, lengths, longest, longest, scale=scale, window_size=(farthest, farthest)
    )
    return cast(Tensor, y)


class _GroupedAttention(torch.autograd.Function):
    """Attention in groups of sentences of similar length, padded within attention only.

    Query, key and value are (tokens x heads, head size). Written by hand because padding and its reverse are
    permutations except for the padding itself: plain gathers both ways, where autograd would scatter and add.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, grouping: Grouping, scale: float, dropout: float
    ) -> Tensor:
        q, k, v = (x.index_select(0, grouping.pad) for x in (query, key, value))
        probabilities = q.new_empty(grouping.scores)
        for group in grouping.groups:
            keys = group.vectors_of(k).transpose(1, 2)
            scores = torch.baddbmm(group.bias, group.vectors_of(q), keys, alpha=scale)
            torch.softmax(scores, -1, out=group.scores_of(probabilities))
        kept, mask, ctx.rest = drop(probabilities, dropout) if dropout else (probabilities, None, 1.0)
        y = torch.empty_like(q)
        for group in grouping.groups:
            _product(group.scores_of(kept), group.vectors_of(v), ctx.rest, out=group.vectors_of(y))
        ctx.save_for_backward(q, k, v, probabilities, kept, mask)
        ctx.grouping, ctx.scale, ctx.dropout = grouping, scale, dropout
        return y.index_select(0, grouping.unpad)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, probabilities, kept, mask = ctx.saved_tensors
        grouping: Grouping = ctx.grouping
        # what attends from padding is not part of the result
        dy = grad.index_select(0, grouping.pad).index_fill_(0, grouping.padding, 0)
        vectors, dp = q.new_empty(3 * q.numel() + grouping.scores).split([3 * q.numel(), grouping.scores])
        gradients = vectors.view(3, *q.shape)
        dq, dk, dv = gradients
        for group in grouping.groups:
            d_group = group.vectors_of(dy)
            _product(group.scores_of(kept).transpose(1, 2), d_group, ctx.rest, out=group.vectors_of(dv))
            _product(d_group, group.vectors_of(v).transpose(1, 2), ctx.rest, out=group.scores_of(dp))
        if mask is not None:
            dp = drop_again(dp, mask, ctx.dropout)
        for group in grouping.groups:
            p = group.scores_of(probabilities)
            ds = torch._softmax_backward_data(group.scores_of(dp), p, -1, p.dtype)
            _product(ds, group.vectors_of(k), ctx.scale, out=group.vectors_of(dq))
            _product(ds.transpose(1, 2), group.vectors_of(q), ctx.scale, out=group.vectors_of(dk))
        return *gradients.index_select(1, grouping.unpad), None, None, None


def _product(a: Tensor, b: Tensor, scale: float, out: Tensor) -> None:
    """out = scale * a b, for batches of matrices."""
    out.baddbmm_(a, b, beta=0, alpha=scale)
