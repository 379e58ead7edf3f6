"""How sentences lie in one row without padding, and how attention groups them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lora_pl.encoder.rectangle import SHORT, Rectangle, rectangle_width
from lora_pl.lora.transfer import transfer

GROUP_COST = 60_000
"""The measured cost of a further group, in entries of the padded attention matrices of all heads."""
COMMON = 16
"""What the lengths of groups are multiples of where rows share the shapes of their attention: on random batches of
SST-2 half of the shapes that multiples of 8 have, and no slower."""


@dataclass(frozen=True)
class Group:
    """Sentences of similar length, padded to the longest of them."""

    sentences: int
    heads: int
    longest: int
    bias: Tensor
    """(matrices or 1, longest or 1, longest): 0 where a token attends, -inf on padding and beyond the window."""
    first_vector: int
    first_score: int

    @property
    def matrices(self) -> int:
        """Attention matrices: one per sentence and head."""
        return self.sentences * self.heads

    @property
    def scores(self) -> int:
        """Entries of all its attention matrices."""
        return self.matrices * self.longest**2

    def vectors_of(self, x: Tensor) -> Tensor:
        """The group's part of all padded vectors (vectors, size): (matrices, longest, size), a view."""
        return x.narrow(0, self.first_vector, self.matrices * self.longest).view(self.matrices, self.longest, -1)

    def scores_of(self, x: Tensor) -> Tensor:
        """The group's part of all entries (entries,): (matrices, longest, longest), a view."""
        return x.narrow(0, self.first_score, self.scores).view(self.matrices, self.longest, self.longest)


@dataclass(frozen=True)
class Grouping:
    """Where each head's vectors of a packed row go when its groups are padded.

    A packed row's vectors are numbered token by token and head by head, the padded ones group by group, sentence by
    sentence, head by head and place by place.
    """

    groups: tuple[Group, ...]
    pad: Tensor
    """(padded vectors,): the packed vector that lies there; on padding the sentence's last."""
    unpad: Tensor
    """(packed vectors,): where each lies."""
    padding: Tensor
    """The padded vectors that are padding."""

    @property
    def scores(self) -> int:
        """Entries of all attention matrices."""
        return sum(group.scores for group in self.groups)


