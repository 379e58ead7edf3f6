"""An adapter as another program stored it, before it meets an encoder."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lora_pl.encoder.biases_and_norms import TrainBiases
from lora_pl.errors import UserError, first_line
from lora_pl.lora import Adapter, LoRAConfig
from lora_pl.lora.config import DIVISORS, Scaling
from lora_pl.printable import first_of
from lora_pl.storage.archive import read_archive, require_finite


@dataclass(frozen=True)
class ExternalLayer:
    """The adapter of one layer."""

    variant: type[Adapter]
    tensors: Mapping[str, Tensor]
    """Its parameters in fp32, by the variant's names."""
    alpha: float | None = None
    """The numerator of the scale; None if the file does not say it."""
    scaling: Scaling = "standard"
    """The scale is alpha / r, or alpha / sqrt(r) with rslora."""

    @classmethod
    def of(cls, adapter: Adapter) -> ExternalLayer:
        """One of lora_pl's own."""
        tensors = {name: tensor.detach() for name, tensor in adapter.tensors().items()}
        return cls(type(adapter), tensors, adapter.lora_alpha, adapter.scaling)

    @property
    def r(self) -> int:
        """The rank."""
        return self.variant.rank_of(self.tensors)

    @property
    def scale(self) -> float:
        """What multiplies the update; alpha must be known."""
        return float(self.alpha or 0.0) / DIVISORS[self.scaling](self.r)

    def resized(self, tensors: Mapping[str, Tensor]) -> ExternalLayer:
        """With tensors of another rank, and the same scale."""
        r = self.variant.rank_of(tensors)
        return replace(self, tensors=tensors, alpha=self.scale * DIVISORS[self.scaling](r))

    def adapter(self, linear: nn.Linear) -> Adapter:
        """It as an adapter of `linear`."""
        adapter = self.variant(linear, LoRAConfig(r=self.r, lora_alpha=self.alpha or 1.0, scaling=self.scaling))
        adapter.load_state_dict(dict(self.tensors))
        return adapter


@dataclass(frozen=True)
class ExternalAdapter:
    """Adapters of layers and a head, by the other program's names."""

    source: str
    """The file or folder, for messages."""
    layers: Mapping[str, ExternalLayer]
    head: Mapping[str, Tensor]
    """The other tensors of the file: the head, and biases and norms of the encoder."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The arguments of `LoRAClassifier` that the file knows."""
    base: Mapping[str, str] | None = None
    """The fingerprints of what it was trained on, if the file has them."""
    expected_layers: Mapping[str, Any] | None = None
    """PEFT's description of the layers that must be there."""
    biases: TrainBiases | None = None
    """The trained biases by the file's word; None if the tensors alone say it."""
    linear_head: bool = False
    """Whether `classifier.weight` is a linear head on the first token in every architecture."""


def split_layers(
    source: str,
    tensors: Mapping[str, Tensor],
    variant: type[Adapter],
    names: Mapping[str, str],
    alpha: float | None = None,
) -> tuple[dict[str, ExternalLayer], dict[str, Tensor]]:
    """Split a state dict, of the file or folder `source`, into the adapters of layers and the rest.

    `names` are the other program's for the variant's parameters: LAYER.NAME is one of the tensors.

    Raises:
        UserError: adapter.missing, adapter.shape or adapter.damaged: a layer lacks a tensor, or one is empty or holds
            inf or NaN.
    """
    require_finite(source, tensors, "adapter")
    endings = {own: f".{theirs}" for own, theirs in names.items()}
    found = sorted({name.removesuffix(end) for name in tensors for end in endings.values() if name.endswith(end)})
    missing = [name + end for name in found for end in endings.values() if name + end not in tensors]
    if missing or not found:
        raise UserError("adapter.missing", f"{source}: missing tensors: {first_of(missing, 4) or 'all of an adapter'}")
    layers = {}
    for name in found:
        own = {own: tensors[name + end].float() for own, end in endings.items()}
        if not all(tensor.dim() and tensor.numel() for tensor in own.values()):
            raise UserError("adapter.shape", f"{source}: {name}: a tensor has no rows")
        layers[name] = ExternalLayer(variant, own, alpha)
    rest = {name: tensor for name, tensor in tensors.items() if not name.endswith(tuple(endings.values()))}
    return layers, rest


def read_tensors(path: Path) -> dict[str, Any]:
    """A state dict from a safetensors file or a PyTorch file, without running code from it.

    Raises:
        UserError: adapter.missing, adapter.damaged (empty too) or adapter.refused (it could run code).
    """
    if path.suffix == ".safetensors" and path.is_file():
        return parse_safetensors(path.read_bytes(), str(path))
    state = read_archive(path, "adapter")
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise UserError("adapter.damaged", f"{path}: expected a state dict, tensors by name")
    return state


def parse_safetensors(data: bytes, source: str) -> dict[str, Any]:
    """The tensors of a safetensors file's content."""
    from safetensors.torch import load

    try:
        return dict(load(data))
    except Exception as error:  # the library's own and numpy's
        said = first_line(error)[:150]
        raise UserError("adapter.damaged", f"{source}: damaged or no safetensors file: {said}") from error


def ending_in(name: str, known: Collection[str]) -> str | None:
    """The one of `known` that `name` is, or ends in below a prefix of the file's (`module.`, `model.`)."""
    parts = name.split(".")
    return next((end for start in range(len(parts)) if (end := ".".join(parts[start:])) in known), None)
