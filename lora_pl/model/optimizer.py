"""The optimizer's parameter groups."""

from collections.abc import Mapping
from typing import Any

from torch import nn


def parameter_groups(encoder: nn.Module, head: nn.Module, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Optimizer groups of the trainable parameters: `encoder` and `head`, each with its learning rate.

    Without `decay_bias`, biases and norms are in groups of their own (`NAME_bias`) with weight decay 0.

    Args:
        encoder: The encoder, or its adapter alone.
        head: The head.
        settings: The hyper-parameters of a `LoRAClassifier`.
    """
    peak, weight_decay, decay_bias = (settings[name] for name in ("learning_rate", "weight_decay", "decay_bias"))
    groups = []
    for name, module, rate in (("encoder", encoder, peak), ("head", head, settings["head_learning_rate"] or peak)):
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        decayed = [parameter for parameter in trained if parameter.ndim > 1 or decay_bias]
        plain = [parameter for parameter in trained if parameter.ndim <= 1 and not decay_bias]
        groups.append({"name": name, "params": decayed, "lr": rate, "weight_decay": weight_decay})
        groups.append({"name": f"{name}_bias", "params": plain, "lr": rate, "weight_decay": 0.0})
    return [group for group in groups if group["params"]]
