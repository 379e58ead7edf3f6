"""What a layer shares with the linear layer whose place it takes."""

from torch import nn

HOOKS = ("_forward_", "_backward_", "_is_full_backward_")
"""How the attributes of `nn.Module` begin that hold hooks of a forward and a backward."""


def share(base: nn.Linear, layer: nn.Linear) -> None:
    """Give `layer` the sizes, weight, bias, mode and hooks of `base`, not copies: a hook's handle still removes it."""
    layer.in_features, layer.out_features = base.in_features, base.out_features
    layer.weight, layer.bias = base.weight, base.bias
    layer.training = base.training
    vars(layer).update({name: value for name, value in vars(base).items() if name.startswith(HOOKS)})
