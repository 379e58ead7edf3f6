"""The sentences of a short row as the lines of one rectangle: attention in one launch, in shapes that rows share."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from lora_pl.lora.transfer import transfer

SHORT = 128
"""The longest sentence, in tokens, of a row that is laid out as a rectangle."""
UNIT = 32
"""A rectangle's width is a multiple of it."""


class Rectangle:
    """Where a packed row's tokens lie when every sentence is padded to one width.

    The lines are the sentences and, whether there is filler or not, one more for it: lines and width, and so the
    shapes of attention, are those of all rows with as many sentences and a longest one in the same multiple of `UNIT`.

    Places without a sentence's token hold the row's last token and attend to each other alone. In a row with filler
    that is filler, whose gradient is zero; in a row without, nothing reads them. Either way no gradient comes out of
    them, so that padding and its reverse are plain gathers, both ways.

    Args:
        lengths: Tokens per sentence, in the row's order.
        tokens: The row's; those after the sentences are filler.
        window: A token attends to those less than this many places away; None for the whole sentence.
        dtype: The attention's.
        device: Where the row is.
    """

    def __init__(
        self, lengths: NDArray[np.int64], tokens: int, window: int | None, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.lines, self.width = len(lengths) + 1, rectangle_width(lengths)
        column = np.arange(self.width)
        real = column < np.append(lengths, 0)[:, None]  # (lines, width)
        pad = np.full(real.size, tokens - 1)
        pad[real.ravel()] = np.arange(lengths.sum())
        unpad = np.full(tokens, real.size - 1)
        unpad[: lengths.sum()] = np.flatnonzero(real)
        self.pad = transfer(torch.from_numpy(pad), device)
        """(lines x width,), int64: the token at each place."""
        self.unpad = transfer(torch.from_numpy(unpad), device)
        """(tokens,), int64: each token's place; the filler's are one and the same."""
        self.bias = _bias(transfer(torch.from_numpy(real), device), window, dtype)
        """(lines, 1, width, width): 0 where a place attends, -inf elsewhere."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float, dropout: float) -> Tensor:
        """softmax(q k^T * scale) v within each sentence; (tokens x heads, head size), as query, key and value."""
        tokens, size = len(self.unpad), query.shape[-1]
        q, k, v = (
            _gather(x.view(tokens, -1), self.pad, self.unpad).view(self.lines, self.width, -1, size).transpose(1, 2)
            for x in (query, key, value)
        )
        y = F.scaled_dot_product_attention(q, k, v, self.bias, dropout, scale=scale)  # (lines, heads, width, size)
        places = y.transpose(1, 2).reshape(self.lines * self.width, -1)
        return _gather(places, self.unpad, self.pad).view(-1, size)


def rectangle_width(lengths: NDArray[np.int64]) -> int:
    """The longest sentence, rounded up to a multiple of `UNIT`."""
    return -(-int(lengths.max()) // UNIT) * UNIT


def _bias(real: Tensor, window: int | None, dtype: torch.dtype) -> Tensor:
    """See `Rectangle.bias`; made on the device, as it is much larger than `real` (lines, width), bool."""
    attends = real[:, None, :, None] == real[:, None, None, :]
    if window is not None:
        column = torch.arange(real.shape[1], device=real.device)
        attends = attends & ((column[:, None] - column).abs() < window)
    return torch.zeros_like(attends, dtype=dtype).masked_fill_(~attends, -torch.inf)


def _gather(x: Tensor, there: Tensor, back: Tensor) -> Tensor:
    y: Tensor = _Gather.apply(x, there, back)  # type: ignore[no-untyped-call]
    return y


class _Gather(torch.autograd.Function):
    """The rows `there` of x; the gradient is gathered `back`, where autograd would scatter and add."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, there: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return x.index_select(0, there)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (back,) = ctx.saved_tensors
        return grad.index_select(0, back), None, None
