"""The optimizer's parameter groups."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from lora_pl.lora import Adapter


def parameter_groups(encoder: nn.Module, head: nn.Module, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Optimizer groups of the trainable parameters: `adapters` (method full: `encoder`) and `head`, each with its rate.

    With an `lr_ratio` other than 1, B of every adapter is in a group of its own, `adapters_B` (LoRA+; Hayou et al.,
    2024). Without `decay_bias`, biases and norms are in groups of their own (`NAME_bias`) with weight decay 0.

    Args:
        encoder: The encoder, or its adapter alone.
        head: The head.
        settings: The hyper-parameters of a `LoRAClassifier`.
    """
    peak, weight_decay, decay_bias = (settings[name] for name in ("learning_rate", "weight_decay", "decay_bias"))
    ratio, adapters = settings["lora"]["lr_ratio"], "encoder" if settings["method"] == "full" else "adapters"
    matrices_b = _matrices_b(encoder) if ratio != 1 else {}
    rest = [parameter for parameter in encoder.parameters() if parameter not in matrices_b]
    groups = []
    for name, parameters, rate in (
        (adapters, rest, peak),
        ("adapters_B", matrices_b, peak * ratio),
        ("head", head.parameters(), settings["head_learning_rate"] or peak),
    ):
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        decayed = [parameter for parameter in trained if parameter.ndim > 1 or decay_bias]
        plain = [parameter for parameter in trained if parameter.ndim <= 1 and not decay_bias]
        groups.append({"name": name, "params": decayed, "lr": rate, "weight_decay": weight_decay})
        groups.append({"name": f"{name}_bias", "params": plain, "lr": rate, "weight_decay": 0.0})
    return [group for group in groups if group["params"]]


def _matrices_b(encoder: nn.Module) -> dict[nn.Parameter, None]:
    """B of every adapter, in the model's order."""
    adapters = [module for module in encoder.modules() if isinstance(module, Adapter)]
    return dict.fromkeys(adapter.get_parameter(name) for adapter in adapters for name in adapter.b_names())
