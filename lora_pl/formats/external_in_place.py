"""The biases and norms that come with an external adapter."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING, Any, get_args

from torch import Tensor, nn

from lora_pl.encoder.architectures import architecture_of
from lora_pl.encoder.biases_and_norms import TrainBiases, biases, biases_and_norms, norms
from lora_pl.encoder.fused import split_state
from lora_pl.errors import UserError
from lora_pl.formats.external import ExternalAdapter, ending_in
from lora_pl.printable import first_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def split_in_place(adapter: ExternalAdapter, stock: PreTrainedModel) -> tuple[dict[str, Tensor], ExternalAdapter]:
    """The encoder's biases and norms among the adapter's other tensors, by lora_pl's names, and the adapter without.

    `stock` is that of `stock_shapes`.

    Raises:
        UserError: adapter.shape: one is of another size.
    """
    prefix = f"{stock.base_model_prefix}."
    every = biases(stock.base_model, "all") | norms(stock.base_model)
    # a pooler belongs to the head
    shapes = {prefix + name: tensor.shape for name, tensor in every.items() if not name.startswith("pooler.")}
    places = {name: ending_in(name, shapes) for name in adapter.head}
    found = {place: adapter.head[name].float() for name, place in places.items() if place}
    for name, tensor in found.items():
        if tensor.shape != shapes[name]:
            got, expected = tuple(tensor.shape), tuple(shapes[name])
            raise UserError("adapter.shape", f"{adapter.source}: {name}: expected {expected}, got {got}")
    own = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    rest = {name: tensor for name, tensor in adapter.head.items() if not places[name]}
    return split_state(architecture_of(stock.config).fused, own), replace(adapter, head=rest)


def in_place_settings(adapter: ExternalAdapter, names: Collection[str], encoder: nn.Module) -> dict[str, Any]:
    """The `train_biases` and `train_norms` by which `encoder`, with LoRA as in the adapter, trains exactly `names`.

    Raises:
        UserError: adapter.missing: no settings train exactly these.
    """
    kinds = [adapter.biases] if adapter.biases else get_args(TrainBiases)
    choices = [{"train_biases": kind, "train_norms": every} for every in (False, True) for kind in kinds]
    trained = [biases_and_norms(encoder, settings).keys() for settings in choices]
    nearest = min(range(len(choices)), key=lambda number: len(trained[number] ^ set(names)))
    missing = [name for name in trained[nearest] if name not in names]
    unknown = [name for name in names if name not in trained[nearest]]
    if missing or unknown:
        said = [
            f"{what} {first_of(found, 4)}" for what, found in (("missing", missing), ("unexpected", unknown)) if found
        ]
        raise UserError("adapter.missing", f"{adapter.source}: trained biases and norms: {'; '.join(said)}")
    return choices[nearest] if names else {}
