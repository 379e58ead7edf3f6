"""The head that comes with an external adapter."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lora_pl.encoder.architectures import stock_head
from lora_pl.encoder.head import HeadKind, new_head
from lora_pl.errors import UserError
from lora_pl.formats.external import ExternalAdapter, ending_in
from lora_pl.formats.stock_head import linear_head_of, require_first_token
from lora_pl.printable import first_of

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
    known = [f"{layer}.{part}" for layer in (*stock.layers.values(), LINEAR) for part in ("weight", "bias")]
    tensors = {ending_in(name, known) or name: tensor.float() for name, tensor in adapter.head.items()}
    linear = adapter.linear_head or (stock.out_proj != LINEAR and f"{LINEAR}.weight" in tensors)
    if not linear and adapter.base is None:  # lora_pl's own records name their base; their heads read the first token
        require_first_token(config)
    kind: HeadKind = "linear" if linear else "architecture"
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in new_head(kind, config, 1).state_dict().items()}
    split = {own: own.rpartition(".") for own in shapes}
    names = {own: f"{stock.layers.get(layer, LINEAR)}.{part}" for own, (layer, _, part) in split.items()}
    optional = {names[own] for own in shapes if own.partition(".")[0] in stock.pretrained}
    if problems := list(_problems(tensors, {names[own]: shape for own, shape in shapes.items()}, optional)):
        raise UserError("adapter.head", f"{adapter.source}: {'; '.join(problems)}")
    if not linear and len(tensors) == len(shapes) and (as_linear := linear_head_of(tensors, config)):
        return ImportedHead("linear", as_linear)
    return ImportedHead(kind, {own: tensors[name] for own, name in names.items() if name in tensors})


def _problems(
    tensors: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], optional: Collection[str]
) -> Iterator[str]:
    missing = [name for name in shapes if name not in tensors and name not in optional]
    unknown = [name for name in tensors if name not in shapes]
    if missing:
        yield f"no tensors of the head: {', '.join(missing)}"
    if unknown:
        yield f"unknown tensors: {first_of(unknown, 4)}"
    for name, shape in shapes.items():
        # the first size of the last layer is the number of classes, of the others it follows from the second
        got = tensors[name].shape if name in tensors else shape
        if len(got) != len(shape) or got[1:] != shape[1:]:
            yield f"expected ({', '.join(['...', *map(str, shape[1:])])}) for {name}, got {tuple(got)}"
