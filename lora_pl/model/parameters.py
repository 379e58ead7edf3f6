"""Counting parameters: LoRA's, the head's, the frozen ones."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from lora_pl.lora import lora_layers
from lora_pl.lora.names import folded


@dataclass(frozen=True)
class ParameterCounts:
    """A model's parameters by part."""

    lora: int
    head: int
    encoder: int
    """Without LoRA."""
    in_place: int
    """Of these, the trained ones: biases and norms, or all."""
    trainable: int

    @property
    def total(self) -> int:
        """Encoder, LoRA and head."""
        return self.encoder + self.lora + self.head

    @property
    def frozen(self) -> int:
        """All that is not trained."""
        return self.total - self.trainable

    @property
    def percent(self) -> float:
        """Trainable parameters in percent of all."""
        return 100 * self.trainable / self.total


def count_parameters(encoder: nn.Module, head: nn.Module) -> ParameterCounts:
    """The counts of an encoder, LoRA in it, and its head; works on the meta device."""
    lora = {p for layer in lora_layers(encoder).values() for p in layer.adapter.parameters()}
    own = [p for p in encoder.parameters() if p not in lora]
    return ParameterCounts(
        lora=_size(lora),
        head=_size(head.parameters()),
        encoder=_size(own),
        in_place=_trained(own),
        trainable=_trained([*own, *lora, *head.parameters()]),
    )


def _size(parameters: Iterable[nn.Parameter]) -> int:
    return sum(p.numel() for p in parameters)


def _trained(parameters: Iterable[nn.Parameter]) -> int:
    return _size(p for p in parameters if p.requires_grad)


def lora_by_module(encoder: nn.Module) -> dict[str, tuple[int, int]]:
    """Layers and LoRA parameters by module, layer numbers folded: `encoder.layer.*.attention.self.query`."""
    found: dict[str, tuple[int, int]] = {}
    for name, layer in lora_layers(encoder).items():
        layers, parameters = found.get(folded(name), (0, 0))
        found[folded(name)] = layers + 1, parameters + _size(layer.adapter.parameters())
    return found
