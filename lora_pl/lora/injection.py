"""Putting LoRA into a model and taking it out again."""

from collections.abc import Iterable, Mapping
from typing import cast

from torch import nn

from lora_pl.lora.adapter import Adapter
from lora_pl.lora.bank_layer import BankLinear
from lora_pl.lora.blocks import in_blocks
from lora_pl.lora.config import LoRAConfig
from lora_pl.lora.errors import LoRAError
from lora_pl.lora.layer import LoRALinear, lora_layers, share
from lora_pl.lora.names import folded, matching

NESTED_BEFORE = "_use_nested_tensor_without_lora"
"""The attribute of an adapted `nn.TransformerEncoder` that holds its `use_nested_tensor`, until LoRA is removed."""


def inject_lora(model: nn.Module, config: LoRAConfig) -> list[str]:
    """Replace every linear layer that `config` chooses by a `LoRALinear` over the same weight.

    A target matches a layer by the last parts of its name (`query` matches `encoder.layer.0.attention.self.query`,
    not `my_query`) or as a regular expression over the whole name; a layer that the model holds under several names,
    by any of them. Hooks of forward and backward stay. Nothing is frozen: see `mark_only_lora_as_trainable`.

    Returns:
        The names of the adapted layers, the first of each, in the model's order.

    Raises:
        LoRAError: model (LoRA is injected already), target_modules, exclude, rank_pattern or alpha_pattern (nothing
            matches, or nothing is left), layers (there is no such block), or r (above a layer's size). The model is
            then unchanged.
    """
    if lora_layers(model):
        raise LoRAError("model", "LoRA is injected in this model already; call remove_lora(model) first")
    layers = linear_layers(model)
    adapted = layers_to_adapt(layers, config)
    replace_layers(model, {layers[name]: LoRALinear(layers[name], own) for name, own in adapted.items()})
    return list(adapted)


def resize_lora(model: nn.Module, config: LoRAConfig) -> None:
    """Give untrained adapters the ranks and alphas of `config`, which is otherwise that of `inject_lora`.

    A of another rank is drawn anew, but not from the caller's random numbers. Errors are those of `inject_lora`.
    """
    layers = linear_layers(model, (nn.Linear, LoRALinear))
    for name, own in layers_to_adapt(layers, config).items():
        layer = cast(LoRALinear, layers[name])
        if (layer.adapter.r, layer.adapter.lora_alpha) != (own.r, own.lora_alpha):
            layer.adapter = layer.adapter.resized(layer, own)


def remove_lora(model: nn.Module) -> list[str]:
    """Replace every `LoRALinear` by an `nn.Linear` over the base's weight, bit for bit what it was; their names.

    What was trained in place, such as a bias, keeps its trained values. torch's own encoder has its fast path again.
    """
    layers = lora_layers(model)
    replace_layers(model, {layer: plain(layer) for layer in layers.values()})
    return list(layers)


def plain(layer: nn.Linear) -> nn.Linear:
    """An `nn.Linear` over the same weight and bias, with the same hooks."""
    base = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
    share(layer, base)
    return base


def replace_layers(model: nn.Module, successors: Mapping[nn.Module, nn.Linear]) -> None:
    """Put each layer's successor in its place, under every name that the layer has."""
    for name, module in [*model.named_modules(remove_duplicate=False)]:
        if module in successors:
            model.set_submodule(name, successors[module])
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder):
            _choose_tensors(module)


def _choose_tensors(encoder: nn.TransformerEncoder) -> None:
    """With a padding mask torch's encoder makes nested tensors; a layer with adapters takes dense ones."""
    kept = vars(encoder)
    if any(isinstance(module, LoRALinear | BankLinear) for module in encoder.modules()):
        kept.setdefault(NESTED_BEFORE, encoder.use_nested_tensor)
        encoder.use_nested_tensor = False
    elif NESTED_BEFORE in kept:
        encoder.use_nested_tensor = kept.pop(NESTED_BEFORE)


def mark_only_lora_as_trainable(model: nn.Module, also: Iterable[nn.Module | nn.Parameter] = ()) -> None:
    """Freeze every parameter of `model` except those of its adapters and those in `also`: whole modules, parameters."""
    model.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, Adapter):
            module.requires_grad_(True)
    for one in also:
        one.requires_grad_(True)


def layers_to_adapt(linear: Mapping[str, nn.Linear], config: LoRAConfig) -> dict[str, LoRAConfig]:
    """The layers of `linear` that `config` adapts, in their order, each with its own configuration.

    Errors are those of `inject_lora`.
    """
    there = in_blocks(linear, cast(tuple[int, ...], config.layers))
    targeted = {linear[name] for name in _matching_any("target_modules", config.target_modules, there)}
    excluded = {linear[name] for name in _matching_any("exclude", config.exclude, linear)}
    first = {layer: name for name, layer in reversed([*linear.items()])}  # of the names of a shared layer
    chosen = {first[layer] for layer in targeted - excluded}
    adapted = [name for name in linear if name in chosen]
    if not adapted:
        raise LoRAError("exclude", f"leaves none of the {len(targeted)} targeted layers; exclude fewer")
    for field in ("rank_pattern", "alpha_pattern"):
        for pattern in getattr(config, field):
            _found(field, pattern, "adapted", adapted)
    own = config.of_layers(adapted)
    for name in adapted:
        size, r = min(linear[name].weight.shape), own[name].r
        if r > size:
            raise LoRAError("r", f"expected at most {size}, the smaller side of {name}, got {r}")
    return own


def linear_layers(model: nn.Module, kinds: tuple[type[nn.Linear], ...] = (nn.Linear,)) -> dict[str, nn.Linear]:
    """Every linear layer of exactly these classes by its name, a shared one by each, in the model's order."""
    # other subclasses may be used without a call of their forward, and LoRA would silently do nothing; a weight that is
    # no parameter is computed anew from others at each forward (weight_norm, pruning)
    layers = model.named_modules(remove_duplicate=False)
    return {name: m for name, m in layers if name and type(m) in kinds and "weight" in m._parameters}


def _matching_any(field: str, patterns: Iterable[str], names: Iterable[str]) -> set[str]:
    """Those of `names` that one of the patterns matches; each pattern must match some."""
    return {name for pattern in patterns for name in _found(field, pattern, "plain linear", names)}


def _found(field: str, pattern: str, kind: str, names: Iterable[str]) -> list[str]:
    found = matching(names, pattern)
    if not found:
        listed = ", ".join(dict.fromkeys(map(folded, names))) or "none"
        raise LoRAError(field, f"{pattern!r} matches no {kind} layer; there are: {listed}")
    return found
