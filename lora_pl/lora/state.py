"""An adapter's tensors, without the base that they belong to."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from lora_pl.lora.errors import LoRAError
from lora_pl.lora.layer import lora_layers


def adapter_state_dict(model: nn.Module, also: Iterable[nn.Module | nn.Parameter] = ()) -> dict[str, Tensor]:
    """The parameters of the adapters in `model` and everything in `also` (whole modules, parameters), by full name.

    An adapter's parameters follow its layer's name: `encoder.layer.0.attention.self.query.lora_A`. The tensors share
    memory with the model's, as those of `state_dict()` do.
    """
    names = {
        id(tensor): f"{layer}.{own}"
        for layer, module in lora_layers(model).items()
        for own, tensor in module.adapter.tensors().items()
    }
    kept = {*names}
    for one in also:
        kept.update(map(id, one.state_dict(keep_vars=True).values() if isinstance(one, nn.Module) else [one]))
    state = nn.Module.state_dict(model, keep_vars=True)
    return {names.get(id(tensor), name): tensor.detach() for name, tensor in state.items() if id(tensor) in kept}


def load_adapter_state_dict(
    model: nn.Module, state: Mapping[str, Tensor], also: Iterable[nn.Module | nn.Parameter] = ()
) -> None:
    """Copy `state` into `model`, the reverse of `adapter_state_dict` with the same `also`.

    Raises:
        LoRAError: state: keys that are missing or unexpected, values of another shape or that are no dense tensors of
            floating-point numbers, all in one message; nothing is copied then.
    """
    copy_state(adapter_state_dict(model, also), state)
    for layer in lora_layers(model).values():
        layer.refresh()


def below(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of `state` whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


@torch.no_grad()
def copy_state(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Copy every tensor of `state` into the one of the same name; see `load_adapter_state_dict`."""
    shapes = [
        f"{name} (expected {tuple(tensor.shape)}, got {_kind(state[name])})"
        for name, tensor in own.items()
        if name in state and _kind(state[name]) != tuple(tensor.shape)
    ]
    problems = {
        "missing": [name for name in own if name not in state],
        "unexpected": [name for name in state if name not in own],
        "of another shape": shapes,
    }
    listed = [f"{len(names)} {kind}: {', '.join(map(_shown, names))}" for kind, names in problems.items() if names]
    if listed:
        raise LoRAError("state", f"the tensors do not fit the model: {'; '.join(listed)}")
    for name, tensor in own.items():
        tensor.copy_(state[name])


def _kind(value: object) -> tuple[int, ...] | str:
    """The shape of a dense tensor of floating-point numbers; what anything else is."""
    if not isinstance(value, Tensor) or value.is_nested:
        return type(value).__name__
    if value.is_floating_point() and value.layout == torch.strided and not value.is_meta:
        return tuple(value.shape)
    return f"{value.dtype}, {value.layout}, on {value.device}"


def _shown(name: object) -> str:
    # names in a file from elsewhere must not break the line or write over the terminal
    return name if isinstance(name, str) and name.isprintable() else repr(name)
