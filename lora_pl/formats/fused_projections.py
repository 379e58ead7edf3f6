"""Adapters of fused projections: other programs hold one adapter of the whole layer for those of its parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from lora_pl.encoder.fused import SplitLinear, parts_of, split_layers
from lora_pl.formats.external import ExternalLayer
from lora_pl.lora import LoRAConfig


def join_parts(encoder: nn.Module, layers: Mapping[str, ExternalLayer]) -> dict[str, ExternalLayer]:
    r"""`layers` by name, with those of each `SplitLinear`'s parts joined under the fused layer's name.

    .. math:: A = [A_1; A_2; \dots], \quad B = \mathrm{diag}(B_1, B_2, \dots), \quad s = s_1

    of rank r = r_1 + r_2 + ...; a part without an adapter gets rows of zero in B, and further parameters as they start.
    If a part's scale s differs from the first's, the ratio goes into its B.
    """
    joined = dict(layers)
    for prefix, split in split_layers(encoder).items():
        parts = [joined.pop(f"{prefix}.{name}", None) for name in split]
        if any(parts):
            joined[prefix] = _joined(parts, split)
    return joined


def _joined(parts: Sequence[ExternalLayer | None], split: SplitLinear) -> ExternalLayer:
    first = next(part for part in parts if part)
    tensors: dict[str, list[Tensor]] = {name: [] for name in first.variant.axes}
    for part, linear in zip(parts, split.values(), strict=True):
        with torch.random.fork_rng(devices=[]):
            own = part or ExternalLayer.of(first.variant(cast(nn.Linear, linear), LoRAConfig(r=1)))
        for name, axes in first.variant.axes.items():
            tensor = own.tensors[name] if part or "r" not in axes else own.tensors[name].narrow(axes.index("r"), 0, 0)
            tensors[name].append(tensor * (own.scale / first.scale) if axes == ("out", "r") else tensor)
    updates = first.variant.b_names()
    return first.resized(
        {name: torch.block_diag(*own) if name in updates else torch.cat(own) for name, own in tensors.items()}  # type: ignore[no-untyped-call]
    )


def split_parts(fused: Mapping[str, Sequence[str]], layers: Mapping[str, ExternalLayer]) -> dict[str, ExternalLayer]:
    """The reverse of `join_parts`: adapters of fused layers as those of their parts.

    A part keeps its rows of B without the columns that are zero there, and A's rows for the others; the scale is kept.
    A part whose rows are all zero gets no adapter, unless B is zero as a whole or the variant has further parameters.
    """
    split: dict[str, ExternalLayer] = {}
    for name, layer in layers.items():
        parts = parts_of(name, fused)
        own = {f"{name}.{part}": one for part, one in _split(layer, parts).items()}
        split |= own if parts else {name: layer}
    return split


def _split(layer: ExternalLayer, parts: Sequence[str]) -> dict[str, ExternalLayer]:
    variant = layer.variant
    updates = variant.b_names()
    has_more = any("r" not in axes for axes in variant.axes.values())
    keeps_all = has_more or not any(layer.tensors[name].any() for name in updates)
    split = {}
    for number, part in enumerate(parts):
        rows: dict[str, Tensor] = {
            name: tensor.chunk(len(parts))[number] if "out" in variant.axes[name] else tensor
            for name, tensor in layer.tensors.items()
        }
        used = torch.stack([rows[name].any(0) for name in updates]).any(0)  # (r,)
        kept = torch.arange(layer.r) if keeps_all and not used.any() else used.nonzero().squeeze(1)
        if len(kept):
            tensors = {
                name: rows[name].index_select(axes.index("r"), kept) if "r" in axes else rows[name]
                for name, axes in variant.axes.items()
            }
            split[part] = layer.resized(tensors)
    return split
