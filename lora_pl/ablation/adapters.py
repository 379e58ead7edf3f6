"""The adapters that lie in checkpoints, compared layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from lora_pl.ablation.subspace import (
    Amplification,
    amplification,
    input_directions,
    output_directions,
    subspace_similarity,
)
from lora_pl.errors import UserError
from lora_pl.lora import lora_layers
from lora_pl.model.classifier import LoRAClassifier
from lora_pl.storage.checkpoint import read_checkpoint

Side = Literal["A", "B"]


def adapter_directions(checkpoint: str | Path, side: Side = "A") -> dict[str, Tensor]:
    """The singular directions of A (or B) of every layer of a checkpoint, strongest first, as rows: (r, d) by layer."""
    suffix = f".lora_{side}"
    find = input_directions if side == "A" else output_directions
    state: Mapping[str, Tensor] = read_checkpoint(checkpoint)["state_dict"]
    found = {key.removesuffix(suffix): find(tensor) for key, tensor in state.items() if key.endswith(suffix)}
    if not found:
        raise UserError("adapter", f"{checkpoint}: the checkpoint holds no adapter")
    return found


def layer_similarities(one: str | Path, other: str | Path, side: Side = "A") -> dict[str, Tensor]:
    """`subspace_similarity` of two checkpoints' adapters, (r, r') by layer; Section 7.2.

    Example:
        >>> found = layer_similarities("a/last.ckpt", "b/last.ckpt")  # doctest: +SKIP
        >>> torch.stack(list(found.values())).mean(0)  # doctest: +SKIP
    """
    first, second = (adapter_directions(path, side) for path in (one, other))
    if first.keys() != second.keys():
        raise UserError("adapter", f"{one} and {other} adapt other layers: {sorted(first.keys() ^ second.keys())[:3]}")
    return {layer: subspace_similarity(first[layer], second[layer]) for layer in first}


@torch.no_grad()
def layer_amplifications(checkpoint: str | Path, r: int | None = None) -> dict[str, Amplification]:
    """`amplification` of every layer of a checkpoint, by default over as many directions as its rank; Section 7.3."""
    model = LoRAClassifier.load_from_checkpoint(checkpoint)
    layers = lora_layers(model.encoder)
    return {
        name: amplification(layer.weight, layer.delta_weight(), r or layer.adapter.r) for name, layer in layers.items()
    }
