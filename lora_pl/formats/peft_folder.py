"""The folder of an adapter that PEFT saved, and what of its configuration lora_pl represents."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor
from typing_extensions import TypedDict

from lora_pl.encoder.biases_and_norms import TrainBiases
from lora_pl.errors import UserError
from lora_pl.formats.external import ExternalAdapter, ExternalLayer, parse_safetensors, split_layers
from lora_pl.formats.model_card import RECORD
from lora_pl.formats.native import parse_record
from lora_pl.lora import VARIANTS, LoRAError
from lora_pl.lora.config import Scaling
from lora_pl.lora.names import LITERAL, matching_whole, require_patterns
from lora_pl.storage.schema import parse_json, require_json

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."


class PeftConfig(TypedDict, total=False):
    """The fields of `adapter_config.json` that lora_pl represents."""

    peft_type: str
    task_type: str | None
    base_model_name_or_path: str | None
    r: int
    lora_alpha: float
    lora_dropout: float | None
    target_modules: list[str] | str | None
    exclude_modules: list[str] | str | None
    layers_to_transform: list[int] | int | None
    layers_pattern: list[str] | str | None
    rank_pattern: dict[str, int] | None
    alpha_pattern: dict[str, float] | None
    use_rslora: bool | None
    modules_to_save: list[str] | None
    bias: str | None
    init_lora_weights: bool | str | None


WITHOUT_EFFECT = {
    *("auto_mapping", "eva_config", "inference_mode", "megatron_core", "peft_version", "qalora_group_size", "revision"),
    "runtime_config",
}
"""These don't change what a trained adapter computes on linear layers."""
PATTERNS = ("target_modules", "exclude_modules", "rank_pattern", "alpha_pattern")
BIASES: dict[str | None, TrainBiases] = {"none": "none", "lora_only": "lora", "all": "all"}
"""`train_biases` by PEFT's name."""
COPIES = (r"\.original_module\.", r"\.modules_to_save\.", r"\.modules_to_save\.[^.]+\.")
"""Where PEFT, with bias = all, also writes the biases of modules that it saves whole: unused ones, and those twice."""
RECORDED = ("encoder", "task", "label_names", "pairs", "max_length")
"""What is taken of lora_pl's own record beside an adapter."""
INITS = (True, False, "gaussian", "eva", "orthogonal")
"""The initializations that leave the base's weights as they are; PiSSA, OLoRA, LoftQ, ... change them."""


def read_peft(files: Mapping[str, bytes], source: str) -> ExternalAdapter:
    """The adapter of a folder that PEFT saved, from its files' contents.

    Raises:
        UserError: adapter.damaged, adapter.shape or adapter.missing (tensors), or adapter.unsupported (what lora_pl
            can't represent).
    """
    config = parse_config(files[CONFIG], source)
    tensors = parse_safetensors(files[WEIGHTS], source)
    outside = [name for name in tensors if not name.startswith(PREFIX)]
    if outside:
        raise UserError("adapter.damaged", f"{source}: expected names that begin with {PREFIX}, got {outside[0]}")
    plain = _plain(tensors, config)
    variant = next(variant for variant in VARIANTS.values() if variant.peft_settings == _variant_settings(config))
    layers, head = split_layers(source, plain, variant, variant.peft_names)
    layers = _scaled(layers, config, source)
    settings, base = {"encoder": config.get("base_model_name_or_path")}, None
    if RECORD in files:  # lora_pl's own
        record = parse_record(files[RECORD], source)
        settings |= {key: record["hyper_parameters"][key] for key in RECORDED}
        base = record["base"]
    settings["lora_dropout"] = float(config.get("lora_dropout") or 0.0)
    biases = BIASES[config.get("bias", "none")]
    return ExternalAdapter(source, layers, head, settings, base, expected_layers=config, biases=biases)


def _scaled(layers: Mapping[str, ExternalLayer], config: Mapping[str, Any], source: str) -> dict[str, ExternalLayer]:
    """With the configuration's alphas and scaling; its ranks must be those of the tensors."""
    ranks, alphas = (_by_pattern(config, field, list(layers)) for field in ("rank_pattern", "alpha_pattern"))
    scaling: Scaling = "rslora" if config.get("use_rslora") else "standard"
    for name, layer in layers.items():
        if (r := ranks.get(name, config["r"])) != layer.r:
            raise UserError(
                "adapter.shape", f"{source}: {CONFIG} says r = {r} for {name}, but its tensors have r = {layer.r}"
            )
    alpha = {name: float(alphas.get(name, config["lora_alpha"])) for name in layers}
    return {name: replace(layer, alpha=alpha[name], scaling=scaling) for name, layer in layers.items()}


