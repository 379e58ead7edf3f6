"""The adapters of layers that come with an external adapter, and the configuration that has them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import nn

from lora_pl.encoder.architectures import architecture_of, stock_head
from lora_pl.errors import UserError
from lora_pl.formats.external import ExternalAdapter, ExternalLayer, ending_in
from lora_pl.formats.fused_projections import split_parts
from lora_pl.formats.peft_folder import targeted
from lora_pl.lora import VARIANTS, LoRAConfig
from lora_pl.printable import first_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def place_layers(
    adapter: ExternalAdapter, stock: PreTrainedModel, lora_alpha: float | None
) -> tuple[dict[str, ExternalLayer], ExternalLayer | None]:
    """The adapters of the encoder's layers by name, and that of the head's first layer ("all-linear" on BERT).

    `stock` is that of `stock_shapes`; `lora_alpha` overrides what the file says.

    Raises:
        UserError: adapter.base, adapter.missing, adapter.shape or adapter.unsupported: the layers do not fit the
            encoder; import.alpha: alpha is not known.
    """
    linear = {name: module for name, module in stock.named_modules() if isinstance(module, nn.Linear)}
    source, layers = adapter.source, dict[str, ExternalLayer]()
    for given, layer in adapter.layers.items():
        name = ending_in(given, linear)
        if name is None:
            said = f"the encoder has no linear layer {given}; is it the adapter's base?"
            raise UserError("adapter.base", f"{source}: {said}")
        _require_shapes(source, name, layer, linear[name])
        layers[name] = _with_alpha(source, layer, lora_alpha)
    expected = [] if adapter.expected_layers is None else targeted(adapter.expected_layers, linear)
    if missing := [name for name in expected if name not in layers]:
        raise UserError("adapter.missing", f"{source}: no tensors for the layers {first_of(missing, 4)}")
    on_head = layers.pop(stock_head(stock.config).dense, None)
    prefix = f"{stock.base_model_prefix}."
    if outside := ", ".join(name for name in layers if not name.startswith(prefix)):
        said = f"{source}: {outside}: the head's last layer is adapted, not trained whole"
        raise UserError("adapter.unsupported", said)
    own = {name.removeprefix(prefix): layer for name, layer in layers.items()}
    return split_parts(architecture_of(stock.config).fused, own), on_head


def lora_config(layers: Mapping[str, ExternalLayer], linear: Collection[str]) -> LoRAConfig:
    """The configuration that adapts `layers`, and no others of `linear`, with their ranks and alphas."""
    first = next(iter(layers.values()))
    ranks = {name: layer.r for name, layer in layers.items()}
    alphas = {name: float(layer.alpha or 0) for name, layer in layers.items()}
    r, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    return LoRAConfig(
        r=int(r),
        lora_alpha=alpha,
        target_modules=tuple(_targets(layers, linear)),
        rank_pattern={name: value for name, value in ranks.items() if value != r},
        alpha_pattern={name: value for name, value in alphas.items() if value != alpha},
        variant=next(name for name, variant in VARIANTS.items() if variant is first.variant),
        scaling=first.scaling,
    )


def _targets(adapted: Collection[str], linear: Collection[str]) -> list[str]:
    """Targets that match the layers `adapted` and no others of `linear`: the last parts of names (`query`), else what
    follows the block's number (`attention.self.query`), else whole names."""
    for before in (r"^.*\.", r"^.*\.\d+\."):
        targets = dict.fromkeys(re.sub(before, "", name) for name in adapted)
        if {name for name in linear if any(f".{name}".endswith(f".{target}") for target in targets)} == set(adapted):
            return list(targets)
    return list(adapted)


def _require_shapes(source: str, name: str, layer: ExternalLayer, linear: nn.Linear) -> None:
    sizes = {"r": layer.r, "in": linear.in_features, "out": linear.out_features}
    for own, axes in layer.variant.axes.items():
        expected, got = tuple(sizes[axis] for axis in axes), tuple(layer.tensors[own].shape)
        if got != expected:
            raise UserError(
                "adapter.shape",
                f"{source}: {name}: expected {own} {expected} for this encoder, got {got}; is it the adapter's base?",
            )


def _with_alpha(source: str, layer: ExternalLayer, given: float | None) -> ExternalLayer:
    alpha = layer.alpha if given is None else given
    if alpha is None:
        raise UserError(
            "import.alpha",
            f"{source}: the file does not say alpha, without which the update's scale alpha / r is not known; "
            f"give --lora_alpha (r is {layer.r})",
        )
    return replace(layer, alpha=float(alpha))
