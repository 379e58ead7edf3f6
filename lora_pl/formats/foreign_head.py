"""The head that comes with an adapter from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from lora_pl.encoder.head import HeadKind, needs_pooler
from lora_pl.errors import UserError
from lora_pl.formats.external import ExternalAdapter
from lora_pl.formats.stock_head import linear_head_of, stock_names

if TYPE_CHECKING:
    from transformers import PretrainedConfig

LINEAR = "classifier"


@dataclass(frozen=True)
class ImportedHead:
    """A head's kind and tensors, by the names of lora_pl's head."""

    kind: HeadKind
    state: Mapping[str, Tensor]
    """Where `dense` is not in it, it is the base's own pooler."""

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
        UserError: a tensor of the head is missing, of another size than the encoder, or there are tensors that belong
            to no head.
    """
    names = stock_names(config)
    tensors = {_bare(name, names.modules): tensor.float() for name, tensor in adapter.head.items()}
    linear = adapter.linear_head or (names.out_proj != LINEAR and f"{LINEAR}.weight" in tensors)
    places = {LINEAR: ""} if linear else {names.dense: "dense.", names.out_proj: "out_proj."}
    expected = {f"{name}.{part}": f"{own}{part}" for name, own in places.items() for part in ("weight", "bias")}
    optional = {name for name in expected if needs_pooler("architecture", config) and name.startswith(names.dense)}
    _require_names(adapter.source, tensors, set(expected), set() if linear else optional)
    state = {expected[name]: tensor for name, tensor in tensors.items()}
    _require_sizes(adapter.source, state, config.hidden_size)
    if not linear and len(state) == len(expected):
        as_linear = linear_head_of(tensors, config)
        if as_linear is not None:
            return ImportedHead("linear", as_linear)
    return ImportedHead("linear" if linear else "architecture", state)


def _bare(name: str, modules: tuple[str, ...]) -> str:
    """`module.classifier.weight` -> `classifier.weight`; BERT's pooler keeps its place, `bert.pooler.dense.weight`."""
    parts = name.split(".")
    start = next((index for index, part in enumerate(parts) if part in modules), 0)
    return ".".join(parts[start - 1 if parts[start] == "pooler" and start else start :])


def _require_names(source: str, got: Mapping[str, Tensor], expected: set[str], optional: set[str]) -> None:
    missing, unexpected = sorted(expected - got.keys() - optional), sorted(got.keys() - expected)
    problems = [f"no tensors of the head: {', '.join(missing)}"] if missing else []
    if unexpected:
        problems.append(f"unknown tensors: {', '.join(unexpected[:4])}")
    if problems:
        raise UserError(f"{source}: {'; '.join(problems)}")


def _require_sizes(source: str, state: Mapping[str, Tensor], hidden: int) -> None:
    for name, tensor in state.items():
        if name.endswith("weight") and (tensor.dim() != 2 or tensor.shape[1] != hidden):
            raise UserError(f"{source}: head: expected (..., {hidden}) for {name}, got {tuple(tensor.shape)}")