def _plain(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors by the stock model's names, without `COPIES`."""
    plain = {re.sub(r"\.base_layer(?=\.bias$)", "", name.removeprefix(PREFIX)): tensors[name] for name in tensors}
    bare = {name: {re.sub(place, ".", name) for place in COPIES} - {name} for name in plain}
    return {name: plain[name] for name in plain if config.get("bias") != "all" or not bare[name] & plain.keys()}


def parse_config(data: bytes, source: str) -> dict[str, Any]:
    """The configuration of a LoRA adapter.

    Raises:
        UserError: adapter.damaged (no JSON object, or a damaged pattern) or adapter.unsupported: every field that
            lora_pl can't represent is named, none is ignored.
    """
    config = parse_json(data, "adapter.damaged", f"{source}: {CONFIG}")
    if not isinstance(config, dict):
        raise UserError("adapter.damaged", f"{source}: {CONFIG} is damaged: no object")
    require_json(config, PeftConfig, "adapter.unsupported", f"{source}: {CONFIG}: ", unknown="ignore")
    if config.get("peft_type") != "LORA":
        raise UserError("adapter.unsupported", f"{source}: expected peft_type LORA, got {config.get('peft_type')!r}")
    if config.get("task_type") not in (None, "SEQ_CLS", "FEATURE_EXTRACTION"):
        raise UserError("adapter.unsupported", f"{source}: expected task_type SEQ_CLS, got {config['task_type']!r}")
    try:
        for field in PATTERNS:
            require_patterns(field, _listed(config.get(field)))
    except LoRAError as error:
        raise UserError("adapter.damaged", f"{source}: {CONFIG} has a damaged pattern: {error}") from error
    problems = list(_unrepresentable(config))
    if problems:
        raise UserError(
            "adapter.unsupported", f"{source}: {CONFIG} has what lora_pl can't represent: {', '.join(problems)}"
        )
    return config


def targeted(config: Mapping[str, Any], linear_layers: Iterable[str]) -> list[str]:
    """The layers that PEFT adapts by this configuration, without those that it saves whole."""
    names = list(linear_layers)
    wanted, excluded = (_named(config.get(field), names) for field in ("target_modules", "exclude_modules"))
    whole = [f".{module}." for module in config.get("modules_to_save") or ()]
    return [
        name
        for name in names
        if name in wanted - excluded and _in_blocks(config, name) and not any(part in f".{name}." for part in whole)
    ]


def _in_blocks(config: Mapping[str, Any], name: str) -> bool:
    """Whether the layer's block is among `layers_to_transform`, which counts for lists of targets alone."""
    blocks = config.get("layers_to_transform")
    if blocks in (None, []) or isinstance(config.get("target_modules"), str):
        return True
    for pattern in map(re.escape, _listed(config.get("layers_pattern"))) if config.get("layers_pattern") else ["[^.]*"]:
        if found := re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", name):
            return int(found[1]) in ([blocks] if isinstance(blocks, int) else blocks)
    return False


def _unrepresentable(config: Mapping[str, Any]) -> Iterable[str]:
    known = {*PeftConfig.__annotations__, *WITHOUT_EFFECT, *_variant_fields()}
    for field, value in config.items():
        if field not in known and value:
            yield f"{field} = {str(value)[:60]}"
    if config.get("bias", "none") not in BIASES:
        yield f"bias = {config['bias']}"
    if config.get("init_lora_weights", True) not in INITS:
        yield f"init_lora_weights = {config['init_lora_weights']} (changes the base's weights)"
    settings = _variant_settings(config)
    if settings not in [variant.peft_settings for variant in VARIANTS.values()]:
        yield " and ".join(f"{field} = {value}" for field, value in settings.items())
    for field in ("r", "lora_alpha"):
        if not (config.get(field) or 0) > 0:
            yield f"{field} = {config.get(field)} (expected a number > 0)"
    for field in ("layers_pattern", "modules_to_save"):
        if wrong := [name for name in _listed(config.get(field)) if not LITERAL.fullmatch(name)]:
            yield f"{field} = {wrong[0]} (expected names)"


def _variant_fields() -> set[str]:
    return {field for variant in VARIANTS.values() for field in variant.peft_settings or ()}


def _variant_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Those fields that choose the variant."""
    return {field: config[field] for field in _variant_fields() if config.get(field)}


def _by_pattern(config: Mapping[str, Any], field: str, names: list[str]) -> dict[str, Any]:
    """The values of the layers that a pattern matches; the first one counts."""
    found: dict[str, Any] = {}
    for pattern, value in reversed((config.get(field) or {}).items()):
        found |= dict.fromkeys(matching_whole(names, rf"(?:.*\.)?(?:{pattern})"), value)
    return found


def _named(targets: list[str] | str | None, names: list[str]) -> set[str]:
    """Those that a pattern matches whole, or whose last parts are in a list."""
    if isinstance(targets, str):
        return set(names if targets == "all-linear" else matching_whole(names, targets))
    return {name for name in names if any(f".{name}".endswith(f".{target}") for target in targets or ())}


def _listed(value: Any) -> list[str]:
    """The names or patterns of a field: one, several, or the keys of a mapping."""
    return [value] if isinstance(value, str) else list(value or ())
