"""Linear layers that compute several roles at once: one linear layer per role in memory, the fused layer in files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


class SplitLinear(nn.ModuleDict):
    r"""y = x [W_1; W_2; ...]^T + [b_1; b_2; ...], with every W_i, b_i in a linear layer of its own.

    Args:
        linear: The fused layer; its parts have equally many rows, and are copies.
        names: The parts' names, in the order of their rows.
    """

    def __init__(self, linear: nn.Linear, names: Sequence[str]) -> None:
        weights = linear.weight.detach().chunk(len(names))
        biases = [None] * len(names) if linear.bias is None else linear.bias.detach().chunk(len(names))
        super().__init__({name: _linear(*part) for name, *part in zip(names, weights, biases, strict=True)})

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out), all parts side by side."""
        return torch.cat([part(x) for part in self.values()], -1)


def split_fused(model: nn.Module, fused: Mapping[str, Sequence[str]]) -> None:
    """Replace every linear layer whose name ends in a key of `fused` by a `SplitLinear` with the names it maps to."""
    for name, module in list(model.named_modules()):
        names = parts_of(name, fused)
        if names and isinstance(module, nn.Linear):
            model.set_submodule(name, SplitLinear(module, names))


def parts_of(name: str, fused: Mapping[str, Sequence[str]]) -> Sequence[str]:
    """The parts of the layer `name` by the key of `fused` that it ends in; empty if it is not fused."""
    return next((names for ending, names in fused.items() if f".{name}".endswith(f".{ending}")), ())


def join_fused(model: nn.Module) -> None:
    """The reverse of `split_fused`."""
    for name, split in split_layers(model).items():
        weights, biases = ([getattr(part, kind) for part in split.values()] for kind in ("weight", "bias"))
        model.set_submodule(name, _linear(torch.cat(weights), None if biases[0] is None else torch.cat(biases)))


def joined_state(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of `model` by name, with those of each `SplitLinear` joined under the fused layer's name.

    Args:
        model: Says which layers are split.
        state: `...Wqkv.query.weight`, ...: parameters, or what they are to be written as.
    """
    joined = dict(state)
    for prefix, split in split_layers(model).items():
        for kind in ("weight", "bias"):
            names = [f"{prefix}.{part}.{kind}" for part in split]
            if names[0] in joined:
                joined[f"{prefix}.{kind}"] = torch.cat([joined.pop(name).detach() for name in names])
    return joined


def split_state(fused: Mapping[str, Sequence[str]], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reverse of `joined_state`: `...Wqkv.bias` as `...Wqkv.query.bias`, ..., by the keys of `fused`."""
    split: dict[str, Tensor] = {}
    for name, tensor in state.items():
        layer, _, kind = name.rpartition(".")
        parts = parts_of(layer, fused)
        rows = dict(zip(parts, tensor.chunk(len(parts)), strict=True)) if parts else {}
        split |= {f"{layer}.{part}.{kind}": own for part, own in rows.items()} if parts else {name: tensor}
    return split


def split_layers(model: nn.Module) -> dict[str, SplitLinear]:
    """Every `SplitLinear` of `model` by its name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, SplitLinear)}


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().clone())
    return linear
