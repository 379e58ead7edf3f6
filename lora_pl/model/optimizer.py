"""The optimizer's parameter groups."""

from typing import Any

from torch import nn


def parameter_groups(
    modules: dict[str, tuple[nn.Module, float]], weight_decay: float, decay_bias: bool
) -> list[dict[str, Any]]:
    """Optimizer groups of the trainable parameters, one per module and learning rate.

    Without `decay_bias`, biases and norms are in groups of their own (`NAME_bias`) with weight decay 0.
    """
    groups = []
    for name, (module, rate) in modules.items():
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        decayed = [parameter for parameter in trained if parameter.ndim > 1 or decay_bias]
        plain = [parameter for parameter in trained if parameter.ndim <= 1 and not decay_bias]
        groups.append({"name": name, "params": decayed, "lr": rate, "weight_decay": weight_decay})
        groups.append({"name": f"{name}_bias", "params": plain, "lr": rate, "weight_decay": 0.0})
    return [group for group in groups if group["params"]]
