"""An adapter as another program stored it, before it meets an encoder."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lora_pl.errors import UserError

SAFETENSORS = ".safetensors"


@dataclass(frozen=True)
class LowRank:
    """One layer's update (alpha / r) B A."""

    lora_A: Tensor
    """(r, in)"""
    lora_B: Tensor
    """(out, r)"""
    alpha: float | None = None
    """The numerator of the scaling; None where the file does not say it."""

    @property
    def r(self) -> int:
        """The rank."""
        return self.lora_A.shape[0]

    def delta_weight(self) -> Tensor:
        """(alpha / r) B A, shape (out, in); alpha must be known."""
        assert self.alpha is not None
        return self.alpha / self.r * (self.lora_B @ self.lora_A)


@dataclass(frozen=True)
class ForeignAdapter:
    """Low-rank updates and head by the names that the other program gave them."""

    source: str
    """The file or folder, for messages."""
    layers: Mapping[str, LowRank]
    head: Mapping[str, Tensor]
    """What is left of the file."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The arguments of `LoRAClassifier` that the file knows."""
    base: Mapping[str, str] | None = None
    """The fingerprints of what it was trained on, where the file has them."""
    expected_layers: Mapping[str, Any] | None = None
    """PEFT's description of the layers that must be there."""
    linear_head: bool = False
    """Whether `classifier.weight` is a linear head on the first token whatever the architecture."""


def pair_up(
    source: str, tensors: Mapping[str, Tensor], a: str, b: str, alpha: float | None = None
) -> tuple[dict[str, LowRank], dict[str, Tensor]]:
    """Split a state into low-rank updates, whose names end in `a` and `b`, and the rest.

    Raises:
        UserError: a partner is missing, the two do not fit each other, or a tensor is empty or holds NaN or infinity.
    """
    require_finite(source, tensors)
    names = sorted({name.removesuffix(end) for name in tensors for end in (a, b) if name.endswith(end)})
    missing = [name + end for name in names for end in (a, b) if name + end not in tensors]
    if missing:
        raise UserError(f"{source}: missing tensors: {_some(missing)}")
    layers = {name: LowRank(tensors[name + a].float(), tensors[name + b].float(), alpha) for name in names}
    for name, layer in layers.items():
        shapes = tuple(layer.lora_A.shape), tuple(layer.lora_B.shape)
        if any(len(shape) != 2 for shape in shapes) or shapes[0][0] != shapes[1][1] or not shapes[0][0]:
            raise UserError(f"{source}: {name}: expected A (r, in) and B (out, r), got {shapes[0]} and {shapes[1]}")
    rest = {name: tensor for name, tensor in tensors.items() if not name.endswith((a, b))}
    return layers, rest


def require_finite(source: str, tensors: Mapping[str, Any]) -> None:
    """Raise a UserError that names what is no tensor of finite numbers."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            raise UserError(f"{source}: {name} is no tensor of floating-point numbers")
        if not tensor.isfinite().all():
            raise UserError(f"{source}: {name} holds NaN or infinity; the adapter is damaged")


def read_tensors(path: Path) -> dict[str, Any]:
    """A state dict from a safetensors file or a PyTorch file, without running code from it.

    Raises:
        UserError: the file is missing, empty, damaged, or would have to run code to be read.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty")
    if path.suffix == SAFETENSORS:
        return parse_safetensors(path.read_bytes(), str(path))
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: refused, the file is damaged or holds more than tensors and plain values and could run code "
            "when loaded"
        ) from error
    except Exception as error:  # the unpickler raises what its opcodes happen to raise
        raise UserError(f"{path}: truncated or no PyTorch file: {_first_line(error)}") from error
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise UserError(f"{path}: expected a state dict, tensors by name")
    return state


def parse_safetensors(data: bytes, source: str) -> dict[str, Any]:
    """The tensors of a safetensors file's content."""
    from safetensors.torch import load

    try:
        return dict(load(data))
    except Exception as error:  # the library's own and numpy's
        raise UserError(f"{source}: damaged or no safetensors file: {_first_line(error)}") from error


def _some(names: list[str], shown: int = 4) -> str:
    return ", ".join(names[:shown]) + (", ..." if len(names) > shown else "")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:150]
