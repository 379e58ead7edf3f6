"""The head that comes with an external adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lora_pl.encoder.architectures import stock_head
from lora_pl.encoder.head import HeadKind, new_head
from lora_pl.errors import UserError
from lora_pl.formats.external import ExternalAdapter, some
from lora_pl.formats.stock_head import linear_head_of, require_first_token

if TYPE_CHECKING:
    from transformers import PretrainedConfig

LINEAR = "classifier"


@dataclass(frozen=True)
class ImportedHead:
    """A head's kind and tensors, by the names of lora_pl's head."""

    kind: HeadKind
    state: Mapping[str, Tensor]
    """Without `dense` if that is the base's own (BERT's pooler)."""

    @property
    def is_whole(self) -> bool:
        """Whether all of it came with the adapter."""
        return self.kind == "linear" or "dense.weight" in self.state

    @property
    def outputs(self) -> int:
        """Rows of the last layer."""
        return len(self.state["weight" if self.kind == "linear" else "out_proj.weight"])


def head_of(adapter: ExternalAdapter, config: PretrainedConfig) -> ImportedHead:
    """The head among the adapter's tensors.

    Raises:
        UserError: adapter.head: a tensor is missing, of another size, or belongs to no head; model.head: the base's own
            head reads more than the first token.
    """
    stock = stock_head(config)
    layers = [*stock.layers.values(), LINEAR]
    tensors = {_bare(name, layers): tensor.float() for name, tensor in adapter.head.items()}
    linear = adapter.linear_head or (stock.out_proj != LINEAR and f"{LINEAR}.weight" in tensors)
    kind: HeadKind = "linear" if linear else "architecture"
    if not linear and adapter.base is None:  # lora_pl's own records name their base; their heads read the first token
        require_first_token(config)
    expected = _expected(kind, config)
    pretrained = () if linear else tuple(f"{stock.layers[own]}." for own in stock.pretrained)
    optional = {name for name in expected if name.startswith(pretrained)}
    _require_names(adapter.source, tensors, set(expected), optional)
    state = {expected[name]: tensor for name, tensor in tensors.items()}
    _require_sizes(adapter.source, state, _shapes(kind, config))
    if not linear and len(state) == len(expected):
        as_linear = linear_head_of(tensors, config)
        if as_linear is not None:
            return ImportedHead("linear", as_linear)
    return ImportedHead(kind, state)


def _expected(kind: HeadKind, config: PretrainedConfig) -> dict[str, str]:
    """By the stock model's name of each tensor of the head: lora_pl's own."""
    if kind == "linear":
        return {f"{LINEAR}.{name}": name for name in _shapes(kind, config)}
    layers = stock_head(config).layers
    return {f"{layers[layer]}.{part}": f"{layer}.{part}"
            for layer, part in (name.split(".") for name in _shapes(kind, config))}  # fmt: skip


def _shapes(kind: HeadKind, config: PretrainedConfig) -> dict[str, torch.Size]:
    """The tensors of lora_pl's head with one output, by their names."""
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in new_head(kind, config, 1).state_dict().items()}


def _bare(name: str, layers: Sequence[str]) -> str:
    """`module.classifier.weight` -> `classifier.weight`: without what stands before the layer."""
    part = name.rpartition(".")[2]
    found = (f"{layer}.{part}" for layer in layers if f".{name}".endswith(f".{layer}.{part}"))
    return next(found, name)


def _require_names(source: str, got: Mapping[str, Tensor], expected: set[str], optional: set[str]) -> None:
    missing, unexpected = sorted(expected - got.keys() - optional), sorted(got.keys() - expected)
    problems = [f"no tensors of the head: {', '.join(missing)}"] if missing else []
    if unexpected:
        problems.append(f"unknown tensors: {some(unexpected)}")
    if problems:
        raise UserError("adapter.head", f"{source}: {'; '.join(problems)}")


def _require_sizes(source: str, state: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> None:
    for name, tensor in state.items():
        # the first size of the last layer is the number of classes, of the others it follows from the second
        if tensor.dim() != len(shapes[name]) or tensor.shape[1:] != shapes[name][1:]:
            expected = ", ".join(["...", *map(str, shapes[name][1:])])
            raise UserError("adapter.head", f"{source}: expected ({expected}) for {name}, got {tuple(tensor.shape)}")
