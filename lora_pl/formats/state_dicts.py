"""State dicts with adapters: loralib's, and the two layouts of the original repository.

loralib (Hu et al., 2021) has `...query.lora_A` and `...query.lora_B`, and a head. The original repository fine-tunes
RoBERTa on SST-2: one layout is `roberta.encoder.layer.N.attention.self.{query,value}.{A,B}` and a linear head
`classifier.{weight,bias}` on `<s>`; the other has that under `lora`, beside `metrics` and `config` (model, task, r,
alpha, max_length).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import TypedDict

from lora_pl.data.tasks import GLUE_TASKS
from lora_pl.errors import UserError
from lora_pl.formats.external import ExternalAdapter, split_layers
from lora_pl.lora.adapter import LoRA
from lora_pl.storage.schema import require_json

LORALIB = {"lora_A": "lora_A", "lora_B": "lora_B"}
ORIGINAL = {"lora_A": "A", "lora_B": "B"}
"""Their names of LoRA's parameters."""


class Config(TypedDict, total=False):
    """The original repository's `config`, as far as it is read."""

    model: str | None
    task: str | None
    r: int | None
    alpha: float | None
    max_length: int | None


def read_state_dict(state: Mapping[str, Any], source: str) -> ExternalAdapter:
    """The adapter in a state dict.

    Raises:
        UserError: adapter.unknown (none of the layouts), or see `split_layers`.
    """
    if isinstance(state.get("lora"), dict):
        return _read_original(state["lora"], _config(state.get("config"), source), source)
    if _has(state, ORIGINAL):
        return _read_original(state, {}, source)
    if _has(state, LORALIB):
        layers, head = split_layers(source, state, LoRA, LORALIB)
        return ExternalAdapter(source, layers, head)
    raise UserError(
        "adapter.unknown",
        f"{source}: no known adapter; expected tensors named ...lora_A and ...lora_B (loralib) or ...A and "
        "...B (the original repository), or a folder with adapter_config.json (PEFT)",
    )


def _has(state: Mapping[str, Any], names: Mapping[str, str]) -> bool:
    return any(name.endswith(f".{names['lora_A']}") for name in state)


def _read_original(state: Mapping[str, Any], config: Mapping[str, Any], source: str) -> ExternalAdapter:
    """With rank, alpha, task and length if `config` says them."""
    layers, head = split_layers(source, state, LoRA, ORIGINAL, config.get("alpha"))
    if wrong := [name for name, layer in layers.items() if layer.r != (config.get("r") or layer.r)]:
        raise UserError(
            "adapter.shape", f"{source}: config says r = {config['r']}, but {wrong[0]} has r = {layers[wrong[0]].r}"
        )
    tasks = {task.folder: task.name for task in GLUE_TASKS.values()}
    task = tasks.get(config.get("task") or "")
    known = {"encoder": config.get("model"), "task": task, "max_length": config.get("max_length")}
    settings = {key: value for key, value in known.items() if value is not None}
    return ExternalAdapter(source, layers, head, settings, linear_head=True)


def _config(stored: Any, source: str) -> dict[str, Any]:
    known = stored if isinstance(stored, dict) else {}
    config = {name: known[name] for name in Config.__annotations__ if name in known}
    require_json(config, Config, "adapter.damaged", f"{source}: config.")
    return config