class Packing:
    """The sentences of one packed row.

    Args:
        lengths: Tokens per sentence, in the row's order.
        device: Where the row is.
        filler: Tokens at the row's end that are no sentence's, a segment of their own. With filler the lengths of
            groups are multiples of `COMMON`, which other rows' groups have too.
        pads: The tokens, by their place in the row, at which a sentence's own text says `<pad>`.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        device: torch.device | str = "cpu",
        filler: int = 0,
        pads: Sequence[int] = (),
    ) -> None:
        self.lengths = np.asarray([*lengths, filler] if filler else lengths, np.int64)
        """Tokens per segment: the sentences, then the filler if there is any."""
        self.device = torch.device(device)
        self.static = False
        """Whether attention is in the `rectangle` whatever else is there for it; the row must be `short`."""
        self._own = self.lengths[: len(lengths)]
        self._pads = np.asarray(pads, np.int64)
        self._unit = COMMON if filler else 1
        self._positions: dict[int | None, Tensor] = {}
        self._rectangles: dict[tuple[int | None, torch.dtype], Rectangle] = {}
        self._groupings: dict[tuple[int, int | None, torch.dtype], Grouping] = {}

    @property
    def longest(self) -> int:
        """Tokens of the longest segment."""
        return int(self.lengths.max())

    @property
    def _ends(self) -> NDArray[np.int64]:
        return np.cumsum(self.lengths)

    @cached_property
    def starts(self) -> Tensor:
        """(segments,), int64: each segment's first token."""
        return self._tensor(self._ends - self.lengths)

    @cached_property
    def cumulative_lengths(self) -> Tensor:
        """(segments + 1,), int32: as variable-length attention kernels take them."""
        return self._tensor(np.concatenate([[0], self._ends]).astype(np.int32))

    def positions(self, padding: int | None = None) -> Tensor:
        """(1, tokens), int64: 0, 1, 2, ... in each sentence; 0 in the filler, which may be longer than any sentence.

        Computed once per `padding`.

        Args:
            padding: Padding's own position, where the encoder counts from the one after it: that of filler, and of
                each `<pad>` in a text, which is not counted.
        """
        if padding not in self._positions:
            self._positions[padding] = self._tensor(self._places(padding))[None]
        return self._positions[padding]

    def _places(self, padding: int | None) -> NDArray[np.int64]:
        counted = (np.arange(self.lengths.sum()) < self._own.sum()).astype(np.int64)
        if padding is not None:
            counted[self._pads] = 0
        counts = np.cumsum(counted)
        before = (counts - counted)[self._ends - self.lengths]  # (segments,)
        places = (counts - np.repeat(before, self.lengths)) * counted  # 1, 2, ..., and 0 at what is not counted
        return np.asarray(np.maximum(places - 1, 0) if padding is None else places + padding, np.int64)

    @property
    def short(self) -> bool:
        """Whether no sentence is too long for a `rectangle`."""
        return int(self._own.max()) <= SHORT

    @property
    def width(self) -> int:
        """That of a `rectangle`."""
        return rectangle_width(self._own)

    def tensors(self, like: Packing) -> list[Tensor]:
        """What `like` has computed by now, of this row: the same shapes where tokens, segments and `width` are."""
        positions = [self.positions(padding) for padding in like._positions]
        rectangles = [self.rectangle(*key) for key in like._rectangles]
        return [self.starts, *positions, *(tensor for own in rectangles for tensor in (own.pad, own.unpad, own.bias))]

    def rectangle(self, window: int | None, dtype: torch.dtype) -> Rectangle:
        """The sentences of a `short` row in one rectangle, computed once per window and dtype."""
        if (window, dtype) not in self._rectangles:
            tokens = int(self.lengths.sum())
            self._rectangles[window, dtype] = Rectangle(self._own, tokens, window, dtype, self.device)
        return self._rectangles[window, dtype]

    def grouping(self, heads: int, window: int | None = None, dtype: torch.dtype = torch.float32) -> Grouping:
        """The groups for attention, computed once per number of heads, window and dtype.

        Args:
            heads: Attention heads.
            window: A token attends to those less than this many places away; by default to the whole sentence.
            dtype: What attention is computed in.
        """
        if window is not None and window >= self.longest:
            window = None
        key = heads, window, dtype
        if key not in self._groupings:
            self._groupings[key] = self._grouping(*key)
        return self._groupings[key]

    def _grouping(self, heads: int, window: int | None, dtype: torch.dtype) -> Grouping:
        order = np.argsort(self.lengths, kind="stable")
        starts = (self._ends - self.lengths)[order]
        lengths = self.lengths[order]
        groups: list[Group] = []
        pads: list[NDArray[np.int64]] = []
        reals: list[NDArray[np.bool_]] = []
        padded = -(-lengths // self._unit) * self._unit
        for first, end in itertools.pairwise(group_bounds(padded, heads)):
            column = np.arange(padded[end - 1])
            real = column < lengths[first:end, None]  # (sentences, longest)
            token = starts[first:end, None] + np.minimum(column, lengths[first:end, None] - 1)
            vector = token[:, None, :] * heads + np.arange(heads)[:, None]  # (sentences, heads, longest)
            vectors, scores = sum(len(part) for part in pads), sum(group.scores for group in groups)
            bias = self._bias(real, heads, window, dtype)
            groups.append(Group(end - first, heads, len(column), bias, vectors, scores))
            pads.append(vector.ravel())
            reals.append(np.broadcast_to(real[:, None, :], vector.shape).ravel())
        pad, is_real = np.concatenate(pads), np.concatenate(reals)
        unpad = np.empty(int(lengths.sum()) * heads, np.int64)
        unpad[pad[is_real]] = np.flatnonzero(is_real)
        padding = np.flatnonzero(~is_real)
        return Grouping(tuple(groups), *(self._tensor(array) for array in (pad, unpad, padding)))

    def _bias(self, real: NDArray[np.bool_], heads: int, window: int | None, dtype: torch.dtype) -> Tensor:
        """See `Group.bias`, of a group whose tokens are `real`, (sentences, longest)."""
        attends = real[:, None, :]
        if window is not None and window < real.shape[1]:
            column = np.arange(real.shape[1])
            near = np.abs(column[:, None] - column) < window  # (longest, longest)
            # padding attends to the whole sentence: a row of -inf would give NaN
            attends = attends & (near | ~real[:, :, None])
        if real.all():  # one matrix holds for all sentences and heads
            attends, heads = attends[:1], 1
        if attends.shape[1] == 1:  # a row per sentence is repeated here, which is no operation
            attends, heads = np.repeat(attends, heads, 0), 1
        bias = self._tensor(np.where(attends, np.float32(0), np.float32(-np.inf))).to(dtype)
        return bias if heads == 1 else bias.repeat_interleave(heads, 0)

    def _tensor(self, array: NDArray[np.generic]) -> Tensor:
        return transfer(torch.from_numpy(array), self.device)


def group_bounds(lengths: NDArray[np.int64], heads: int) -> list[int]:
    """Where to cut ascending lengths into groups: `[0, ..., len(lengths)]`.

    Minimizes the sum over groups of sentences x longest^2 x heads + GROUP_COST, by dynamic programming over the
    lengths that occur.
    """
    values, counts = np.unique(lengths, return_counts=True)
    ends = np.cumsum(counts)
    starts = ends - counts
    best = np.zeros(len(values) + 1)  # best[j]: the cost of the first j lengths
    cut = np.zeros(len(values) + 1, np.int64)
    for j, longest in enumerate(values, 1):
        costs = best[:j] + (ends[j - 1] - starts[:j]) * (heads * longest**2) + GROUP_COST
        cut[j] = np.argmin(costs)
        best[j] = costs[cut[j]]
    bounds, j = [len(lengths)], len(values)
    while j:
        j = int(cut[j])
        bounds.append(int(starts[j]))
    return bounds[::-1]
