"""Adapters of fused projections as other programs hold them: one of the whole layer for those of its parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lora_pl.encoder.fused import SplitLinear, parts_of, split_layers
from lora_pl.formats.external import ExternalLayer
from lora_pl.lora import VARIANTS, Adapter, LoRAConfig


def join_parts(encoder: nn.Module, layers: Mapping[str, ExternalLayer], variant: str) -> dict[str, ExternalLayer]:
    r"""`layers` by name, with those of each `SplitLinear`'s parts joined under the fused layer's name.

    .. math:: A = [A_1; A_2; \dots], \quad B = \mathrm{diag}(B_1, B_2, \dots), \quad \alpha / r = \alpha_1 / r_1

    of rank r = r_1 + r_2 + ...; a part without an adapter has rows of zero in B, and starts what the variant has
    besides. If a part's alpha / r differs from the first's, the ratio goes into its B.
    """
    joined = dict(layers)
    for prefix, split in split_layers(encoder).items():
        parts = [joined.pop(f"{prefix}.{name}", None) for name in split]
        if any(parts):
            joined[prefix] = _joined(parts, split, VARIANTS[variant])
    return joined


def split_parts(
    fused: Mapping[str, Sequence[str]], layers: Mapping[str, ExternalLayer], variant: str
) -> dict[str, ExternalLayer]:
    """The reverse of `join_parts`: adapters of fused layers as those of their parts.

    A part keeps its rows of B without the columns that are zero there, and A's rows for the others; alpha / r is kept.
    A part whose rows are all zero has no adapter, unless B is zero as a whole or the variant trains more than A and B.

    Args:
        fused: Of the architecture's row.
        layers: By name.
        variant: The name in `VARIANTS`.
    """
    split: dict[str, ExternalLayer] = {}
    for name, layer in layers.items():
        parts = parts_of(name, fused)
        own = _split(layer, parts, VARIANTS[variant]) if parts else {}
        split |= {f"{name}.{part}": one for part, one in own.items()} if parts else {name: layer}
    return split


def _joined(parts: Sequence[ExternalLayer | None], split: SplitLinear, variant: type[Adapter]) -> ExternalLayer:
    given = [part for part in parts if part]
    r, scaling = sum(part.r for part in given), given[0].scaling
    ends = {"r": 0, "out": 0}
    tensors: dict[str, Tensor] = {}
    for part, linear in zip(parts, split.values(), strict=True):
        assert isinstance(linear, nn.Linear)
        sizes = {"r": r, "out": sum(split.rows), "in": linear.in_features}
        starts = dict(ends)
        ends = {"r": ends["r"] + (part.r if part else 0), "out": ends["out"] + linear.out_features}
        for name, axes in variant.axes.items():
            whole = tensors.setdefault(name, torch.zeros([sizes[axis] for axis in axes]))
            place = tuple(slice(starts.get(axis), ends.get(axis)) for axis in axes)
            if part:
                whole[place] = part.tensors[name] * (part.scaling / scaling if axes == ("out", "r") else 1.0)
            elif "r" not in axes:
                whole[place] = _start(variant, linear)[name]
    return ExternalLayer(tensors, r, scaling * r)


def _start(variant: type[Adapter], linear: nn.Linear) -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        return {name: tensor.detach() for name, tensor in variant(linear, LoRAConfig(r=1)).tensors().items()}


def _split(layer: ExternalLayer, parts: Sequence[str], variant: type[Adapter]) -> dict[str, ExternalLayer]:
    updates = [name for name, axes in variant.axes.items() if axes == ("out", "r")]
    keeps_all = any("r" not in axes for axes in variant.axes.values())
    is_zero = not any(layer.tensors[name].any() for name in updates)
    split = {}
    for number, part in enumerate(parts):
        rows = {
            name: layer.tensors[name].chunk(len(parts))[number] if axes[0] == "out" else layer.tensors[name]
            for name, axes in variant.axes.items()
        }
        used = torch.stack([rows[name].any(0) for name in updates]).any(0)
        if is_zero or (keeps_all and not used.any()):
            used = torch.ones_like(used)
        if used.any():
            split[part] = _with_columns(layer, rows, used, variant)
    return split


def _with_columns(
    layer: ExternalLayer, rows: Mapping[str, Tensor], used: Tensor, variant: type[Adapter]
) -> ExternalLayer:
    """The rank's dimensions that are `used` (r,)."""
    kept = used.nonzero().squeeze(1)
    tensors = {
        name: rows[name].index_select(axes.index("r"), kept) if "r" in axes else rows[name]
        for name, axes in variant.axes.items()
    }
    return ExternalLayer(tensors, len(kept), layer.scaling * len(kept))
