"""Updates of fused projections as other programs hold them: one of the whole layer for those of its parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lora_pl.encoder.fused import parts_of, split_layers


class Update(NamedTuple):
    """(alpha / r) B A of one layer."""

    a: Tensor
    """(r, in)"""
    b: Tensor
    """(out, r)"""
    alpha: float

    @property
    def scaling(self) -> float:
        """alpha / r."""
        return self.alpha / len(self.a)


def join_updates(encoder: nn.Module, updates: Mapping[str, Update]) -> dict[str, Update]:
    r"""`updates` by layer, with those of each `SplitLinear`'s parts joined under the fused layer's name.

    .. math:: A = [A_1; A_2; \dots], \quad B = \mathrm{diag}(B_1, B_2, \dots), \quad \alpha / r = \alpha_1 / r_1

    of rank r = r_1 + r_2 + ...; a part without an update has rows of zero in B. Where a part's alpha / r differs from
    the first's, the ratio goes into its B.
    """
    joined = dict(updates)
    for prefix, split in split_layers(encoder).items():
        parts = [joined.pop(f"{prefix}.{name}", None) for name in split]
        if any(parts):
            joined[prefix] = _joined(parts, split.rows)
    return joined


def split_updates(fused: Mapping[str, Sequence[str]], updates: Mapping[str, Update]) -> dict[str, Update]:
    """The reverse of `join_updates`: updates of fused layers as those of their parts.

    A part keeps its rows of B without the columns that are zero there, and the rows of A that belong to the rest; a
    part whose rows are all zero has no update, unless B is zero as a whole. alpha / r is kept.

    Args:
        fused: Of the architecture's row.
        updates: By layer.
    """
    split: dict[str, Update] = {}
    for name, update in updates.items():
        parts = parts_of(name, fused)
        split |= {f"{name}.{part}": own for part, own in _split(update, parts).items()} if parts else {name: update}
    return split


def _joined(parts: Sequence[Update | None], rows: Sequence[int]) -> Update:
    given = [part for part in parts if part]
    scaling = given[0].scaling
    a = torch.cat([part.a for part in given])
    b, column = a.new_zeros(sum(rows), len(a)), 0
    for part, block in zip(parts, torch.split(b, list(rows)), strict=True):
        if part:
            ratio = 1.0 if part.scaling == scaling else part.scaling / scaling
            block[:, column : column + len(part.a)] = part.b * ratio
            column += len(part.a)
    return Update(a, b, scaling * len(a))


def _split(update: Update, parts: Sequence[str]) -> dict[str, Update]:
    split = {}
    for part, rows in zip(parts, update.b.chunk(len(parts)), strict=True):
        used = rows.any(0) if update.b.any() else torch.ones(rows.shape[1], dtype=torch.bool)
        if used.any():
            split[part] = Update(update.a[used], rows[:, used], update.scaling * int(used.sum()))
    return split
