"""The two layouts of the earlier LoRA project on RoBERTa and SST-2 whose adapters are about.

One is a flat state dict with `roberta.encoder.layer.N.attention.self.{query,value}.{A,B}` and a linear head
`classifier.{weight,bias}` on `<s>`; the other has it under `lora`, beside `metrics` and `config` (model, task, r,
alpha, max_length).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora_pl.data.tasks import GLUE_TASKS
from lora_pl.errors import UserError
from lora_pl.formats.foreign import ForeignAdapter, pair_up


def is_seed(state: Mapping[str, Any]) -> bool:
    """Whether the file is of one of the two layouts."""
    return isinstance(state.get("lora"), dict) or any(name.endswith(".A") for name in state)


def read_seed(state: Mapping[str, Any], source: str) -> ForeignAdapter:
    """The adapter; rank, alpha, task and length where the file says them.

    Raises:
        UserError: the file says another rank than its tensors have.
    """
    config = state.get("config", {}) if "lora" in state else {}
    tensors = state.get("lora", state)
    layers, head = pair_up(source, tensors, ".A", ".B", config.get("alpha"))
    wrong = [name for name, layer in layers.items() if layer.r != config.get("r", layer.r)]
    if wrong:
        raise UserError(f"{source}: config says r = {config['r']}, but {wrong[0]} has r = {layers[wrong[0]].r}")
    return ForeignAdapter(source, layers, head, _settings(config), linear_head=True)


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    tasks = {task.folder: task.name for task in GLUE_TASKS.values()}
    known = {"encoder": config.get("model"), "task": tasks.get(config.get("task", ""))}
    known["max_length"] = config.get("max_length")
    return {key: value for key, value in known.items() if value is not None}
