"""An adapter's tensors, apart from the base that they belong to."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from lora_pl.lora.errors import LoRAError
from lora_pl.lora.injection import declared_params


def adapter_state_dict(model: nn.Module, also: Iterable[nn.Module] = ()) -> dict[str, Tensor]:
    """What LoRA trains in `model`, by full name: the declared adapter parameters, and all that is in `also`.

    The tensors share memory with the model's, as those of `state_dict()` do.
    """
    kept = {id(tensor) for module in model.modules() for tensor in _adapter_tensors(module)}
    for module in also:
        kept.update(id(tensor) for tensor in module.state_dict(keep_vars=True).values())
    state = nn.Module.state_dict(model, keep_vars=True)
    return {name: tensor.detach() for name, tensor in state.items() if id(tensor) in kept}


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
        raise LoRAError("the adapter does not fit the model: " + "; ".join(problems))
    for name, tensor in own.items():
        tensor.copy_(state[name])


def _adapter_tensors(module: nn.Module) -> list[nn.Parameter]:
    return [module.get_parameter(name) for name in declared_params(module)]


def _shape(value: object) -> tuple[int, ...] | str:
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__


def _listed(kind: str, names: list[str]) -> list[str]:
    # names in a file from elsewhere must not break the line or write over the terminal
    shown = [name if name.isprintable() else repr(name) for name in names]
    return [f"{len(names)} {kind}: {', '.join(shown)}"] if names else []
