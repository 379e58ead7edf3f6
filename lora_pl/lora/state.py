"""An adapter's tensors, without the base that they belong to."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from lora_pl.lora.adapter import Adapter
from lora_pl.lora.errors import LoRAError
from lora_pl.lora.layer import lora_layers


def adapter_state_dict(model: nn.Module, also: Iterable[nn.Module] = ()) -> dict[str, Tensor]:
    """What LoRA trains in `model`: the parameters of its adapters, and all that is in `also`, by full name.

    An adapter's parameters have its layer's name before their own: `encoder.layer.0.attention.self.query.lora_A`. The
    tensors share memory with the model's, as those of `state_dict()` do.
    """
    adapters = [module for module in model.modules() if isinstance(module, Adapter)]
    kept = {id(tensor) for adapter in adapters for tensor in adapter.tensors().values()}
    for module in also:
        kept.update(id(tensor) for tensor in module.state_dict(keep_vars=True).values())
    names = {id(tensor): name for name, tensor in layer_tensors(model).items()}
    state = nn.Module.state_dict(model, keep_vars=True)
    return {names.get(id(tensor), name): tensor.detach() for name, tensor in state.items() if id(tensor) in kept}


def layer_tensors(model: nn.Module) -> dict[str, nn.Parameter]:
    """The adapters' parameters by their layers' names and their own."""
    layers = lora_layers(model).items()
    return {f"{layer}.{own}": tensor for layer, module in layers for own, tensor in module.adapter.tensors().items()}


@torch.no_grad()
def load_adapter_state_dict(model: nn.Module, state: Mapping[str, Tensor], also: Iterable[nn.Module] = ()) -> None:
    """Copy `state` into `model`, the reverse of `adapter_state_dict` with the same `also`.

    Raises:
        LoRAError: keys that are missing, unexpected or of another shape, all of them in one message; nothing is
            copied then.
    """
    own = adapter_state_dict(model, also)
    problems = [
        *_listed("missing", [name for name in own if name not in state]),
        *_listed("unexpected", [name for name in state if name not in own]),
        *_listed(
            "of another shape",
            [
                f"{name} (expected {tuple(tensor.shape)}, got {_shape(state[name])})"
                for name, tensor in own.items()
                if name in state and _shape(state[name]) != tuple(tensor.shape)
            ],
        ),
    ]
    if problems:
        raise LoRAError("state", "the adapter does not fit the model: " + "; ".join(problems))
    for name, tensor in own.items():
        tensor.copy_(state[name])


def _shape(value: object) -> tuple[int, ...] | str:
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__


def _listed(kind: str, names: list[str]) -> list[str]:
    # names in a file from elsewhere must not break the line or write over the terminal
    shown = [name if name.isprintable() else repr(name) for name in names]
    return [f"{len(names)} {kind}: {', '.join(shown)}"] if names else []
