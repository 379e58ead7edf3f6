"""The folder of an adapter that PEFT saved, and what of its configuration lora_pl represents."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from lora_pl.errors import UserError
from lora_pl.formats.external import ExternalAdapter, ExternalLayer, parse_safetensors, split_layers
from lora_pl.formats.model_card import RECORD
from lora_pl.formats.native import parse_record
from lora_pl.lora import VARIANTS

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."

REPRESENTED = {
    *("peft_type", "task_type", "base_model_name_or_path", "r", "lora_alpha", "lora_dropout", "target_modules"),
    *("exclude_modules", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern", "use_rslora"),
    *("modules_to_save", "bias", "init_lora_weights"),
}
WITHOUT_EFFECT = {
    *("auto_mapping", "inference_mode", "megatron_core", "peft_version", "qalora_group_size", "revision"),
    "runtime_config",
}
"""These don't change what a trained adapter computes on linear layers."""
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
    plain = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
    variant = next(variant for variant in VARIANTS.values() if variant.peft_settings == _variant_settings(config))
    layers, head = split_layers(source, plain, variant, variant.peft_names)
    scaled = {name: _scaled(config, name, layer, source) for name, layer in layers.items()}
    settings, base = _from_record(files, source)
    settings = {"encoder": config.get("base_model_name_or_path"), **settings}
    settings["lora_dropout"] = float(config.get("lora_dropout") or 0.0)
    return ExternalAdapter(source, scaled, head, settings, base, expected_layers=config)


def _scaled(config: Mapping[str, Any], name: str, layer: ExternalLayer, source: str) -> ExternalLayer:
    r, alpha = layer_settings(config, name)
    if r != layer.r:
        raise UserError(
            "adapter.shape", f"{source}: {CONFIG} says r = {r} for {name}, but its tensors have r = {layer.r}"
        )
    return replace(layer, alpha=alpha)


def _from_record(files: Mapping[str, bytes], source: str) -> tuple[dict[str, Any], Mapping[str, str] | None]:
    """What lora_pl's own record beside the adapter says, if there is one."""
    if RECORD not in files:
        return {}, None
    record = parse_record(files[RECORD], source)
    kept = ("encoder", "task", "label_names", "pairs", "max_length")
    return {key: value for key, value in record["hyper_parameters"].items() if key in kept}, record["base"]


def parse_config(data: bytes, source: str) -> dict[str, Any]:
    """The configuration of a LoRA adapter.

    Raises:
        UserError: adapter.damaged (no JSON object) or adapter.unsupported: every field that lora_pl can't represent is
            named, none is ignored.
    """
    try:
        config = json.loads(data)
        if not isinstance(config, dict):
            raise ValueError("no object")
    except ValueError as error:
        raise UserError("adapter.damaged", f"{source}: {CONFIG} is damaged: {error}") from error
    if config.get("peft_type") != "LORA":
        raise UserError(
            "adapter.unsupported",
            f"{source}: expected peft_type LORA, got {config.get('peft_type')!r}",
        )
    if config.get("task_type") not in (None, "SEQ_CLS", "FEATURE_EXTRACTION"):
        raise UserError("adapter.unsupported", f"{source}: expected task_type SEQ_CLS, got {config['task_type']!r}")
    try:
        for pattern in (*(config.get("rank_pattern") or ()), *(config.get("alpha_pattern") or ())):
            re.compile(pattern)
    except re.error as error:
        raise UserError("adapter.damaged", f"{source}: {CONFIG} has a damaged pattern: {error}") from error
    problems = list(_unrepresentable(config))
    if problems:
        raise UserError(
            "adapter.unsupported", f"{source}: {CONFIG} has what lora_pl can't represent: {', '.join(problems)}"
        )
    return config


def layer_settings(config: Mapping[str, Any], name: str) -> tuple[int, float]:
    """(r, alpha) of a layer by its name in the stock model, alpha such that alpha / r is PEFT's scaling.

    rsLoRA's scaling is alpha / sqrt(r), which is that of the alpha multiplied by sqrt(r).
    """
    r = int(_by_pattern(config.get("rank_pattern"), name, config["r"]))
    alpha = float(_by_pattern(config.get("alpha_pattern"), name, config["lora_alpha"]))
    return r, alpha * math.sqrt(r) if config.get("use_rslora") else alpha


def targeted(config: Mapping[str, Any], linear_layers: Iterable[str]) -> list[str]:
    """The layers that PEFT adapts by this configuration, without those that it saves whole."""
    whole = [re.compile(rf"(^|.*\.){module}($|\..*)") for module in config.get("modules_to_save") or ()]
    return [
        name
        for name in linear_layers
        if _named(config.get("target_modules"), name)
        and _in_blocks(config, name)
        and not _named(config.get("exclude_modules"), name)
        and not any(pattern.match(name) for pattern in whole)
    ]


def _in_blocks(config: Mapping[str, Any], name: str) -> bool:
    """Whether the layer's block is among `layers_to_transform`, which counts for lists of targets alone."""
    blocks = config.get("layers_to_transform")
    if blocks in (None, []) or isinstance(config.get("target_modules"), str):
        return True
    patterns = config.get("layers_pattern") or r"[^.]*"
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if found := re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", name):
            return int(found[1]) in ([blocks] if isinstance(blocks, int) else blocks)
    return False


def _unrepresentable(config: Mapping[str, Any]) -> Iterable[str]:
    for field, value in config.items():
        if field not in REPRESENTED | WITHOUT_EFFECT | _variant_fields() and value:
            yield f"{field} = {str(value)[:60]}"
    if config.get("bias", "none") != "none":
        yield f"bias = {config['bias']} (biases trained too)"
    if config.get("init_lora_weights", True) not in INITS:
        yield f"init_lora_weights = {config['init_lora_weights']} (changes the base's weights)"
    settings = _variant_settings(config)
    if settings not in [variant.peft_settings for variant in VARIANTS.values()]:
        yield " and ".join(f"{field} = {value}" for field, value in settings.items())
    for field in ("r", "lora_alpha"):
        value = config.get(field)
        if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
            yield f"{field} = {value} (expected a number > 0)"


def _variant_fields() -> set[str]:
    return {field for variant in VARIANTS.values() for field in variant.peft_settings or ()}


def _variant_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Those fields that choose the variant."""
    return {field: config[field] for field in _variant_fields() if config.get(field)}


def _by_pattern(patterns: Mapping[str, Any] | None, name: str, default: Any) -> Any:
    found = (value for pattern, value in (patterns or {}).items() if re.match(rf"(.*\.)?({pattern})$", name))
    return next(found, default)


def _named(targets: Any, name: str) -> bool:
    """A pattern over the whole name, or a list of last parts."""
    if isinstance(targets, str):
        return targets == "all-linear" or re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in targets or ())
