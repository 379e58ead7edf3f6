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
from lora_pl.lora import VARIANTS

SAFETENSORS = ".safetensors"


@dataclass(frozen=True)
class ExternalLayer:
    """The adapter of one layer."""

    tensors: Mapping[str, Tensor]
    """Its parameters in fp32, by the names that their variant has for them."""
    r: int
    alpha: float | None = None
    """The numerator of the scaling alpha / r; None where the file does not say it."""

    @property
    def scaling(self) -> float:
        """alpha / r; alpha must be known."""
        return float(self.alpha or 0.0) / self.r


@dataclass(frozen=True)
class ExternalAdapter:
    """Adapters of layers and a head, by the names that the other program gave them."""

    source: str
    """The file or folder, for messages."""
    layers: Mapping[str, ExternalLayer]
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
    variant: str = "lora"
    """The name in `VARIANTS`."""


def split_layers(
    source: str,
    tensors: Mapping[str, Tensor],
    names: Mapping[str, str],
    variant: str = "lora",
    alpha: float | None = None,
) -> tuple[dict[str, ExternalLayer], dict[str, Tensor]]:
    """Split a state into the adapters of layers and the rest.

    Args:
        source: The file or folder, for messages.
        tensors: The state.
        names: What the other program calls the variant's parameters, by their names here: LAYER.NAME is one of them.
        variant: The name in `VARIANTS`.
        alpha: That of all layers, where it is known.

    Raises:
        UserError: a layer lacks one of its tensors, or a tensor is empty or holds inf or NaN.
    """
    require_finite(source, tensors)
    endings = {own: f".{theirs}" for own, theirs in names.items()}
    found = sorted({name.removesuffix(end) for name in tensors for end in endings.values() if name.endswith(end)})
    if not found:
        raise UserError("import.missing", f"{source}: no tensors of an adapter")
    missing = [name + end for name in found for end in endings.values() if name + end not in tensors]
    if missing:
        raise UserError("import.missing", f"{source}: missing tensors: {_some(missing)}")
    layers = {}
    for name in found:
        own = {own: tensors[name + end].float() for own, end in endings.items()}
        if not all(tensor.dim() and tensor.numel() for tensor in own.values()):
            raise UserError("import.shape", f"{source}: {name}: a tensor has no rows")
        layers[name] = ExternalLayer(own, VARIANTS[variant].rank_of(own), alpha)
    rest = {name: tensor for name, tensor in tensors.items() if not name.endswith(tuple(endings.values()))}
    return layers, rest


def require_finite(source: str, tensors: Mapping[str, Any]) -> None:
    """Raise a UserError that names what is no tensor of finite numbers."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            raise UserError("import.damaged", f"{source}: {name} is no tensor of floating-point numbers")
        if not tensor.isfinite().all():
            raise UserError("import.damaged", f"{source}: {name} holds inf or NaN")


def read_tensors(path: Path) -> dict[str, Any]:
    """A state dict from a safetensors file or a PyTorch file, without running code from it.

    Raises:
        UserError: the file is missing, empty, damaged, or would have to run code to be read.
    """
    if not path.is_file():
        raise UserError("import.file", f"{path}: no such file")
    if path.stat().st_size == 0:
        raise UserError("import.damaged", f"{path}: the file is empty")
    if path.suffix == SAFETENSORS:
        return parse_safetensors(path.read_bytes(), str(path))
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            "import.unsafe",
            f"{path}: refused, the file is damaged or holds more than tensors and plain values and could run code "
            "when loaded",
        ) from error
    except Exception as error:  # the unpickler raises what its opcodes happen to raise
        raise UserError("import.damaged", f"{path}: truncated or no PyTorch file: {_first_line(error)}") from error
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise UserError("import.damaged", f"{path}: expected a state dict, tensors by name")
    return state


def parse_safetensors(data: bytes, source: str) -> dict[str, Any]:
    """The tensors of a safetensors file's content."""
    from safetensors.torch import load

    try:
        return dict(load(data))
    except Exception as error:  # the library's own and numpy's
        raise UserError("import.damaged", f"{source}: damaged or no safetensors file: {_first_line(error)}") from error


def _some(names: list[str], shown: int = 4) -> str:
    return ", ".join(names[:shown]) + (", ..." if len(names) > shown else "")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:150]
