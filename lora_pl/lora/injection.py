"""Putting LoRA into a model and taking it out again."""

from collections.abc import Callable, Iterable

from torch import nn

from lora_pl.lora.config import LoRAConfig
from lora_pl.lora.errors import LoRAError
from lora_pl.lora.layer import LoRALinear, lora_layers
from lora_pl.lora.names import folded, matches


def inject_lora(model: nn.Module, config: LoRAConfig) -> list[str]:
    """Replace every linear layer that `config.target_modules` names by a `LoRALinear` over the same weight.

    A target matches a layer by the last parts of its name (`query` matches `encoder.layer.0.attention.self.query`,
    not `my_query`) or as a regular expression over the whole name. Nothing is frozen: see
    `mark_only_lora_as_trainable`.

    Returns:
        The names of the adapted layers, in the model's order.

    Raises:
        LoRAError: a target matches no linear layer, LoRA is injected already, or r exceeds a layer's size. The model
            is then as it was.
    """
    if lora_layers(model):
        raise LoRAError("LoRA is injected in this model already: call remove_lora(model) first")
    layers = linear_layers(model)
    names = matching_names(layers, config.target_modules)
    _check_patterns(config, names)
    for name in names:
        check_rank(name, layers[name], config.of_layer(name).r)
    for name in names:
        replace_module(model, name, LoRALinear(layers[name], config.of_layer(name)))
    return names


def remove_lora(model: nn.Module) -> list[str]:
    """Replace every `LoRALinear` by an `nn.Linear` over the base's weight, bit for bit what it was; their names."""
    layers = lora_layers(model)
    for name, layer in layers.items():
        replace_module(model, name, _base_linear(layer))
    return list(layers)


def mark_only_lora_as_trainable(model: nn.Module, also: Iterable[nn.Module] = ()) -> None:
    """Freeze every parameter of `model` but those that its modules declare (`adapter_params`) and those in `also`."""
    model.requires_grad_(False)
    for module in model.modules():
        for name in declared_params(module):
            module.get_parameter(name).requires_grad_(True)
    for module in also:
        module.requires_grad_(True)


def declared_params(module: nn.Module) -> tuple[str, ...]:
    """The names of the parameters that `module` declares as its adapter, none where it declares nothing."""
    declare: Callable[[], tuple[str, ...]] | None = getattr(module, "adapter_params", None)
    return declare() if callable(declare) else ()


def matching_names(linear: Iterable[str], targets: Iterable[str]) -> list[str]:
    """Those of the layers' names `linear` that a target matches; a LoRAError for a target that matches none."""
    linear = list(linear)
    matched: set[str] = set()
    for target in targets:
        found = [name for name in linear if matches(name, target)]
        if not found:
            raise LoRAError(f"target_modules: {target!r} matches no linear layer; there are: {_summary(linear)}")
        matched.update(found)
    return [name for name in linear if name in matched]


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """Every plain linear layer of `model` by its name, in the model's order."""
    # exactly nn.Linear: subclasses may be used without a call of their forward, and LoRA would silently do nothing
    return {n: m for n, m in model.named_modules() if n and type(m) is nn.Linear}


def _check_patterns(config: LoRAConfig, adapted: list[str]) -> None:
    for field in ("rank_pattern", "alpha_pattern"):
        for pattern in getattr(config, field):
            if not any(matches(name, pattern) for name in adapted):
                raise LoRAError(f"{field}: {pattern!r} matches no adapted layer; there are: {_summary(adapted)}")


def _summary(names: Iterable[str]) -> str:
    """The names with layer numbers folded: `encoder.layer.*.attention.self.query, ...`."""
    return ", ".join(dict.fromkeys(map(folded, names))) or "none"


def check_rank(name: str, layer: nn.Linear, r: int) -> None:
    """Raise a LoRAError if r exceeds the layer's smaller side."""
    size = min(layer.in_features, layer.out_features)
    if r > size:
        raise LoRAError(f"r: expected at most {size}, the smaller side of {name}, got {r}")


def _base_linear(layer: LoRALinear) -> nn.Linear:
    layer.unmerge()
    base = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
    base.weight, base.bias = layer.weight, layer.bias
    return base.train(layer.training)


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` in the place `name` of `model`."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
